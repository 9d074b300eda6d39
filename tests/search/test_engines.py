"""One suite for both kinds of index, a file and a real Milvus server: the same results, the same refusals."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, command_line, run_here
from exports import write_export
from starlette.testclient import TestClient
from test_index import card, expected, lets_through, pairs, row, rows

from models.exported import Exported
from search import engines
from search.engines import open_index
from search.index import Broken, Filters
from search.server import make_app
from utils.errors import UserError

NUMBERS = itertools.count()
# Milliseconds between the looks that its parts take at each other, most of which are a second otherwise; seconds until
# a part that was killed is given up.
QUICK = dict.fromkeys(("PROXY_TIMETICKINTERVAL", "QUERYCOORD_CHECKCHANNELINTERVAL", "QUERYCOORD_CHECKINTERVAL"), "20")
QUICK |= {"COMMON_SESSION_TTL": "10"}


class Server:
    """A Milvus server as scripts/milvus.sh starts it, on a port and in a folder of its own."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.env = {**os.environ, "DATA": str(folder), "PORT": str(self.port), "PYTHON": sys.executable, **QUICK}

    def script(self, what: str) -> subprocess.CompletedProcess:
        words = ["sh", ROOT / "scripts" / "milvus.sh", what]
        return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=150)

    def run(self, what: str) -> None:
        done = self.script(what)
        assert done.returncode == 0, done.stderr

    def processes(self) -> list[psutil.Process]:
        starter = psutil.Process(int((self.folder / "server.pid").read_text()))
        return [*starter.children(recursive=True), starter]

    def kill(self) -> None:
        """As a machine dies that loses its power."""
        killed = self.processes()
        for process in killed:
            process.kill()
        psutil.wait_procs(killed, timeout=30)

    def address(self, name: str) -> str:
        return f"milvus://127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("milvus"))
    server.run("start")
    yield server
    server.run("stop")


@pytest.fixture(params=["file", pytest.param("milvus", marks=pytest.mark.slow)])
def place(request, tmp_path):
    """What --index takes, by a name."""
    if request.param == "file":
        return lambda name="my": str(tmp_path / f"{name}.index")
    server, number = request.getfixturevalue("server"), next(NUMBERS)
    return lambda name="my": server.address(f"{name}_{number}")


def make(where: str, bits: int = 64, **more):
    index = open_index(where, write=True)
    index.set_card(card(bits, **more), "/exports/mine")
    return index


def state(index) -> list[tuple]:
    """All that is told of its pictures, in the order added."""
    ids, codes = index.codes()
    return [
        (r.path, r.size, r.mtime_ns, r.digest, r.label, r.taken, code.tobytes())
        for r, code in zip(index.records(ids.tolist()), codes, strict=True)
    ]


# Both


def test_an_index_that_is_not_there_and_one_that_is_empty(place):
    with pytest.raises(UserError, match="no such index; make one"):
        open_index(place())
    with open_index(place(), write=True) as index:
        assert (len(index), index.card, index.student, index.bits, index.folders()) == (0, None, None, 0, [])
        assert (
            not index.broken() and not index.known("/p") and index.same(b"x" * 32) is None and not index.remove(["/p"])
        )
        index.set_card(card(20), "/exports/mine")
        index.set_card(card(20))  # of codes that say no more
        assert (index.bits, index.width, index.student) == (20, 3, "/exports/mine") and index.card == card(20)
        assert index.search(np.zeros((2, 3), np.uint8), 5) == [[], []] and not index.count(Filters(label="x"))
    with open_index(place()) as reader:
        assert len(reader) == 0 and reader.codes()[1].shape == (0, 3) and not reader.faults()


