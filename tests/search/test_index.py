"""The index on disk: what is added is found again, exactly, by every reader, and nothing damaged is believed."""

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.codes import hamming_topk
from search import scan
from search.index import FORMAT, Broken, Filters, Index, Row
from search.server import Searcher
from utils.errors import UserError


def card(bits=64, model="a" * 64, **more) -> dict:
    return {"bits": bits, "role": "student", "backbone": "x", "method": "brcd", "model_sha256": model, **more}


def make(path, bits=64, **more) -> Index:
    index = Index(path, write=True)
    index.set_card(card(bits, **more), "/exports/mine")
    return index


def row(path: str, code, taken: float = 0.0, content: str | None = None) -> Row:
    digest = hashlib.sha256((path if content is None else content).encode("utf-8", "surrogateescape")).digest()
    return Row(path, 10, 20, digest, np.asarray(code, np.uint8), b"\xff\xd8" + os.fsencode(path), taken)


def rows(count: int, seed: int = 0, width: int = 8, values: int = 256, first: int = 0) -> list[Row]:
    codes = np.random.RandomState(seed).randint(0, values, (count, width)).astype(np.uint8)
    return [row(f"/p/{i % 3}/{first + i}.jpg", code, taken=first + i) for i, code in enumerate(codes)]


def pairs(hits) -> list[tuple[int, int]]:
    return [(hit.id, hit.distance) for hit in hits]


def expected(query, ids, codes, k) -> list[list[tuple[int, int]]]:
    """By the function that everything else in the project searches with."""
    if not len(ids):
        return [[] for _ in query]
    distances, at = hamming_topk(query, codes, min(k, len(ids)))
    return [list(zip(ids[i].tolist(), d.tolist(), strict=True)) for d, i in zip(distances, at, strict=True)]


# The scan


@pytest.mark.parametrize("how", ["one by one", "together", "sorted"])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_scan_is_hamming_topk(how, data):
    width = data.draw(st.sampled_from([1, 2, 3, 4, 8, 12, 16]))
    n, q = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, n))
    draw = np.random.RandomState(data.draw(st.integers(0, 99)))
    high = data.draw(st.sampled_from([2, 256]))  # few different codes: many ties
    database, queries = (draw.randint(0, high, (m, width)).astype(np.uint8) for m in (n, q))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "MANY", 1 if how == "together" else 100)
        patch.setattr(scan, "WORTH_COMPILING", 0)
        patch.setattr(scan, "COUNTERS", 1 if how == "sorted" else 1 << 20)
        found = scan.nearest(queries, database, k)
    for mine, theirs in zip(found, hamming_topk(queries, database, k), strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


# Equal to hamming_topk, whatever was added and removed before


STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 40)),
    st.tuples(st.just("remove"), st.integers(0, 10**6)),
    st.tuples(st.just("replace"), st.integers(0, 10**6)),
)


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=8), seed=st.integers(0, 99), k=st.integers(1, 50))
def test_it_is_exact_after_any_adding_and_removing(tmp_path_factory, steps, seed, k):
    folder = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("search.scan", "search.index"):
            patch.setattr(f"{module}.BLOCK", 16)
        with make(folder / "i") as writer, Index(folder / "i") as reader:
            known: dict[int, Row] = {}
            highest = 0
            query = np.random.RandomState(seed).randint(0, 4, (3, 8)).astype(np.uint8)
            for number, (what, count) in enumerate(steps):
                if what == "add":
                    new = rows(count, seed + number, values=4, first=100 * number)
                elif what == "replace" and known:
                    old = known.pop(sorted(known)[count % len(known)])
                    new = [row(old.path, old.code ^ 1, old.taken)]
                else:
                    new = []
                    if known:
                        gone = sorted(known)[count % len(known) :: 3]
                        assert writer.remove(gone) == len(gone)
                        known = {i: r for i, r in known.items() if i not in gone}
                ids = writer.add(new)
                assert not new or ids[0] > highest, "an id is used twice"
                highest = max([highest, *ids])
                known |= dict(zip(ids, new, strict=True))
                alive = np.array(sorted(known), np.int64)
                codes = np.array([known[i].code for i in alive], np.uint8).reshape(-1, 8)
                seen, seen_codes = reader.codes()
                assert np.array_equal(seen, alive) and np.array_equal(seen_codes, codes)
                assert len(reader) == len(known) == len(writer)
                hits = reader.search(query, k)
                assert list(map(pairs, hits)) == expected(query, alive, codes, k)
                assert all(hit.path == known[hit.id].path for hit in hits[0])
                for where in (Filters(folder="/p/1"), Filters(label="2", after=150), Filters(before=120)):
                    inside = [i for i in alive if lets_through(where, known[i])]
                    assert reader.count(where) == len(inside)
                    at = np.searchsorted(alive, inside)
                    hits = reader.search(query, k, where=where)
                    assert list(map(pairs, hits)) == expected(query, alive[at], codes[at], k)
            assert not reader.faults()


