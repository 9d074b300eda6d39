"""The search as its users meet it: folders that change, files of all kinds, kills, refusals; answers that are exact."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run_here
from exports import write_export
from PIL import Image

from data.decode import pixels_of
from models.exported import Exported
from retrieval.codes import hamming_topk
from search import adding
from search.adding import add, file_faults
from search.index import Filters, Index, Row
from utils.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))

from search_engines import kills

SECOND = 10**9


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="session")
def model(export):
    return Exported(export)


@pytest.fixture
def tree(tmp_path, photo):
    """24 pictures in three folders, of several kinds, with a copy, broken files, a note and what is hidden."""
    root = tmp_path / "photos"
    for i in range(24):
        photo(root / ("", "cats", "trips/rome")[i % 3] / f"{i:02d}.{('png', 'jpg')[i % 2]}", seed=i, size=(40 + i, 30))
    photo(root / "cats" / "alpha.png", "RGBA", seed=50)
    photo(root / "cats" / "grey.png", "L", seed=51)
    (root / "copy.png").write_bytes((root / "00.png").read_bytes())
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "cats" / "cut.jpg").write_bytes((root / "03.jpg").read_bytes()[:500])
    (root / "empty.png").write_bytes(b"")
    (root / "note.txt").write_text("x")
    photo(root / ".thumbnails" / "x.png", seed=90)
    return root


PICTURES, BROKEN = 27, 3


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path / "my.index", write=True) as opened:
        yield opened


@pytest.fixture
def looks(monkeypatch):
    """Paths of the files that were decoded."""
    seen = []
    decode = adding.pixels_of
    monkeypatch.setattr(adding, "pixels_of", lambda file, name, **more: seen.append(name) or decode(file, name, **more))
    return seen


def paths(index: Index) -> list[str]:
    return [record.path for record in index.records(index.codes()[0].tolist())]


def age(path: Path, seconds: int) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - seconds * SECOND))


# Adding


def test_every_picture_is_added_in_the_order_of_names(tree, index, model):
    report = add(index, model, [tree], threads=3)
    assert (report.added, report.unchanged, len(report.broken), report.unreadable) == (PICTURES, 0, BROKEN, [])
    names = [os.path.relpath(path, tree) for path in paths(index)]
    assert names[:3] == ["00.png", "03.jpg", "06.png"] and names[-1] == "trips/rome/23.jpg"
    assert names == sorted(names, key=os.path.split)
    for record, code in zip(index.records(index.codes()[0].tolist()), index.codes()[1], strict=True):
        assert np.array_equal(code, model.code(pixels_of(Path(record.path), upright=True)))
        stat = os.stat(record.path)
        assert (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert {record.label for record in index.records([1, PICTURES])} == {"photos", "rome"}
    assert not index.faults() and not file_faults(index, every=True)
    assert index.card == model.card and index.student == str(model.folder)


def test_ids_do_not_depend_on_threads(tree, tmp_path, model):
    found = []
    for threads in (1, 4):
        with Index(tmp_path / f"{threads}", write=True) as index:
            add(index, model, [tree], threads=threads)
            found.append((paths(index), index.codes()[1].tolist()))
    assert found[0] == found[1]


def test_unchanged_files_are_not_opened(tree, index, model, looks, monkeypatch):
    add(index, model, [tree])
    assert len(looks) == PICTURES + BROKEN
    monkeypatch.setattr(adding, "look", None)
    report = add(index, model, [tree, tree / "cats", tree / "00.png"])
    assert (report.added, report.unchanged, report.still_broken) == (0, PICTURES, BROKEN)
    assert len(index) == PICTURES and len(index.broken()) == BROKEN


def test_what_changed_is_looked_at_and_nothing_else(tree, index, model, looks, photo):
    add(index, model, [tree])
    looks.clear()
    age(tree / "03.jpg", 5)  # touched
    photo(tree / "06.png", seed=77)  # another picture
    photo(tree / "broken.jpg", seed=78)  # mended
    (tree / "cats" / "01.jpg").rename(tree / "moved.jpg")
    (tree / "12.png").write_bytes(b"no longer one")
    (tree / "18.png").unlink()
    kept = index.record(2).id, index.record(2).mtime_ns
    report = add(index, model, [tree])
    assert sorted(map(os.path.basename, looks)) == ["06.png", "12.png", "broken.jpg"]  # what was moved is known
    assert (report.added, report.touched, len(report.broken), report.gone) == (3, 1, 1, 2)
    assert index.record(2).path == str(tree / "03.jpg") and index.record(2).mtime_ns == kept[1] - 5 * SECOND
    new = index.records([PICTURES + 1, PICTURES + 2, PICTURES + 3])
    assert [os.path.basename(record.path) for record in new] == ["06.png", "broken.jpg", "moved.jpg"]
    assert len(index) == PICTURES + 1 and str(tree / "12.png") not in paths(index)  # 18 and cats/01 stay until --prune
    assert {os.path.basename(b.path) for b in index.broken()} == {"12.png", "cut.jpg", "empty.png"}
    report = add(index, model, [tree], prune=True)
    assert (report.added, report.forgotten, report.gone) == (0, 2, 0) and len(index) == PICTURES - 1
    assert not index.faults() and not file_faults(index, every=True)


def test_prune_forgets_broken_files_and_folders_that_are_gone(tree, index, model):
    add(index, model, [tree])
    for file in (tree / "trips" / "rome").iterdir():
        file.unlink()
    (tree / "trips" / "rome").rmdir()
    (tree / "empty.png").unlink()
    with pytest.raises(UserError, match=r"--prune would forget 8 of 27 pictures: 8 in .*rome\. .*add --yes"):
        add(index, model, [tree], prune=True)
    assert len(index) == PICTURES
    report = add(index, model, [tree], prune=True, yes=True)
    assert report.forgotten == 8 and len(index) == PICTURES - 8 and len(index.broken()) == BROKEN - 1
    assert index.folders() == [str(tree), str(tree / "cats")]


def test_prune_keeps_what_lies_elsewhere(tree, index, model, photo):
    add(index, model, [tree])
    for name in ("cats", "trips"):
        (tree / name).rename(tree.parent / name)
    report = add(index, model, [tree / "copy.png"], prune=True)
    assert report.forgotten == 0 and len(index) == PICTURES
    photo(tree / "trips" / "new.png", seed=5)
    report = add(index, model, [tree / "trips"], prune=True, yes=True)
    assert (report.added, report.forgotten) == (1, 8) and len(index) == PICTURES + 1 - 8


def test_prune_does_not_take_an_unmounted_folder_for_an_empty_one(tree, index, model, photo):
    add(index, model, [tree])
    tree.rename(tree.parent / "elsewhere")
    with pytest.raises(UserError, match=r"no such folder \(not mounted\?\); .*search remove"):
        add(index, model, [tree], prune=True)
    tree.mkdir()
    other = photo(tree.parent / "more" / "a.png").parent
    with pytest.raises(UserError, match=r"--prune would forget 27 of 27 pictures.*Is a disk away"):
        add(index, model, [other, tree], prune=True)
    assert len(index) == PICTURES
    assert add(index, model, [tree]).gone == PICTURES  # only told
    assert index.remove([str(tree)]) == PICTURES and not index.broken()
    assert add(index, model, [tree], prune=True).forgotten == 0


def test_prune_keeps_what_cannot_be_listed(tree, index, model, monkeypatch):
    add(index, model, [tree])
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("trips"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(adding.os, "scandir", refusing)
    report = add(index, model, [tree], prune=True)
    assert report.forgotten == 0 and len(index) == PICTURES
    assert report.unreadable == [f"{tree}/trips: can't be read (Permission denied)"]


def test_prune_keeps_pictures_of_shards(tree, index, model):
    add(index, model, [tree])
    (tree / "shard.tar").write_bytes(b"")
    for name in ("a.jpg", "b/c.jpg"):  # as add --codes has them
        index.add([Row(f"{tree}/shard.tar/{name}", 1, 0, name.encode().ljust(32), np.zeros(8, np.uint8), b"", 0.0)])
    assert add(index, model, [tree], prune=True).forgotten == 0
    (tree / "shard.tar").unlink()
    assert add(index, model, [tree], prune=True).forgotten == 2


def test_prune_keeps_what_links_lead_to_that_is_not_mounted(tree, index, model, photo):
    disk = tree.parent / "disk"
    photo(disk / "album" / "a.png", seed=61)
    photo(disk / "one.png", seed=62)
    (disk / "broken.png").write_bytes(b"no picture")
    for name in ("album", "one.png", "broken.png"):
        (tree / name).symlink_to(disk / name)
    assert add(index, model, [tree]).added == PICTURES + 2
    disk.rename(tree.parent / "elsewhere")
    report = add(index, model, [tree], prune=True)
    assert report.forgotten == 0 and len(index) == PICTURES + 2 and len(index.broken()) == BROKEN + 1
    assert [line.partition(": can't be read")[0] for line in report.unreadable] == [
        f"{tree}/{name}" for name in ("album", "broken.png", "one.png")
    ]


def test_links_are_followed_once_and_never_in_circles(tree, index, model, photo):
    photo(tree.parent / "outside" / "o.png", seed=60)
    (tree / "zz_outside").symlink_to(tree.parent / "outside")
    (tree / "zz_up").symlink_to(tree.parent)
    (tree / "zz_self").symlink_to(tree)
    (tree / "zz_loop").symlink_to("zz_loop")
    (tree / "zz_nothing.jpg").symlink_to("nowhere")
    (tree / "zz_file.png").symlink_to("00.png")
    os.mkfifo(tree / "zz_pipe.jpg")
    report = add(index, model, [tree])
    assert report.added == PICTURES + 2 and str(tree / "zz_outside" / "o.png") in paths(index)
    assert [line.partition(": ")[0] for line in report.unreadable] == [
        f"{tree}/{name}" for name in ("zz_loop", "zz_nothing.jpg", "zz_pipe.jpg")
    ]


def test_a_file_that_cannot_be_read_now_is_tried_again(tree, index, model, monkeypatch):
    opened = open

    def refusing(file, *how, **more):
        if str(file).endswith("00.png"):
            raise PermissionError(13, "Permission denied", file)
        return opened(file, *how, **more)

    monkeypatch.setattr(adding, "open", refusing, raising=False)
    report = add(index, model, [tree])
    assert report.added == PICTURES - 1 and report.unreadable == [f"{tree}/00.png: can't be read (Permission denied)"]
    monkeypatch.undo()
    assert add(index, model, [tree]).added == 1


def test_a_file_that_vanishes_meanwhile_is_told(tree, index, model, monkeypatch):
    compare = adding.compare
    monkeypatch.setattr(adding, "compare", lambda *a: (compare(*a), (tree / "03.jpg").unlink())[0])
    report = add(index, model, [tree])
    assert report.added == PICTURES - 1 and "03.jpg: can't be read" in report.unreadable[0]


def test_names_of_any_bytes(tmp_path, index, model, photo):
    root = os.fsencode(tmp_path / "r")
    os.mkdir(root)
    names = [b"\xff\xfe.png", b"new\nline.png", b"<img src=x>.png", "ä\u202e.png".encode()]
    for i, name in enumerate(names):
        photo(tmp_path / "plain.png", seed=i)
        os.rename(tmp_path / "plain.png", os.path.join(root, name))
    assert add(index, model, [Path(os.fsdecode(root))]).added == 4
    assert sorted(map(os.fsencode, paths(index))) == sorted(os.path.join(root, name) for name in names)
    assert add(index, model, [Path(os.fsdecode(root))]).unchanged == 4
    code, said = run_here("search", "query", "--index", index.path, os.fsdecode(os.path.join(root, names[0])), "--json")
    assert code == 0
    assert os.fsencode(json.loads(said)[0]["results"][0]["path"]) == os.path.join(root, names[0])
    for out in ("codes.npz", "codes.parquet"):
        assert run_here("search", "export-codes", "--index", index.path, "--out", tmp_path / out)[0] == 0
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as file:
        assert file["paths"].tolist() == paths(index)


def test_thumbnails_and_dates(tmp_path, index, model):
    root = tmp_path / "r"
    root.mkdir()
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (300, 800, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    image.save(root / "a.jpg", exif=exif)
    exif.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"  # what cameras without a clock write
    exif[0x0132] = "2002:02:03 04:05:06"
    image.save(root / "b.jpg", exif=exif)
    image.save(root / "c.png")
    (root / "d.jpg").write_bytes((root / "c.png").read_bytes())
    os.utime(root / "c.png", (1e9, 1e9))
    add(index, model, [root])
    taken = [record.taken for record in index.records([1, 2, 3])]
    assert taken == [datetime(2001, 2, 3, 4, 5, 6).timestamp(), datetime(2002, 2, 3, 4, 5, 6).timestamp(), 1e9]
    sizes = []
    for i in (1, 3):
        (tmp_path / "t.jpg").write_bytes(index.thumbnail(i))
        with Image.open(tmp_path / "t.jpg") as thumbnail:
            sizes.append((thumbnail.format, thumbnail.size))
    assert sizes == [("JPEG", (100, 267)), ("JPEG", (267, 100))]  # upright
    where = Filters(after=datetime(2001, 1, 1).timestamp(), before=datetime(2002, 1, 1).timestamp())
    assert index.count(where) == 2  # a.jpg, and c.png of 2001


def test_another_model_is_refused_before_anything_is_read(tree, index, model, tmp_path, looks):
    add(index, model, [tree])
    looks.clear()
    other = Exported(write_export(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"hashed by another model .*a new index"):
        add(index, other, [tree])
    assert not looks and index.card == model.card


def test_a_picture_that_the_model_refuses_is_named(tree, index, model):
    class Refusing:
        card, folder = model.card, model.folder

        def code(self, pixels):
            if pixels.shape[1] == 43:
                raise UserError("too odd")
            return model.code(pixels)

    report = add(index, Refusing(), [tree])
    assert report.added == PICTURES - 1 and f"{tree}/03.jpg: too odd" in report.broken


def test_an_error_of_ours_stops_at_once_and_keeps_what_was_committed(tree, index, model, monkeypatch):
    monkeypatch.setattr(adding, "BATCH", 4)
    calls = []

    class Failing:
        card, folder = model.card, model.folder

        def code(self, pixels):
            calls.append(1)
            if len(calls) == 12:
                raise ZeroDivisionError
            return model.code(pixels)

    with pytest.raises(ZeroDivisionError):
        add(index, Failing(), [tree], threads=1)
    kept = len(index)
    assert 4 <= kept < 12 and not index.faults()
    report = add(index, model, [tree])
    assert (report.unchanged, report.added, len(index)) == (kept, PICTURES - kept, PICTURES)


# The command line


@pytest.fixture
def made(tree, tmp_path, export):
    """An index made by the command line: its file."""
    file = tmp_path / "made.index"
    code, said = run_here("search", "add", "--index", file, "--student", export, tree)
    assert code == 0, said
    assert f"{BROKEN} files could not be decoded: " in said and "cut.jpg: " in said
    assert f"{PICTURES} added; {PICTURES} pictures" in said
    return file


def asked(file, *words) -> list[dict]:
    code, said = run_here("search", "query", "--index", file, *words, "--json")
    assert code == 0, said
    return json.loads(said)


def test_a_query_is_exact_and_says_so_in_json(made, tree, model):
    queries = [tree / "cats" / "01.jpg", tree / "06.png"]
    answers = asked(made, *queries, "-k", 10)
    with Index(made) as index:
        ids, codes = index.codes()
        known = [
            {"path": r.path, "id": r.digest[:16], "bytes": r.size, "taken": r.taken}
            for r in index.records(ids.tolist())
        ]
    wanted = hamming_topk(np.stack([model.code(pixels_of(path, upright=True)) for path in queries]), codes, 10)
    for answer, path, distances, rows in zip(answers, queries, *wanted, strict=True):
        told = {"query", "hash_ms", "search_ms", "searched", "results"}
        assert answer.keys() == told | {"index", "generation", "likely_same"}
        assert answer["results"][0]["id"] in answer["likely_same"]
        assert answer["query"] == str(path) and answer["searched"] == PICTURES
        assert answer["hash_ms"] > 0 and answer["search_ms"] > 0
        assert answer["results"] == [
            {"rank": rank, "distance": int(distance), **known[row]}
            for rank, (distance, row) in enumerate(zip(distances, rows, strict=True), 1)
        ]
        assert answer["results"][0]["distance"] == 0
    assert len(asked(made, queries[0], "-k", 1000)[0]["results"]) == PICTURES


def test_filters_of_the_command_line(made, tree, monkeypatch):
    query = tree / "00.png"
    everything = asked(made, query, "-k", 100)[0]["results"]

    def found(*words):
        answer = asked(made, query, "-k", 100, *words)[0]
        return answer["searched"], [(hit["path"], hit["distance"]) for hit in answer["results"]]

    def only(keep):
        return [(hit["path"], hit["distance"]) for hit in everything if keep(hit)]

    cats = only(lambda hit: "/cats/" in hit["path"])
    assert found("--within", tree / "cats") == found("--label", "cats") == (10, cats)
    monkeypatch.chdir(tree)
    assert found("--within", "trips/")[1] == only(lambda hit: "/trips/" in hit["path"]) == found("--label", "rome")[1]
    assert found("--radius", 20)[1] == only(lambda hit: hit["distance"] <= 20)
    assert found("--unique")[1] == only(lambda hit: not hit["path"].endswith("/copy.png"))
    assert found("--after", "2001-01-01", "--before", "2999-12-31T10:00")[0] == PICTURES
    for words in (["--after", "2999-01-01"], ["--within", "nowhere"], ["--label", "Cats"]):
        code, _ = run_here("search", "query", "--index", made, query, *words)
        assert "holds no picture that --within" in code


def test_what_a_person_reads(made, tree, tmp_path):
    code, said = run_here(
        *("search", "query", "--index", made, tree / "00.png", tree / "cats" / "grey.png", "-k", 12),
        *("--montage", tmp_path / "seen" / "m.png"),
    )
    assert code == 0 and said.count(" bits  ") == 24 and f"12 of {PICTURES} pictures" in said
    with Image.open(tmp_path / "seen" / "m.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000 and len(sheet.getcolors(1 << 24)) > 1000


def test_a_student_asks_its_teachers_index_and_no_other(tree, tmp_path):
    teacher = write_export(tmp_path / "teacher", seed=1, role="teacher")
    head = json.loads((teacher / "card.json").read_text())["head"]
    student = write_export(tmp_path / "student", seed=2, teacher_head=head)
    stranger = write_export(tmp_path / "stranger", seed=3, teacher_head="f" * 64)
    file, query = tmp_path / "ashp.index", tree / "00.png"
    assert run_here("search", "add", "--index", file, "--student", teacher, tree)[0] == 0
    wanted = hamming_topk(Exported(student).code(pixels_of(query, upright=True))[None], Index(file).codes()[1], 5)
    hits = asked(file, query, "-k", 5, "--student", student)[0]["results"]
    assert [hit["distance"] for hit in hits] == wanted[0][0].tolist()
    with Index(file) as index:
        assert [hit["id"] for hit in hits] == [r.digest[:16] for r in index.records((wanted[1][0] + 1).tolist())]
    assert asked(file, query, "-k", 1)[0]["results"][0]["distance"] == 0  # the teacher itself
    code, _ = run_here("search", "query", "--index", file, query, "--student", stranger)
    assert "their bits mean different things" in code
    code, _ = run_here("search", "add", "--index", file, "--student", student, tree)
    assert "hashed by another model" in code
    own = tmp_path / "own.index"
    assert run_here("search", "add", "--index", own, "--student", student, tree)[0] == 0
    code, _ = run_here("search", "query", "--index", own, query, "--student", teacher)
    assert "their bits mean different things" in code  # the way back is not meant


def test_the_model_that_hashed_an_index_must_still_be_there(made, tree, tmp_path, export, photo):
    mine = write_export(tmp_path / "mine", seed=4)
    file = tmp_path / "x.index"
    assert run_here("search", "add", "--index", file, "--student", mine, tree)[0] == 0
    write_export(mine, seed=5)
    code, _ = run_here("search", "query", "--index", file, tree / "00.png")
    assert "holds another model by now" in code and "--student" in code
    for name in ("model.onnx", "card.json"):
        (mine / name).unlink()
    code, _ = run_here("search", "query", "--index", file, tree / "00.png")
    assert "no export there" in code and "by --student" in code
    again = write_export(tmp_path / "moved", seed=4)
    assert asked(file, tree / "00.png", "--student", again)[0]["results"][0]["distance"] == 0


def test_info_check_export_and_remove(made, tree, tmp_path):
    code, said = run_here("search", "info", "--index", made)
    assert code == 0 and f"{PICTURES} pictures in 3 folders" in said and f"{tree}/broken.jpg: not a readable" in said
    facts = json.loads(run_here("search", "info", "--index", made, "--json")[1])
    assert facts["pictures"] == PICTURES and facts["bits"] == 64 and len(facts["broken_files"]) == BROKEN
    code, said = run_here("search", "check", "--index", made, "--files")
    assert code == 0 and "no fault found" in said

    for name in ("codes.npz", "codes.parquet"):
        assert run_here("search", "export-codes", "--index", made, "--out", tmp_path / name)[0] == 0
    table = pq.read_table(tmp_path / "codes.parquet")
    with Index(made) as index, np.load(tmp_path / "codes.npz", allow_pickle=False) as file:
        ids, codes = index.codes()
        assert file["ids"].tolist() == table["id"].to_pylist() == ids.tolist() and file["bits"] == 64
        assert np.array_equal(file["codes"], codes)
        assert table["code"].to_pylist() == [code.tobytes() for code in codes]
        assert file["paths"].tolist() == table["path"].to_pylist() == paths(index)

    code, said = run_here("search", "remove", "--index", made, tree / "cats", tree / "00.png")
    assert code == 0 and f"11 pictures and 1 file that could not be decoded forgotten; {PICTURES - 11} pictures" in said
    code, said = run_here("search", "remove", "--index", made, tree / "broken.jpg")
    assert code == 0 and ": 0 pictures and 1 file that could not be decoded forgotten" in said
    code, _ = run_here("search", "remove", "--index", made, tree / "cats")
    assert "holds nothing at or below" in code


def test_check_finds_files_that_are_gone_changed_or_not_what_they_were(made, tree):
    (tree / "00.png").unlink()
    age(tree / "03.jpg", 9)
    file = tree / "06.png"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, said = run_here("search", "check", "--index", made)
    assert "3 kinds of faults" in code
    for line in ("1 files are gone", "1 files have another size or time", "1 files have other bytes"):
        assert line in said
    assert str(file) in said


def test_pictures_from_shards_and_urls_are_found_by_name_and_not_looked_at(made, tree):
    with Index(made, write=True) as index:
        row = Row("", 9, 0, b"d" * 32, index.codes()[1][0], b"", 0.0)
        there = ["s3://bucket/x/1.jpg", "s3://bucket/y.jpg", f"{tree}/a.tar/2.jpg", f"{tree}/t.parquet/0"]
        index.add([replace(row, path=path) for path in there])
    code, said = run_here("search", "check", "--index", made, "--files")
    assert code == 0 and "4 pictures are not looked at" in said and "no fault found" in said
    code, said = run_here("search", "query", "--index", made, tree / "00.png", "--within", "s3://bucket/x", "--json")
    assert code == 0 and [hit["path"] for hit in json.loads(said)[0]["results"]] == there[:1]
    for names in (there[:1], ["s3://bucket/"], [f"{tree}/a.tar"]):
        code, said = run_here("search", "remove", "--index", made, *names)
        assert code == 0 and "1 picture forgotten" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["query", "--index", "nothing", "x.jpg"], "nothing: no such index"),
        (["info", "--index", "nothing"], "nothing: no such index"),
        (["remove", "--index", "nothing", "x"], "nothing: no such index"),
        (["info", "--index", "."], ".: a folder"),
        (["info"], "required: --index"),
        ([], "required: COMMAND"),
        (["find", "--index", "x"], "invalid choice: 'find'"),
        (["query", "--index", "MADE", "nothing.jpg"], "nothing.jpg: no such image file"),
        (["query", "--index", "MADE", "TREE/note.txt"], "note.txt: not a readable image"),
        (["query", "--index", "MADE", "TREE/00.png", "TREE/broken.jpg"], "broken.jpg: not a readable image"),
        (["query", "--index", "MADE", "TREE"], "not a readable image"),
        (["query", "--index", "MADE", "TREE/00.png", "-k", "0"], "-k: '0' is not a whole number of at least 1"),
        (["query", "--index", "MADE", "TREE/00.png", "--radius", "-1"], "--radius: '-1' is not"),
        (["query", "--index", "MADE", "TREE/00.png", "--after", "May"], "--after: 'May' is no date"),
        (["query", "--index", "MADE", "TREE/00.png", "--montage", "m.jpg"], "'m.jpg' does not end in .png"),
        (["query", "--index", "MADE", "TREE/00.png", "--student", "TREE"], "no export there"),
        (["export-codes", "--index", "MADE", "--out", "x.csv"], "'x.csv' does not end in .npz or .parquet"),
        (["add", "--index", "new", "--student", "TREE", "TREE"], "no export there"),
        (["add", "--index", "new", "--student", "EXPORT", "TREE", "nowhere"], "nowhere: no such folder"),
        (["add", "--index", "new", "--student", "EXPORT", "TREE/note.txt"], "neither a folder nor a picture"),
        (["add", "--index", "TREE/00.png", "--student", "EXPORT", "TREE"], "not a SQLite file"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(made, tree, export, tmp_path, words, said):
    names = {"MADE": made, "TREE": tree, "EXPORT": export}
    before = {p for p in tmp_path.rglob("*") if not p.name.endswith(".lock")}
    code, out = run_here("search", *(names.get(word, word.replace("TREE/", f"{tree}/")) for word in words))
    assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code and said in code, (code, out)
    assert {p for p in tmp_path.rglob("*") if not p.name.endswith(".lock")} == before and not out


def test_an_empty_index_says_what_to_do(tmp_path, export):
    (tmp_path / "none").mkdir()
    code, said = run_here("search", "add", "--index", tmp_path / "i", "--student", export, tmp_path / "none")
    assert code == 0 and "0 added; 0 pictures" in said
    code, _ = run_here("search", "query", "--index", tmp_path / "i", "x.jpg")
    assert "no picture" in code
    assert run_here("search", "check", "--index", tmp_path / "i")[0] == 0


def in_a_process(before: str, after: str, *words) -> subprocess.CompletedProcess:
    """python -m search in a process of its own, with a line of code before and after it."""
    code = (
        f"import runpy, sys; {before}\nsys.argv = sys.argv[1:]\n"
        f"runpy.run_path(sys.argv[0], run_name='__main__')\n{after}"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, [ROOT / "search", *words])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_read_only_folder_can_be_searched_and_not_written(made, tree, export, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "i").write_bytes(made.read_bytes())
    (folder / "i").chmod(0o444)
    folder.chmod(0o555)
    # Root's right to pass every permission goes.
    no_rights = (
        "import ctypes, os; os.geteuid() or ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522), bytes(24))"
    )
    done = in_a_process(no_rights, "", "query", "--index", folder / "i", tree / "00.png", "--json")
    assert done.returncode == 0 and len(json.loads(done.stdout)[0]["results"]) == 20, done.stderr
    done = in_a_process(no_rights, "", "add", "--index", folder / "i", "--student", export, tree)
    folder.chmod(0o755)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert [p.name for p in folder.iterdir()] == ["i"]


def test_a_search_imports_nothing_slow(made, tree):
    slow = "{'torch', 'numba', 'pandas', 'matplotlib', 'scipy', 'pyarrow'} & set(sys.modules)"
    done = in_a_process("", f"assert not {slow}, {slow}", "query", "--index", made, tree / "00.png")
    assert done.returncode == 0, done.stderr


# Several processes, and kills


def test_a_second_add_is_told_and_readers_go_on(tree, tmp_path, export, made):
    with Index(made, write=True) as writer:
        code, _ = run_here("search", "add", "--index", made, "--student", export, tree)
        assert "another process is adding to it" in code
        code, _ = run_here("search", "remove", "--index", made, tree)
        assert "another process is adding to it" in code
        with writer.transaction():
            writer.remove([1, 2, 3])
            assert asked(made, tree / "00.png")[0]["searched"] == PICTURES
        assert asked(made, tree / "00.png")[0]["searched"] == PICTURES - 3


def test_readers_during_an_add_see_only_whole_batches(tmp_path, model, photo, monkeypatch):
    monkeypatch.setattr(adding, "BATCH", 8)
    monkeypatch.setattr(adding, "SECONDS", 1e9)
    root = tmp_path / "many"
    for i in range(64):
        photo(root / f"{i:03d}.png", seed=i, size=(8, 8))
    file = tmp_path / "i"
    with Index(file, write=True) as writer, Index(file) as reader:
        work = threading.Thread(target=add, args=(writer, model, [root]), kwargs={"threads": 2})
        work.start()
        seen = set()
        while work.is_alive():
            ids, _ = reader.codes()
            seen.add(len(ids))
            assert ids.tolist() == list(range(1, len(ids) + 1))
            assert [record.path for record in reader.records(ids.tolist())] == sorted(map(str, root.iterdir()))[
                : len(ids)
            ]
        work.join()
        assert all(count % 8 == 0 for count in seen) and len(reader) == 64


@pytest.mark.slow
def test_a_killed_add_loses_nothing_and_doubles_nothing(tmp_path):
    tally = kills(tmp_path / "kills", count=4, seed=1, pictures=80)
    assert tally["kills"] == 4 and tally["lost"] == tally["different"] == 0, tally