def test_search_is_exact_after_adding_replacing_and_removing(place):
    draw = np.random.RandomState(0)
    query = draw.randint(0, 4, (5, 8)).astype(np.uint8)
    with make(place()) as writer, open_index(place()) as reader:
        known, highest = {}, 0
        for number in range(5):
            new = rows(60, number, values=4, first=100 * number)
            if number:
                old = [known[i] for i in sorted(known)[5:15]]
                new += [row(r.path, r.code ^ 1, r.taken, f"{number} {r.path}") for r in old]
                known = {i: r for i, r in known.items() if r.path not in {one.path for one in old}}
            ids = writer.add(new)
            assert ids == sorted(set(ids)) and ids[0] > highest
            known, highest = known | dict(zip(ids, new, strict=True)), ids[-1]
            gone = sorted(known)[number::7]
            assert writer.remove(gone) == len(gone) and not writer.remove(gone[:1])
            known = {i: r for i, r in known.items() if i not in gone}
            alive = np.array(sorted(known))
            codes = np.array([known[i].code for i in alive])
            seen, seen_codes = reader.codes()
            assert np.array_equal(seen, alive) and np.array_equal(seen_codes, codes) and len(reader) == len(known)
            for k in (1, 7, 1000):
                hits = reader.search(query, k)
                assert list(map(pairs, hits)) == expected(query, alive, codes, k)
                assert all(hit.path == known[hit.id].path for hit in hits[0])
            for where in (Filters(folder="/p/1"), Filters(label="2", after=150), Filters(before=120, folder="/")):
                all_of = replace(where, folder=None) if where.folder == "/" else where
                inside = [i for i in alive if lets_through(all_of, known[i])]
                at = np.searchsorted(alive, inside)
                assert reader.count(where) == len(inside)
                hits = reader.search(query, 30, where=where)
                assert list(map(pairs, hits)) == expected(query, alive[at], codes[at], 30)
        assert not reader.faults() and sorted(reader.folders()) == ["/p/0", "/p/1", "/p/2"]


def test_radius_and_copies(place):
    codes = np.zeros((9, 8), np.uint8)
    codes[3:, 0] = [1, 3, 3, 3, 255, 255]
    same = ["a", "a", "b", "a", "c", "d", "c", "e", "e"]
    with make(place()) as index:
        ids = index.add([row(f"/p/{i}", code, content=same[i]) for i, code in enumerate(codes)])
        query = np.zeros((1, 8), np.uint8)
        found = [ids.index(hit.id) for hit in index.search(query, 100, radius=2)[0]]
        assert found == [0, 1, 2, 3, 4, 5, 6]
        assert [ids.index(hit.id) for hit in index.search(query, 4, radius=0)[0]] == [0, 1, 2]
        assert [ids.index(hit.id) for hit in index.search(query, 100, unique=True)[0]] == [0, 2, 4, 5, 7]
        assert [ids.index(hit.id) for hit in index.search(query, 3, unique=True, radius=2)[0]] == [0, 2, 4]
        distances, found = index.nearest(query, 5)
        assert distances.tolist() == [[0, 0, 0, 1, 2]] and found.tolist() == [ids[:5]]
        with pytest.raises(ValueError, match=re.escape("codes must be uint8 [q, 8]")):
            index.search(np.zeros((1, 7), np.uint8), 3)


def test_what_is_known_of_pictures(place):
    new = rows(9)
    with make(place()) as index:
        before = time.time()
        ids = index.add(new)
        one = index.record(ids[4])
        assert (one.path, one.size, one.mtime_ns, one.label, one.taken) == (new[4].path, 10, 20, "1", 4)
        assert one.digest == new[4].digest.hex() and before - 1 <= one.added <= time.time() + 1
        assert [r.id for r in index.records([ids[5], ids[2]])] == [ids[5], ids[2]]
        assert index.find(one.digest[:16]).id == ids[4]
        count, newest = index.newest_first(Filters(before=5), 1, 3)
        assert (count, [r.id for r in newest]) == (5, [ids[3], ids[2], ids[1]])
        for content in ("0" * 16, one.digest[:15], "%" * 16, 'x" or id > 0 or "a'):
            with pytest.raises(KeyError):
                index.find(content)
        assert np.array_equal(index.code_of(ids[7]), new[7].code)
        assert np.array_equal(index.same(new[3].digest)[0], new[3].code)
        assert index.known("/p/1") == {f"{i}.jpg": (ids[i], 10, 20) for i in (1, 4, 7)} and not index.known("/p")
        index.touch([(ids[4], 11, 21)])
        assert (index.record(ids[4]).size, index.record(ids[4]).mtime_ns) == (11, 21)
        assert index.record(ids[4]).digest == one.digest and len(index) == 9
        for lost in (index.record, index.thumbnail, index.code_of):
            with pytest.raises(KeyError):
                lost(ids[-1] + 1)
        assert index.info()["pictures"] == 9 and index.info()["folders"] == 3 and index.info()["model"] == card()