def lets_through(where: Filters, picture: Row) -> bool:
    folder = os.path.dirname(picture.path)
    return (
        where.folder in (None, folder)
        and where.label in (None, os.path.basename(folder))
        and (where.after is None or picture.taken >= where.after)
        and (where.before is None or picture.taken < where.before)
    )


def test_radius_k_and_copies(tmp_path):
    codes = np.zeros((6, 8), np.uint8)
    codes[[3, 4, 5], 0] = [1, 3, 7]  # 0, 0, 0, 1, 2 and 3 bits away
    names = ["a", "b", "a", "c", "d", "d"]
    with make(tmp_path / "i") as index:
        index.add(
            [row(f"/p/{i}.jpg", code, content=name) for i, (code, name) in enumerate(zip(codes, names, strict=True))]
        )
        query = np.zeros((1, 8), np.uint8)

        def found(k, **more):
            return pairs(index.search(query, k, **more)[0])

        assert found(9) == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 3)]
        assert found(9, radius=2) == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)] and found(2, radius=0) == [(1, 0), (2, 0)]
        assert found(9, unique=True) == [(1, 0), (2, 0), (4, 1), (5, 2)]
        assert found(3, unique=True) == [(1, 0), (2, 0), (4, 1)] and found(1, unique=True) == [(1, 0)]
        assert found(9, unique=True, radius=1) == [(1, 0), (2, 0), (4, 1)]
        with pytest.raises(ValueError, match=r"uint8 \[q, 8\]"):
            index.search(np.zeros((1, 4), np.uint8), 1)


def test_a_thousand_copies_hide_nothing_from_a_unique_search(tmp_path):
    with make(tmp_path / "i") as index:
        far = np.full(8, 255, np.uint8)
        index.add([row(f"/p/{i}", np.zeros(8), content="same") for i in range(1000)] + [row("/p/far", far)])
        assert pairs(index.search(np.zeros((1, 8), np.uint8), 2, unique=True)[0]) == [(1, 0), (1001, 64)]


def test_an_empty_index_and_no_query(tmp_path):
    with make(tmp_path / "i") as index:
        assert index.search(np.zeros((2, 8), np.uint8), 5) == [[], []] and not len(index)
        index.add(rows(3))
        assert index.search(np.zeros((0, 8), np.uint8), 5) == []
        assert index.search(np.zeros((1, 8), np.uint8), 5, where=Filters(folder="/q")) == [[]]


def test_codes_of_ten_bits(tmp_path):
    with make(tmp_path / "i", bits=10) as index:
        assert (index.bits, index.width) == (10, 2)
        index.add([row("/a", [255, 192]), row("/b", [0, 0])])
        assert pairs(index.search(np.array([[255, 128]], np.uint8), 2)[0]) == [(1, 1), (2, 9)] and not index.faults()
        index.add([row("/c", [0, 1])])  # a bit beyond the tenth
        assert "codes of more than 10 bits" in index.faults()[0]
        with pytest.raises(ValueError, match="codes of 3 bytes"):
            index.add([row("/d", [0, 1, 2])])
        with pytest.raises(ValueError, match="path given twice"):
            index.add([row("/d", [0, 1]), row("/d", [0, 1])])


# What is known of pictures


NAMES = [b"plain.jpg", b"\xff\xfe.jpg", "ä\u202e<b>'\".jpg".encode(), b"new\nline.jpg", b"%3f?a=b#c.jpg", b"-rf.jpg"]


def test_names_of_any_bytes_survive(tmp_path):
    paths = [os.fsdecode(b"/photos \xc3/" + name) for name in NAMES]
    with make(tmp_path / "i") as index:
        ids = index.add([row(path, np.full(8, i)) for i, path in enumerate(paths)])
        records = index.records(ids)
        assert [record.path for record in records] == paths
        assert {record.label for record in records} == {os.fsdecode(b"photos \xc3")}
        assert index.folders() == [os.fsdecode(b"/photos \xc3")]
        assert [hit.path for hit in index.search(np.full((1, 8), 2, np.uint8), 1)[0]] == [paths[2]]
        assert index.count(Filters(folder=index.folders()[0])) == len(NAMES)
        assert [index.thumbnail(i)[2:] for i in ids] == list(map(os.fsencode, paths))
        assert index.remove([paths[1]]) == 1 and len(index) == len(NAMES) - 1
    with pytest.raises(sqlite3.ProgrammingError):  # closed
        index.folders()


def test_what_is_known_of_a_picture(tmp_path):
    with make(tmp_path / "i") as index:
        index.add([row("/p/beach/1.jpg", np.arange(8), taken=5.5), row("/2.jpg", np.zeros(8))])
        record = index.record(1)
        assert (record.path, record.size, record.mtime_ns, record.label, record.taken) == (
            "/p/beach/1.jpg",
            10,
            20,
            "beach",
            5.5,
        )
        assert record.digest == hashlib.sha256(b"/p/beach/1.jpg").hexdigest() and record.added > 1.7e9
        assert index.record(2).label is None and index.record(2).path == "/2.jpg"
        assert index.code_of(1).tolist() == list(range(8))
        for ask in (index.record, index.thumbnail, index.code_of):
            for nothing in (0, 3, -1, 10**12):
                with pytest.raises(KeyError):
                    ask(nothing)


def test_folders_are_not_taken_for_others_that_begin_alike(tmp_path):
    with make(tmp_path / "i") as index:
        paths = ["/a/1", "/a/b/2", "/ab/3", "/a.b/4", "/5"]
        index.add([row(path, np.zeros(8)) for path in paths])
        assert [index.count(Filters(folder=f)) for f in ("/a", "/a/", "/a/b", "/", "/ab", "/b", "a")] == [
            2,
            2,
            1,
            5,
            1,
            0,
            0,
        ]
        assert index.remove(["/a"]) == 2 and index.folders() == ["/", "/a.b", "/ab"]
        assert index.remove(["/a", "/nothing", 77]) == 0


def test_a_changed_picture_has_a_new_id_and_a_touched_one_its_old(tmp_path):
    with make(tmp_path / "i") as index:
        index.add(rows(3))
        index.touch([(2, 11, 21)])
        assert (index.record(2).size, index.record(2).mtime_ns) == (11, 21)
        assert index.add([row("/p/1/1.jpg", np.zeros(8), content="new")]) == [4]
        assert index.known("/p/1") == {"1.jpg": (4, 10, 20)} and len(index) == 3
        code, thumbnail = index.same(hashlib.sha256(b"new").digest())
        assert code.tolist() == [0] * 8 and thumbnail == index.thumbnail(4) and index.same(b"x" * 32) is None