def test_broken_files_take_the_place_of_pictures_and_back(place):
    with make(place()) as index:
        index.add(rows(3))
        files = [Broken("/p/0/0.jpg", 1, 2, "cut"), Broken("/q/z.jpg", 3, 4, "empty")]
        index.note_broken(files)
        assert index.broken() == files and len(index) == 2 and "/p/0" not in index.folders()
        index.add([row("/p/0/0.jpg", np.ones(8, np.uint8))])
        assert index.broken() == files[1:] and len(index) == 3
        assert index.remove(["/q"]) == 0 and not index.broken()
    with open_index(place()) as index:
        assert not index.broken() and not index.faults()


ODD = [
    "/p/q\"uo'te\\ba/x\ny.jpg",
    "/p/ü%_{}/é.jpg",
    f"/p/{os.fsdecode(bytes([255, 254]))}/a.jpg",
    "s3://bucket/a b.jpg",
]


def test_names_may_be_of_any_bytes(place, monkeypatch):
    monkeypatch.setattr("search.milvus.ROWS", 1)  # so that every name once ends a call's rows
    with make(place()) as index:
        new = [row(path, np.full(8, i, np.uint8)) for i, path in enumerate([*ODD, "/p2/x.jpg", "/p/z.jpg"])]
        index.add(new)
        for path in ODD:
            folder, name = os.path.split(path)
            where = Filters(folder=folder, label=os.path.basename(folder))
            assert [hit.path for hit in index.search(new[0].code[None], 9, where=where)[0]] == [path]
            assert list(index.known(folder)) == [name]
        assert {hit.path for hit in index.search(new[0].code[None], 9, where=Filters(folder="/p"))[0]} == {
            *ODD[:3],
            "/p/z.jpg",
        }
        folders = {os.path.dirname(path) for path in [*ODD, "/p2/x.jpg", "/p/z.jpg"]}
        assert set(index.folders()) == folders and len(index.codes()[0]) == 6
    with open_index(place(), write=True) as index:
        assert set(index.folders()) == folders
        assert index.remove([ODD[2], "/p"]) == 4 and set(index.folders()) == {"s3://bucket", "/p2"}


def test_what_does_not_fit_is_refused(place):
    with make(place()) as index:
        index.add(rows(2))
        with pytest.raises(UserError, match="2 pictures were hashed by another model"):
            index.set_card(card(64, model="b" * 64))
        for wrong in ([row("/a", np.zeros(7, np.uint8))], [row("/a", np.zeros(8, np.uint8))] * 2):
            with pytest.raises(ValueError, match="a path given twice"):
                index.add(wrong)
        assert len(index) == 2
        index.remove(["/p"])
        index.set_card(card(20, model="b" * 64))
        index.add([row("/p/1.jpg", np.array([1, 2, 16]))])
    with open_index(place()) as index:
        assert index.bits == 20 and index.search(np.array([[1, 2, 16]], np.uint8), 3)[0][0].distance == 0


def test_a_second_writer_is_told_and_the_first_is_not_disturbed(place):
    with make(place()) as index:
        with pytest.raises(UserError, match="another process is adding to it or removing"):
            open_index(place(), write=True)
        index.add(rows(2))
    with open_index(place(), write=True) as index:
        assert len(index) == 2