def test_broken_files_are_remembered(tmp_path):
    with make(tmp_path / "i") as index:
        index.add(rows(3))
        file = Broken("/p/0/0.jpg", 1, 2, "cut")
        index.note_broken([file])
        assert index.broken() == [file] and len(index) == 2  # what it was before is no longer there
        index.add([row("/p/0/0.jpg", np.zeros(8))])
        assert index.broken() == []


def test_an_id_is_never_used_twice(tmp_path):
    with make(tmp_path / "i") as index:
        assert index.add(rows(3)) == [1, 2, 3] and index.remove([2, 3]) == 2
    with Index(tmp_path / "i", write=True) as index:
        assert index.add(rows(2, first=10)) == [4, 5]
        index.remove([1, 4, 5])
        assert index.add(rows(1)) == [6]


# Several at once


def test_readers_see_what_is_written_at_once_and_nothing_earlier(tmp_path):
    with make(tmp_path / "i") as writer, Index(tmp_path / "i") as reader:
        query = np.zeros((1, 8), np.uint8)
        with writer.transaction():
            writer.add(rows(5))
            assert len(reader) == 0 and reader.search(query, 9) == [[]]
        assert len(reader.search(query, 9)[0]) == 5
        with pytest.raises(ZeroDivisionError), writer.transaction():
            writer.add(rows(5, first=10))
            assert len(writer.search(query, 99)[0]) == 10
            raise ZeroDivisionError
        assert len(reader.search(query, 99)[0]) == len(writer.search(query, 99)[0]) == 5
        assert writer.add(rows(2, first=20)) == [6, 7]
        assert [h.id for h in reader.search(query, 99)[0]] == [h.id for h in writer.search(query, 99)[0]]
        with writer.transaction():  # its own writer sees all of a transaction, step by step
            for count in (8, 9, 10):
                writer.add(rows(1, first=100 * count))
                assert len(writer.search(query, 99)[0]) == count and len(reader.search(query, 99)[0]) == 7
        assert len(writer.search(query, 99)[0]) == len(reader.search(query, 99)[0]) == 10


def test_what_is_read_at_one_moment_is_not_mixed_with_what_others_write(tmp_path):
    with make(tmp_path / "i") as writer, Index(tmp_path / "i") as reader:
        writer.add(rows(3))
        with reader.at_one_moment():
            ids, _ = reader.codes()
            writer.add(rows(3, seed=1))  # all three are replaced
            assert [r.id for r in reader.records(ids.tolist())] == [1, 2, 3] and not reader.faults()
        assert reader.codes()[0].tolist() == [4, 5, 6]


def test_a_filter_and_the_codes_are_of_one_moment(tmp_path, monkeypatch):
    with make(tmp_path / "i") as writer, Index(tmp_path / "i") as reader:
        writer.add(rows(3))
        now, where = reader._now, Filters(folder="/p")

        def overtaken():
            snapshot = now()
            writer.add(rows(1, seed=len(writer)))  # replaced between reading the codes and asking which are let through
            return snapshot

        monkeypatch.setattr(reader, "_now", overtaken)
        assert len(reader.nearest(np.zeros((1, 8), np.uint8), 9, where)[1][0]) == 3
        assert reader.count(where) == 3


def test_no_fault_is_found_while_somebody_adds(tmp_path, monkeypatch):
    with make(tmp_path / "i") as writer, Index(tmp_path / "i") as reader:
        writer.add(rows(3))
        block = reader._block
        monkeypatch.setattr(reader, "_block", lambda *given: (writer.add(rows(1)), block(*given))[1])
        assert not reader.faults()


def test_a_newer_snapshot_shares_memory_and_changes_no_older_one(tmp_path):
    with make(tmp_path / "i") as writer, Index(tmp_path / "i") as reader:
        writer.add(rows(100))
        old = reader._now()
        before = old.codes.copy()
        writer.add(rows(50, seed=1, first=100))
        new = reader._now()
        assert new is not old and np.shares_memory(old.codes, new.codes) and (len(old), len(new)) == (100, 150)
        reader.nearest(before[:1], 1)  # as a search does it, too
        assert reader._now().version == reader._fact("version")  # else its last blocks would be read again
        writer.remove([1])
        assert len(reader._now()) == 149 and np.array_equal(old.codes, before)
        writer.add(rows(1, first=900))
        reader.nearest(before[:1], 1)
        assert reader._now().version == reader._fact("version")
        assert reader._now() is reader._now()


def test_a_reader_that_may_not_write_beside_it_sees_what_others_do(tmp_path, monkeypatch):
    with make(tmp_path / "i") as writer:
        writer.add(rows(2))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Index(tmp_path / "i") as reader:
        assert len(reader.codes()[0]) == 2 and [p.name for p in tmp_path.iterdir() if p.name != "i.lock"] == ["i"]
        with Index(tmp_path / "i", write=True) as writer:
            writer.add(rows(2, first=10))
            assert reader.codes()[0].tolist() == [1, 2, 3, 4]
            writer.remove([1])
            assert reader.codes()[0].tolist() == [2, 3, 4]
        assert reader.codes()[0].tolist() == [2, 3, 4] and reader.record(4).path == "/p/1/11.jpg"


def test_a_second_writer_is_told(tmp_path):
    with make(tmp_path / "i"):
        with pytest.raises(UserError, match="another process is adding to it"):
            Index(tmp_path / "i", write=True)
        Index(tmp_path / "i").close()
    Index(tmp_path / "i", write=True).close()


def test_searches_of_many_threads_beside_a_writer(tmp_path):
    """Every answer is of one state: as many hits as asked for, in order, all with paths."""
    with make(tmp_path / "i") as writer, Index(tmp_path / "i") as reader:
        ids = writer.add(rows(200))
        stop, wrong, searches = threading.Event(), [], [0]

        def ask(seed: int) -> None:
            query = np.random.RandomState(seed).randint(0, 256, (1, 8)).astype(np.uint8)
            while not stop.is_set():
                try:
                    (hits,) = reader.search(query, 50, where=Filters(folder="/p") if seed % 2 else Filters())
                    keys = [(hit.distance, hit.id) for hit in hits]
                    if len(hits) != 50 or keys != sorted(keys) or len(set(keys)) != 50:
                        wrong.append(keys)
                except Exception as error:
                    wrong.append(error)
                searches[0] += 1

        threads = [threading.Thread(target=ask, args=[seed]) for seed in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(30):
            writer.remove(ids[:40])
            ids = ids[40:] + writer.add(rows(40, seed=turn, first=1000 * turn + 1000))
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong and searches[0] > 4 and len(reader) == 200


def test_a_search_writes_nothing(tmp_path):
    with make(tmp_path / "i") as index:
        index.add(rows(20))

    def state():
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}

    before = state()
    with Index(tmp_path / "i") as index:
        index.search(np.zeros((1, 8), np.uint8), 5, where=Filters(after=3), unique=True)
        moved = lambda: index.set_card(card(), "/elsewhere")  # noqa: E731
        for write in (lambda: index.add(rows(1, first=50)), lambda: index.remove([1]), moved):
            with pytest.raises(UserError, match="can't be written"):
                write()
    assert state() == before


# One model


def test_another_model_is_refused(tmp_path):
    with make(tmp_path / "i") as index:
        assert index.card["bits"] == 64 and index.student == "/exports/mine"
        index.set_card(card(32, model="b" * 64), "/exports/other")  # nothing is there that was hashed by the first
        index.add(rows(2, width=4))
        index.set_card(card(32, model="b" * 64), "/exports/moved")
        index.set_card(card(32, model="b" * 64))  # of codes that say no more
        assert index.student == "/exports/moved"
        with pytest.raises(UserError, match=r"2 pictures were hashed by another model .*bbbb.*aaaa.*a new index"):
            index.set_card(card())
        index.remove(["/"])
        index.set_card(card())
        index.add(rows(3))
        assert index.student is None
        assert index.search(np.zeros((1, 8), np.uint8), 9)[0][0].distance >= 0 and not index.faults()