WRITER = """
import sys; sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/search"]
from test_index import card, rows
from search.engines import open_index
index = open_index({where!r}, write=True)
index.set_card(card())
for number in range(1000):
    index.add(rows(50, number, first=50 * number))
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_whole_batches_and_no_lock(place):
    code = WRITER.format(root=str(ROOT), where=place())
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(4):
            acknowledged = writer.stdout.readline()
        writer.kill()
    with open_index(place(), write=True) as index:
        batches = len(index) // 50
        assert len(index) % 50 == 0 and batches > int(acknowledged) and not index.faults()
        index.add(rows(50, 7, first=50 * batches))
        index.add(rows(50, 7, first=50 * batches))  # takes its own place
        assert len(index) == 50 * batches + 50 and not index.faults()


def test_a_copy_that_is_repeated_follows_a_touch(place, tmp_path):
    with make(str(tmp_path / "from.index")) as source, open_index(place(), write=True) as to:
        ids = source.add(rows(5))
        assert engines.copy(source, to) == (5, 0)
        source.touch([(ids[1], 11, 21), (ids[3], 11, 22)])
        assert engines.copy(source, to) == (0, 5) and state(to) == state(source)


# The command line


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("export"))


@pytest.fixture
def tree(tmp_path, photo):
    for i in range(12):
        photo(tmp_path / "photos" / ("a", "b/c")[i % 2] / f"{i:02d}.png", seed=i % 10, size=(30 + i % 10, 30))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


def search(*words) -> str:
    code, said = run_here("search", *words)
    assert code == 0, said
    return said


def test_every_command_answers_alike(place, tree, export, tmp_path):
    add = ["add", "--index", place(), "--student", export, tree]
    assert "12 added; 12 pictures" in search(*add) and "12 unchanged, 1 could not be decoded" in search(*add)
    said = search("query", "--index", place(), tree / "a" / "00.png", tree / "b" / "c" / "01.png", "-k", 4, "--json")
    answers = json.loads(said.splitlines()[-1])
    assert [a["results"][0]["path"] for a in answers] == [str(tree / "a" / "00.png"), str(tree / "b" / "c" / "01.png")]
    assert [hit["distance"] for hit in answers[0]["results"][:2]] == [0, 0]  # 10.png is its copy
    assert answers[0]["searched"] == 12
    only = ["--unique", "--within", tree / "a", "--radius", 64]
    said = json.loads(search("query", "--index", place(), tree / "a" / "00.png", *only, "--json").splitlines()[-1])
    assert len(said[0]["results"]) == 5 and said[0]["searched"] == 6
    search("query", "--index", place(), tree / "a" / "00.png", "--montage", tmp_path / "m.png")
    facts = json.loads(search("info", "--index", place(), "--json").splitlines()[-1])
    assert (facts["pictures"], facts["folders"], len(facts["broken_files"])) == (12, 2, 1)
    assert "12 pictures in 2 folders" in search("info", "--index", place())
    assert "no fault found; 12 pictures" in search("check", "--index", place(), "--files")
    search("export-codes", "--index", place(), "--out", tmp_path / "codes.npz")
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as file:
        model = Exported(export)
        assert file["codes"].shape == (12, model.width) and sorted(file["paths"])[0] == str(tree / "a" / "00.png")
    assert "6 pictures forgotten; 6 pictures" in search("remove", "--index", place(), tree / "b")
    (tree / "a" / "00.png").unlink()
    assert "6 added, 5 unchanged" in search(*add, "--prune", "--yes") and "1 gone and forgotten" not in search(*add)


def test_the_page_answers_alike(place, tree, export):
    search("add", "--index", place(), "--student", export, tree)
    picture = tree / "a" / "00.png"
    with open_index(place()) as index, open_index(place(), write=True) as writer:
        client = TestClient(make_app(index, Exported(export)), "http://127.0.0.1:8000")
        form = {"data": {"k": 3, "folder": str(tree / "a")}, "files": {"file": ("x.png", picture.read_bytes())}}
        answer = client.post("/api/search", **form).json()
        assert [(hit["path"], hit["distance"]) for hit in answer["results"][:2]] == [
            (str(picture), 0),
            (str(tree / "a" / "10.png"), 0),
        ]
        assert answer["searched"] == 6
        found = answer["results"][0]["id"]
        assert client.get(f"/thumbnail/{found}").content.startswith(b"\xff\xd8")
        assert client.get(f"/original/{found}").content == picture.read_bytes()
        assert writer.remove([str(picture)]) == 1
        assert client.post("/api/search", **form).json()["results"][0]["path"] == str(tree / "a" / "10.png")
        assert (
            client.get(f"/original/{found}").content == picture.read_bytes()
        )  # of the copy: the address is the content's
        assert writer.remove([str(tree / "a" / "10.png")]) == 1
        assert client.get(f"/original/{found}").status_code == 404
        assert client.get("/api/info").json()["pictures"] == 10


def test_refusals_are_one_line(place, tree, export, tmp_path):
    other = write_export(tmp_path / "other", seed=1)
    narrow = write_export(tmp_path / "narrow", bits=16)
    search("add", "--index", place(), "--student", export, tree)
    for words, message in (
        (["query", "--index", place("none"), tree / "a" / "00.png"], "no such index; make one"),
        (["add", "--index", place(), "--student", other, tree], "were hashed by another model"),
        (["add", "--index", place(), "--student", narrow, tree], "were hashed by another model"),
        (["query", "--index", place(), "--student", other, tree / "a" / "00.png"], "ask with the export that hashed"),
        (["query", "--index", place(), "--approximate", "--", tree / "a" / "00.png"], "--approximate"),
        (["remove", "--index", place(), tree / "none"], "holds nothing at or below"),
        (["add", "--index", place(), "--codes", tree], "no codes there"),
        (["add", "--index", place(), "--codes", tree, tree], "what is to be added?"),
        (["add", "--index", place()], "what is to be added?"),
        (["copy", "--from", place("none"), "--to", place()], "no such index"),
    ):
        code, said = run_here("search", *words)
        assert message in str(code) and str(code).startswith("error: ") and "\n" not in str(code), (words, code, said)


@pytest.mark.slow
def test_an_index_is_copied_either_way(place, server, tree, export, tmp_path):
    there, back = server.address(f"there_{next(NUMBERS)}"), str(tmp_path / "back.index")
    search("add", "--index", place(), "--student", export, tree)
    assert "12 copied, 0 there before; 12 pictures" in search("copy", "--from", place(), "--to", there)
    assert "0 copied, 12 there before" in search("copy", "--from", place(), "--to", there)
    assert "12 copied" in search("copy", "--from", there, "--to", back)
    opened = [open_index(where) for where in (place(), there, back)]
    for other in opened[1:]:
        assert state(other) == state(opened[0]) and other.broken() == opened[0].broken()
        assert other.card == opened[0].card and other.student == opened[0].student
    assert opened[2].thumbnail(1).startswith(b"\xff\xd8")
    for index in opened:
        index.close()
    search("remove", "--index", place(), tree / "a" / "00.png")
    code, _ = run_here("search", "copy", "--from", place(), "--to", there)
    assert "has 12 pictures" in code and "not the same ones" in code


# Milvus alone


@pytest.fixture
def index(server):
    with make(server.address(f"alone_{next(NUMBERS)}")) as made:
        yield made


@pytest.mark.slow
def test_both_give_the_same_on_a_thousand_queries(index, tmp_path):
    new = rows(3000, values=3)
    with make(str(tmp_path / "i")) as file:
        places = [dict(zip(one.add(new), range(len(new)), strict=True)) for one in (file, index)]
        queries = np.random.RandomState(1).randint(0, 3, (1000, 8)).astype(np.uint8)
        for k, radius, unique in ((20, None, False), (300, 4, True)):
            found = [
                [
                    [(at[hit.id], hit.path, hit.distance) for hit in hits]
                    for hits in one.search(queries, k, radius, unique=unique)
                ]
                for one, at in zip((file, index), places, strict=True)
            ]
            assert found[0] == found[1]


@pytest.mark.slow
def test_more_ties_than_milvus_gives_are_cut_where_a_file_cuts_them(index, monkeypatch):
    monkeypatch.setattr("search.milvus.MOST", 64)
    codes = np.random.RandomState(0).randint(0, 2, (500, 8)).astype(np.uint8)
    codes[::2] = 0
    ids = np.array(index.add([row(f"/p/{i}", code) for i, code in enumerate(codes)]))
    query = np.array([[0] * 8, [1] * 8, [0, 1] * 4], np.uint8)
    for k in (1, 5, 40, 63):
        assert list(map(pairs, index.search(query, k))) == expected(query, ids, codes, k)
    with pytest.raises(UserError, match="at most 63 results"):
        index.search(query, 64)
    where = Filters(label="p")
    assert list(map(pairs, index.search(query, 50, where=where))) == expected(query, ids, codes, 50)


@pytest.mark.slow
def test_lists_make_it_approximate_and_all_of_them_exact(index):
    draw = np.random.RandomState(0)
    centres = draw.randint(0, 256, (40, 8))
    codes = (
        centres[draw.randint(0, 40, 4000)] ^ (1 << draw.randint(0, 8, (4000, 8))) * (draw.rand(4000, 8) < 0.4)
    ).astype(np.uint8)
    with pytest.raises(UserError, match="has no lists for --approximate yet"):
        open_index(index.path, nprobe=4)
    ids = np.array(index.add([row(f"/p/{i}", code) for i, code in enumerate(codes)]))
    exact = expected(codes[:50], ids, codes, 100)
    with open_index(index.path) as earlier:
        assert list(map(pairs, earlier.search(codes[:50], 100))) == exact
        index._ask("flush", index.name)  # what is not yet on its disk has no lists
        index.make_approximate()
        assert list(map(pairs, earlier.search(codes[:50], 100))) == exact
    index.make_approximate()
    index.set_card(card())  # as the next add does
    assert list(map(pairs, index.search(codes[:50], 100))) == exact
    with open_index(index.path, nprobe=4) as approximate:
        recall, k = approximate.recall()
        found = approximate.search(codes[:50], k)
        exact = expected(codes[:50], ids, codes, k)
        shares = [sum(hit.distance <= e[-1][1] for hit in hits) / k for hits, e in zip(found, exact, strict=True)]
        assert 0.3 < recall <= 1 and abs(np.mean(shares) - recall) < 0.2
    with open_index(index.path) as again:
        assert list(map(pairs, again.search(codes[:50], 10))) == expected(codes[:50], ids, codes, 10)
    index.remove(["/p"])
    with open_index(index.path, nprobe=4) as emptied, pytest.raises(UserError, match="is empty"):
        emptied.recall()


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", ["release_collection", "drop_index"])
def test_a_writer_that_was_killed_while_it_made_lists(server, killed_after, monkeypatch):
    where, codes = server.address(f"lists_{next(NUMBERS)}"), np.eye(8, dtype=np.uint8)
    with make(where) as index:
        ids = np.array(index.add([row(f"/p/{i}", code) for i, code in enumerate(codes)]))
        index._ask("release_collection", index.name)
        if killed_after == "drop_index":
            index._ask("drop_index", index.name, "code")
    with monkeypatch.context() as patch:
        patch.setattr("search.milvus_server.PATIENCE", 0.1)
        with pytest.raises(UserError, match="is not loaded; wait while `search add --approximate` is at work"):
            open_index(where)
    with open_index(where, write=True), open_index(where) as reader:
        assert list(map(pairs, reader.search(codes, 3))) == expected(codes, ids, codes, 3)


@pytest.mark.slow
def test_each_call_of_many_is_tried_again(index, monkeypatch):
    from pymilvus import MilvusException
    from pymilvus.client.grpc_handler import GrpcHandler

    ids, answer = index.add(rows(5)), GrpcHandler.query
    passing = itertools.cycle([None, MilvusException(503, "channel not available")])

    def query(*args, **kwargs):
        if (error := next(passing)) is not None:
            raise error
        return answer(*args, **kwargs)

    monkeypatch.setattr("search.milvus.ROWS", 2)
    monkeypatch.setattr(GrpcHandler, "query", query)
    assert index.codes()[0].tolist() == ids


@pytest.mark.slow
def test_a_server_that_is_killed_while_pictures_are_added_loses_and_doubles_nothing(server):
    where, acknowledged, failed = server.address(f"killed_{next(NUMBERS)}"), [], []

    def write() -> None:
        try:
            with make(where) as index:
                for number in range(12):
                    acknowledged.append(index.add(rows(50, number, first=50 * number)))
        except UserError as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    while len(acknowledged) < 3:
        assert writer.is_alive()
        time.sleep(0.01)
    server.kill()
    server.run("start")
    writer.join()
    before = {i for ids in acknowledged for i in ids}
    with make(where) as index:
        assert before <= set(index.codes()[0].tolist()) and not index.faults()
        for number in range(len(acknowledged), 12):
            assert failed
            index.add(rows(50, number, first=50 * number))
        ids, codes = index.codes()
        assert len(index) == len(ids) == 600 and len({r.path for r in index.records(ids.tolist())}) == 600
        assert np.array_equal(codes, np.concatenate([[r.code for r in rows(50, n)] for n in range(12)]))
        assert list(map(pairs, index.search(codes[:5], 20))) == expected(codes[:5], ids, codes, 20)


@pytest.mark.slow
def test_collections_of_others_are_left_alone(server):
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(f"http://127.0.0.1:{server.port}")
    for name, alien, writes in (("alien", "alien", (False, True)), ("held", "held_writer", (True,))):
        schema = MilvusClient.create_schema(description="somebody's")
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=64)
        client.create_collection(alien, schema=schema)
        for write in writes:
            with pytest.raises(UserError, match=f"{alien} is a collection of another project or version; choose"):
                open_index(server.address(name), write)
        client.drop_collection(alien)
    assert not [name for name in client.list_collections() if name.startswith(("alien", "held"))]
    client.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("milvus://127.0.0.1:9/x", "no Milvus server answers there"),
        ("milvus+tls://127.0.0.1:9/x", "no Milvus server answers there"),
        ("milvus://127.0.0.1:x/y", "no index's address; write milvus://HOST:PORT/NAME"),
        ("milvus://127.0.0.1:65536/y", "no index's address"),
        ("milvus://127.0.0.1", "no index's address"),
        ("milvus:///x", "no index's address"),
        ("milvus://h/a-b", "no index's address"),
        ("milvus://h/a/b", "no index's address"),
        ("milvus://h/x?y=1", "no index's address"),
        ("milvus://h/x?consistency=none", "?consistency=Strong|Session|Bounded|Eventually"),
        ("milvus://user:secret@h/x", "credentials don't belong in an address; set MILVUS_TOKEN"),
    ],
)
def test_addresses_that_lead_nowhere(address, message, monkeypatch):
    monkeypatch.setattr("search.milvus_server.CONNECT", 1)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        open_index(address)
    assert "secret" not in str(caught.value)


def test_a_file_is_never_approximate(tmp_path):
    with pytest.raises(UserError, match="always searched exactly"):
        open_index(str(tmp_path / "i"), nprobe=4)


@pytest.fixture
def pretended(request):
    """A server that answers as another one would: its version, and what it says when a collection is made."""
    import grpc
    from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

    version, code, refusal = request.param

    class Pretended(milvus_pb2_grpc.MilvusServiceServicer):
        def Connect(self, *_):  # noqa: N802  (names of the protocol)
            return milvus_pb2.ConnectResponse(server_info=common_pb2.ServerInfo(build_tags=version))

        def GetVersion(self, *_):  # noqa: N802
            return milvus_pb2.GetVersionResponse(version=version)

        def ShowCollections(self, *_):  # noqa: N802
            return milvus_pb2.ShowCollectionsResponse()

        def DescribeCollection(self, *_):  # noqa: N802
            return milvus_pb2.DescribeCollectionResponse(status=common_pb2.Status(code=100, reason="not found"))

        def CreateCollection(self, *_):  # noqa: N802
            return common_pb2.Status(error_code=1, code=code, reason=refusal)

    server = grpc.server(futures.ThreadPoolExecutor(2))
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(Pretended(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"milvus://127.0.0.1:{port}/disk_auth"  # words that errors are judged by
    server.stop(None)


@pytest.mark.parametrize(
    ("pretended", "message"),
    [
        (("v2.1.4", 0, ""), "Milvus v2.1.4; version 2.3 or newer is needed"),
        (("v2.5.0", 65535, "deny: disk quota exceeded"), "no space is left there"),
        (("v2.5.0", 65535, "auth check failure, please check username"), "credentials are needed or wrong"),
        (("v2.5.0", 65535, "create duplicate collection: disk_auth_writer"), "Milvus refuses (create duplicate"),
        (("v2.5.0", 1100, "cannot parse: label == 'timeout'"), "Milvus refuses (cannot parse"),
    ],
    indirect=["pretended"],
)
def test_servers_that_can_not_serve(pretended, message):
    with pytest.raises(UserError, match=re.escape(message)):
        open_index(pretended, write=True)


def test_a_port_that_another_server_has_is_refused(tmp_path):
    server = Server(tmp_path / "data")
    with socket.create_server(("127.0.0.1", server.port)):
        done = server.script("start")
    assert done.returncode == 1 and f"port {server.port} is another server's" in done.stderr
    assert not server.folder.exists()


def test_what_is_no_milvus_is_told(tmp_path):
    words = command_line("-m", "http.server", "0", "--bind", "127.0.0.1")
    with subprocess.Popen(
        ["python" if w == "-m" else w for w in words[:1]] + words[1:],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as other:
        port = re.search(r"port (\d+)", other.stdout.readline()).group(1)
        with pytest.raises(UserError, match="no Milvus server answers there"):
            open_index(f"milvus://127.0.0.1:{port}/x")
        other.send_signal(signal.SIGKILL)


def test_the_second_engine_is_asked_for_only_where_it_is_named(tmp_path):
    code = "import sys; from search import engines; sys.exit('pymilvus' in sys.modules or 'torch' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode
    assert engines.is_milvus("milvus+tls://h/x") and not engines.is_milvus("milvus.index")