def test_a_reader_follows_to_codes_of_another_width(tmp_path):
    with make(tmp_path / "i") as writer, Index(tmp_path / "i") as reader:
        writer.add(rows(3))
        assert reader.codes()[1].shape == (3, 8)
        writer.remove(["/"])
        writer.set_card(card(16, model="b" * 64))
        writer.add(rows(2, width=2))
        assert reader.codes()[1].shape == (2, 2) and reader.codes()[0].tolist() == [4, 5]


# Refusals


def test_what_is_no_index_is_one_line(tmp_path):
    def refused(match: str, content: bytes | None = None, write=(False, True)):
        if content is not None:
            (tmp_path / "i").write_bytes(content)
        for mode in write:
            with pytest.raises(UserError, match=match) as caught:
                Index(tmp_path / "i", write=mode)
            assert "\n" not in str(caught.value) and str(tmp_path / "i") in str(caught.value)
        assert content is None or (tmp_path / "i").read_bytes() == content

    refused("no such index; make one", write=[False])
    assert not list(tmp_path.iterdir())
    refused("not a SQLite file", b"JFIF" * 1000)
    refused("no index of pictures", b"", write=[False])
    (tmp_path / "i").unlink()
    con = sqlite3.connect(tmp_path / "i")
    con.execute("CREATE TABLE t (x)")
    con.commit()
    con.close()
    refused("a SQLite file, but no index of pictures")
    (tmp_path / "i").unlink()
    make(tmp_path / "i").close()
    con = sqlite3.connect(tmp_path / "i")
    con.execute(f"PRAGMA user_version = {FORMAT + 1}")
    con.close()
    refused(f"made by a newer version of this program .format {FORMAT + 1}")
    with pytest.raises(UserError, match="a folder"):
        Index(tmp_path)


def test_an_index_that_was_not_finished_being_made_is_made(tmp_path):
    (tmp_path / "i").write_bytes(b"")
    with make(tmp_path / "i") as index:
        assert index.add(rows(2)) == [1, 2]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_file_is_one_line(tmp_path, share):
    with make(tmp_path / "i") as index:
        index.add(rows(2000))
    content = (tmp_path / "i").read_bytes()
    (tmp_path / "i").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged") as caught, Index(tmp_path / "i") as index:
        index.search(np.zeros((1, 8), np.uint8), 5)
        raise UserError(f"damaged: {index.faults()[0]}")  # what was asked for may lie in what is left
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage, said",
    [
        ("UPDATE blocks SET codes = zeroblob(length(codes))", "codes of ids from 0"),
        ("UPDATE blocks SET places = substr(places, 3)", "codes of ids from 0"),
        ("DELETE FROM pictures WHERE id = 2", "not of the same ids"),
        ("DELETE FROM blocks", "3 pictures, 0 codes"),
        ("DELETE FROM thumbnails WHERE id = 1", "1 pictures have no thumbnail"),
        ("UPDATE thumbnails SET jpeg = x'00' WHERE id < 3", "2 thumbnails are no JPEG"),
        ("INSERT INTO thumbnails VALUES (9, x'')", "1 thumbnails are of no picture"),
        ("UPDATE pictures SET digest = x'00'", "3 pictures have no content hash"),
        ("DELETE FROM folders WHERE id = 1", "1 pictures lie in no folder"),
        ("DELETE FROM facts WHERE name = 'card'", "codes of ids from 0"),
    ],
)
def test_what_does_not_fit_together_is_found(tmp_path, damage, said):
    with make(tmp_path / "i") as index:
        index.add(rows(3))
        assert index.faults() == []
    con = sqlite3.connect(tmp_path / "i")
    con.execute(damage)
    con.commit()
    con.close()
    with Index(tmp_path / "i") as index:
        assert any(said in fault for fault in index.faults()), index.faults()
        # Codes that are not what was written, or pictures that are not there, are not searched in silence.
        refused = damage.startswith(
            ("UPDATE blocks", "DELETE FROM blocks", "DELETE FROM pictures", "DELETE FROM folders", "DELETE FROM facts")
        )
        with pytest.raises(UserError, match="damaged") if refused else contextlib.nullcontext():
            index.search(np.zeros((1, 8), np.uint8), 3)


def test_pictures_of_a_model_that_is_not_known_are_not_taken_for_another_ones(tmp_path):
    with make(tmp_path / "i") as index:
        index.add(rows(3))
        with index.transaction() as con:
            con.execute("DELETE FROM facts WHERE name = 'card'")
        with pytest.raises(UserError, match=r"3 pictures were hashed by another model .unknown; this one is student x"):
            index.set_card(card())
        assert "add pictures" in Searcher(index, SimpleNamespace(card=card())).problem()


def damaged(content: bytes, draw: np.random.RandomState) -> bytes:
    """Bits flipped, bytes zeroed, the end cut, or a page in the place of another."""
    changed, at = bytearray(content), draw.randint(len(content))
    match draw.randint(4):
        case 0:
            for place in draw.randint(draw.choice([100, len(content)]), size=draw.choice([1, 8])):
                changed[place] ^= 1 << draw.randint(8)
        case 1:
            changed[at : at + 16] = bytes(len(changed[at : at + 16]))
        case 2:
            del changed[at:]
        case _:
            page, other = 4096 * draw.randint(len(content) // 4096, size=2)
            changed[page : page + 4096] = content[other : other + 4096]
    return bytes(changed)


def test_a_damaged_file_is_refused_or_answers_rightly(tmp_path):
    with make(tmp_path / "good") as index:
        index.add(rows(300))
        index.note_broken([Broken("/x", 1, 2, "cut")])
    content, query = (tmp_path / "good").read_bytes(), np.arange(8, dtype=np.uint8)[None]
    with Index(tmp_path / "good") as index:
        wanted = pairs(index.search(query, 20)[0])
    refused = 0
    for seed in range(150):
        (tmp_path / "bad").write_bytes(damaged(content, np.random.RandomState(seed)))
        for ask in (
            lambda index: pairs(index.search(query, 20)[0]) == wanted,
            lambda index: index.search(query, 5, where=Filters(folder="/p/1", after=3.0)) and index.records([1, 2]),
            lambda index: [index.info(), index.broken(), index.known("/p/1"), index.folders(), index.thumbnail(5)],
            lambda index: isinstance(index.faults(), list),
        ):
            try:
                with Index(tmp_path / "bad") as index:
                    assert ask(index), seed
            except (UserError, KeyError) as error:
                refused += 1
                assert "\n" not in str(error)
        for file in tmp_path.glob("bad*"):
            file.unlink()
    assert 100 < refused < 500


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    with make(tmp_path / "i") as index:
        index.add(rows(10))
        pages = index._con.execute("PRAGMA page_count").fetchone()[0]
        index._con.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite then says what it says of a full disk
        with pytest.raises(UserError, match="no space is left on the disk") as caught:
            index.add(rows(5000, first=100))
        assert "\n" not in str(caught.value)
        assert len(index) == 10 and not index.faults()
        index._con.execute("PRAGMA max_page_count = 100000")
        assert index.add(rows(5000, first=100))[0] == 11 and not index.faults()


def test_info_is_plain(tmp_path):
    with make(tmp_path / "i") as index:
        index.add(rows(4))
        index.note_broken([Broken("/x", 1, 2, "cut")])
        facts = json.loads(json.dumps(index.info()))
        assert (facts["pictures"], facts["folders"], facts["broken"], facts["bits"]) == (4, 3, 1, 64)
        assert facts["model"] == index.card and facts["bytes"] > 0 and facts["index"] == str(tmp_path / "i")
