"""Pictures of every kind of source become the same bits as python -m search add gives; what is killed goes on."""

import contextlib
import errno
import hashlib
import io
import os
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from conftest import ROOT, command_line, run_here, until
from exports import write_export
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from test_shards import tar_of

from data.decode import PIXELS, pixels_of
from models.exported import Exported
from search import encode, encoding
from search.encoding import Encoder, Output, broken_name, part_name
from search.index import Index
from search.pictures import Part, parts_of, pictures
from utils.errors import UserError

BITS = 64


@pytest.fixture
def student(tmp_path):
    return write_export(tmp_path / "student", BITS)


def jpeg(seed: int) -> bytes:
    draw, buffer = np.random.RandomState(seed), io.BytesIO()
    Image.fromarray(draw.randint(0, 256, (20 + seed % 7, 30, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def folder_of(root: Path, n: int, first: int = 0) -> list[Path]:
    """n pictures, half of them in a folder below, in the order of a listing."""
    (root / "below").mkdir(parents=True)
    files = [root / ("below" if i % 2 else "") / f"{i:03d}.jpg" for i in range(first, first + n)]
    for i, file in enumerate(files, first):
        file.write_bytes(jpeg(i))
    return [f for f in files if f.parent == root] + [f for f in files if f.parent != root]


def names(source, size: int = 100, column: str | None = None) -> list[str]:
    return [name for part in parts_of(str(source), size, column) for name, _ in pictures(part)]


def contents(source, column: str | None = None) -> list[bytes]:
    found = [one for part in parts_of(str(source), 2, column) for one in pictures(part)]
    return [Path(name).read_bytes() if content is None else content for name, content in found]


# Sources


def test_a_folder_is_taken_in_parts_of_a_size_less_what_is_hidden(tmp_path):
    files = folder_of(tmp_path / "photos", 7)
    (tmp_path / "photos" / ".hidden.jpg").write_bytes(b"")
    parts = list(parts_of(str(tmp_path / "photos"), 3))
    assert [len(p.paths) for p in parts] == [3, 3, 1]
    assert [name for p in parts for name in p.paths] == list(map(str, files))
    assert names(f"file://{tmp_path}/photos") == list(map(str, files))
    assert names(tmp_path / "photos" / "*.jpg") == [str(f) for f in files if f.parent.name == "photos"]


def test_lists_name_files_beside_them_or_by_address(tmp_path):
    folder_of(tmp_path / "photos", 3)
    lines = ["photos/000.jpg 0 1 0", "photos/002.jpg", "s3://bucket/a b.jpg", "/somewhere/x.jpg 1", ""]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    beside = [str(tmp_path / "photos" / "000.jpg"), str(tmp_path / "photos" / "002.jpg")]
    assert names(tmp_path / "list.txt") == [*beside, "s3://bucket/a b.jpg", "/somewhere/x.jpg"]
    (tmp_path / "list.csv").write_text("label,path\n1,photos/000.jpg\n0,photos/002.jpg\n")
    assert names(tmp_path / "list.csv") == beside
    pq.write_table(pa.table({"url": ["http://h/1.jpg", "photos/000.jpg"]}), tmp_path / "list.parquet")
    assert names(tmp_path / "list.parquet") == ["http://h/1.jpg", beside[0]]


def test_lists_name_files_as_search_py_does(tmp_path):
    files = list(map(str, folder_of(tmp_path / "photos", 4)))
    lines = ["./photos/000.jpg", "photos//002.jpg", f"{tmp_path}/./photos/below/001.jpg"]
    lines += [f"file://{tmp_path}/photos/below/../below/003.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert names(tmp_path / "list.txt") == files
    pq.write_table(pa.table({"image": [jpeg(i) for i in range(4)], "path": lines}), tmp_path / "held.parquet")
    assert names(tmp_path / "held.parquet") == files


def test_tables_hold_bytes_in_row_groups(tmp_path):
    held = [jpeg(i) for i in range(7)]
    pq.write_table(pa.table({"image": held, "label": list(range(7))}), tmp_path / "plain.parquet", row_group_size=2)
    parts = list(parts_of(str(tmp_path / "plain.parquet"), 3))
    assert [(p.first, p.last) for p in parts] == [(0, 1), (2, 3)]
    assert contents(tmp_path / "plain.parquet") == held
    assert names(tmp_path / "plain.parquet", 3) == [f"{tmp_path}/plain.parquet/{i}" for i in range(7)]
    struct = [{"bytes": content, "path": "same.jpg"} for content in held]
    pq.write_table(pa.table({"image": struct, "path": [f"{i}.jpg" for i in range(7)]}), tmp_path / "named.parquet")
    assert contents(tmp_path / "named.parquet") == held
    assert names(tmp_path / "named.parquet") == [f"{tmp_path}/{i}.jpg" for i in range(7)]
    pq.write_table(pa.table({"image": [struct[0], None, {"bytes": None}]}), tmp_path / "empty.parquet")
    assert [isinstance(content, UserError) for content in contents(tmp_path / "empty.parquet")] == [False, True, True]
    pq.write_table(pa.table({"a": held, "b": held[::-1]}), tmp_path / "two.parquet")
    assert contents(tmp_path / "two.parquet", "b") == held[::-1]


def test_a_shard_is_one_part_and_its_other_members_are_passed_over(tmp_path):
    shard = tar_of(tmp_path / "a.tar", {"x/1.jpg": jpeg(1), "x/1.cls": b"3", "x/._1.jpg": b"?", "x/2.PNG": b"bad"})
    assert contents(shard) == [jpeg(1), b"bad"]
    assert names(tmp_path) == [f"{shard}/x/1.jpg", f"{shard}/x/2.PNG"]  # the shards of a folder


def test_a_shard_of_a_folder_and_its_links(tmp_path):
    folder_of(tmp_path / "photos", 3)
    (tmp_path / "photos" / "hidden" / ".git").mkdir(parents=True)
    (tmp_path / "photos" / "hidden" / ".git" / "x.jpg").write_bytes(b"?")
    os.link(tmp_path / "photos" / "002.jpg", tmp_path / "photos" / "zz.jpg")
    (tmp_path / "photos" / "soft.jpg").symlink_to("000.jpg")
    (tmp_path / "photos" / "notes.txt").symlink_to("none")
    shard = tmp_path / "a.tar"
    subprocess.run(["tar", "--sort=name", "-cf", shard, "-C", tmp_path / "photos", "."], check=True)
    found = {name.removeprefix(f"{shard}/"): content for name, content in pictures(Part("shard", str(shard)))}
    links = {name: str(content) for name, content in found.items() if isinstance(content, UserError)}
    assert list(links) == ["soft.jpg", "zz.jpg"] and all("a link, or no file" in line for line in links.values())
    assert {n: c for n, c in found.items() if n not in links} == {
        name: (tmp_path / "photos" / name).read_bytes() for name in ("000.jpg", "002.jpg", "below/001.jpg")
    }


@pytest.fixture
def web(tmp_path):
    """Address of a web server of tmp_path."""
    app = Starlette(routes=[Mount("/", StaticFiles(directory=tmp_path))])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.run)
        while not server.started:
            assert not running.done()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True


def test_sources_may_lie_on_a_web_server(tmp_path, web):
    tar_of(tmp_path / "a.tar", {"x/1.jpg": jpeg(1), "x/2.jpg": jpeg(2)})
    (tmp_path / "3.jpg").write_bytes(jpeg(3))
    (tmp_path / "list.txt").write_text("3.jpg\nnone.jpg\n")
    assert contents(f"{web}/a.tar") == [jpeg(1), jpeg(2)]
    (found, pixels), (lost, none) = (encoding.decoded((name, None)) for name in names(f"{web}/list.txt"))
    assert found["path"] == f"{web}/3.jpg" and np.array_equal(pixels, pixels_of(tmp_path / "3.jpg", upright=True))
    assert lost == {"path": f"{web}/none.jpg", "reason": "no such file"} and none is None
    with pytest.raises(UserError, match="no such file or folder"):
        names(f"{web}/none.tar")


@pytest.mark.parametrize("cut", [1, 300, 700, 1024 + 100, 5000])
def test_a_shard_that_is_cut_is_told_and_what_is_before_the_cut_is_kept(tmp_path, cut):
    shard = tar_of(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(3)})
    with tarfile.open(shard) as tar:
        end = [m.offset_data + -(-m.size // 512) * 512 for m in tar][-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: end + 1024 - cut])
    found = list(pictures(Part("shard", str(shard))))
    assert isinstance(found[-1][1], UserError) and str(shard) in str(found[-1][1])
    assert [content for _, content in found[:-1]] == [jpeg(i) for i in range(3)][: len(found) - 1]
    assert len(found) - 1 >= (3 if cut < 1024 else 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file or folder"),
        (lambda p: p.mkdir(), "holds no pictures"),
        (lambda p: p.write_text("hello"), "no folder, list"),
        (lambda p: (folder_of(p, 2), tar_of(p / "a.tar", {})), "holds .tar files and pictures"),
    ],
)
def test_sources_that_are_not_clear_are_refused(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        names(tmp_path / "x")


def test_tables_and_protocols_that_are_not_clear_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "two.parquet")
    with pytest.raises(UserError, match="Say --column; there are: a, b"):
        names(tmp_path / "two.parquet")
    with pytest.raises(UserError, match="no column 'c'; there are: a, b"):
        names(tmp_path / "two.parquet", column="c")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        names(tmp_path / "bad.parquet")
    pq.write_table(pa.table({"path": not_utf8(b"caf\xe9.jpg")}), tmp_path / "odd.parquet")
    with pytest.raises(UserError, match="column 'path' is not UTF-8"):
        names(tmp_path / "odd.parquet")
    with pytest.raises(UserError, match="nothing://x: can't be read"):
        names("nothing://x")


def test_tables_with_a_damaged_page_are_told(tmp_path):
    def damaged(column: list) -> str:
        file = tmp_path / "t.parquet"
        pq.write_table(pa.table({"url": column}), file, use_dictionary=False)
        file.write_bytes(b"PAR1" + b"\xff" * 56 + file.read_bytes()[60:])
        return str(file)

    with pytest.raises(UserError, match=r"t\.parquet: not a readable Parquet file, or damaged"):
        names(damaged([f"http://h/{i}.jpg" for i in range(1000)]))
    ((name, fault),) = pictures(Part("rows", damaged([b"x" * 100]), "url"))
    assert name == f"{tmp_path}/t.parquet" and "or damaged" in str(fault)


def test_a_web_server_without_ranges_is_told(tmp_path):
    pq.write_table(pa.table({"image": [os.urandom(2**20)]}), tmp_path / "t.parquet")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def copyfile(self, source, to):
            with contextlib.suppress(ConnectionError):  # nobody reads on
                super().copyfile(source, to)

    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server,
        ThreadPoolExecutor(1) as p,
    ):
        p.submit(server.serve_forever)
        url = f"http://127.0.0.1:{server.server_port}/t.parquet"
        try:
            with pytest.raises(UserError, match="range requests"):
                names(url)
            ((_, fault),) = pictures(Part("rows", url, "image"))
            assert "range requests" in str(fault)
        finally:
            server.shutdown()


# Parts


def encoded(student: Path, out: Path, source, size: int = 100, **more) -> list[dict]:
    """Encode without Ray; the rows of all parts."""
    encoder, parts = Encoder(str(student), str(out), **more), list(parts_of(str(source), size))
    for number, part in enumerate(parts):
        encoder.make(
            {"number": number, "kind": part.kind, "file": part.file, "column": part.column}
            | {"first": part.first, "last": part.last, "paths": list(part.paths)}
        )
    return [row for n in range(len(parts)) for row in pq.read_table(out / part_name(n)).to_pylist()]


def test_a_part_holds_what_the_student_says_of_each_picture(tmp_path, student):
    files = folder_of(tmp_path / "photos", 5)
    rows, model = encoded(student, tmp_path / "codes", tmp_path / "photos", 2), Exported(student)
    assert [row["path"] for row in rows] == list(map(str, files))
    for row, file in zip(rows, files, strict=True):
        assert row["code"] == model.code(pixels_of(file, upright=True)).tobytes()
        assert (row["size"], row["mtime_ns"]) == (file.stat().st_size, file.stat().st_mtime_ns)
    before = (tmp_path / "codes" / part_name(0)).read_bytes()
    encoded(student, tmp_path / "codes", tmp_path / "photos", 2)
    assert (tmp_path / "codes" / part_name(0)).read_bytes() == before


def test_broken_pictures_are_kept_apart_with_their_reason(tmp_path, student):
    good = {"a.jpg": jpeg(1), "z.jpg": jpeg(2)}
    shard = tar_of(tmp_path / "a.tar", good | {"b.jpg": b"no picture", "c.jpg": b""})
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    rows = encoded(student, tmp_path / "codes", shard)
    assert [row["path"] for row in rows] == [f"{shard}/a.jpg", f"{shard}/z.jpg"]
    broken = {r["path"]: r["reason"] for r in pq.read_table(tmp_path / "codes" / broken_name(0)).to_pylist()}
    assert set(broken) == {f"{shard}/{name}" for name in ("b.jpg", "c.jpg", "a.jpg")}
    assert "not a readable image" in broken[f"{shard}/b.jpg"] and "comes twice" in broken[f"{shard}/a.jpg"]
    tar_of(shard, good)
    encoded(student, tmp_path / "codes", shard)
    assert not (tmp_path / "codes" / broken_name(0)).exists()


def not_utf8(*texts: bytes) -> pa.Array:
    """A column of text as a careless program writes it."""
    return pa.array(texts, pa.binary()).view(pa.string())


def test_names_that_are_not_utf_8_are_told_escaped(tmp_path, student):
    tar_of(tmp_path / "a.tar", {"a.jpg": jpeg(1), os.fsdecode(b"caf\xe9.jpg"): jpeg(2)})
    held = {"image": [jpeg(1), jpeg(2)], "path": not_utf8(b"a.tar/a.jpg", b"a.tar/caf\xe9.jpg")}
    pq.write_table(pa.table(held), tmp_path / "held.parquet")
    for source in ("a.tar", "held.parquet"):
        rows = encoded(student, tmp_path / source.upper(), tmp_path / source)
        assert [row["path"] for row in rows] == [f"{tmp_path}/a.tar/a.jpg"]
        (broken,) = pq.read_table(tmp_path / source.upper() / broken_name(0)).to_pylist()
        assert broken == {"path": f"{tmp_path}/a.tar/caf\\xe9.jpg", "reason": "its name is not UTF-8; rename it"}


def test_a_part_that_can_not_be_made_again_is_missing(tmp_path, student, monkeypatch):
    folder_of(tmp_path / "photos", 3)
    (tmp_path / "photos" / "zzz.jpg").write_bytes(b"no picture")
    planned(student, tmp_path / "codes", tmp_path / "photos", 10)
    (tmp_path / "photos" / "zzz.jpg").write_bytes(jpeg(7))
    write, out = Output.write, Output(str(tmp_path / "codes"))

    def full(self, name, content):
        if name.startswith("part-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        write(self, name, content)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Output, "write", full)
        encoded(student, tmp_path / "codes", tmp_path / "photos", 10)
    assert encode.missing(out, 1) == [0]
    with Index(tmp_path / "index", write=True) as index:
        with pytest.raises(UserError, match="1 of 1 parts are missing"):
            encoding.load(index, out.folder)
        assert len(encoded(student, tmp_path / "codes", tmp_path / "photos", 10)) == 4
        assert encoding.load(index, out.folder) == encoding.Loaded(added=4)


def planned(student: Path, out: Path, source, size: int) -> None:
    """A finished job, made without Ray."""
    parts, model = list(parts_of(str(source), size)), Exported(student)
    encoding.write_plan(Output(str(out)), parts, {"model_sha256": model.hash})
    (out / "card.json").write_bytes((student / "card.json").read_bytes())
    encoded(student, out, source, size)


def test_codes_are_loaded_once_and_follow_what_changes(tmp_path, student):
    folder_of(tmp_path / "photos", 9)
    planned(student, tmp_path / "codes", tmp_path / "photos", 4)
    with Index(tmp_path / "index", write=True) as index:
        assert encoding.load(index, str(tmp_path / "codes")) == encoding.Loaded(added=9)
        assert encoding.load(index, str(tmp_path / "codes")) == encoding.Loaded(unchanged=9)
        (tmp_path / "photos" / "000.jpg").write_bytes(jpeg(99))
        planned(student, tmp_path / "again", tmp_path / "photos", 5)
        assert encoding.load(index, str(tmp_path / "again")) == encoding.Loaded(added=1, unchanged=8)
        assert len(index) == 9


def test_codes_that_are_not_whole_or_of_another_model_are_refused(tmp_path, student):
    folder_of(tmp_path / "photos", 6)
    planned(student, tmp_path / "codes", tmp_path / "photos", 3)
    other = write_export(tmp_path / "other", BITS, seed=1)
    planned(other, tmp_path / "others", tmp_path / "photos", 3)
    with Index(tmp_path / "index", write=True) as index:
        with pytest.raises(UserError, match="no codes there"):
            encoding.load(index, str(tmp_path / "photos"))
        encoding.load(index, str(tmp_path / "codes"))
        with pytest.raises(UserError, match="hashed by another model"):
            encoding.load(index, str(tmp_path / "others"))
        os.replace(tmp_path / "others" / part_name(1), tmp_path / "codes" / part_name(1))
        with pytest.raises(UserError, match="of several models"):
            encoding.load(index, str(tmp_path / "codes"))
        (tmp_path / "codes" / part_name(1)).unlink()
        with pytest.raises(UserError, match="1 of 2 parts are missing"):
            encoding.load(index, str(tmp_path / "codes"))
        (tmp_path / "codes" / part_name(1)).write_bytes(b"junk")
        with pytest.raises(UserError, match=r"part-000001\.parquet: damaged"):
            encoding.load(index, str(tmp_path / "codes"))
        whole = (tmp_path / "codes" / part_name(0)).read_bytes()
        (tmp_path / "codes" / part_name(0)).write_bytes(b"PAR1" + b"\xff" * 56 + whole[60:])
        with pytest.raises(UserError, match=r"part-000000\.parquet: damaged"):
            encoding.load(index, str(tmp_path / "codes"))
        for content in (b"{", b"[]", b"{}", b"\xff"):
            (tmp_path / "codes" / "card.json").write_bytes(content)
            with pytest.raises(UserError, match=r"card\.json: damaged; run python -m search.encode again"):
                encoding.load(index, str(tmp_path / "codes"))


def test_two_pictures_of_one_name_are_refused(tmp_path, student):
    pq.write_table(
        pa.table({"image": [jpeg(1), jpeg(2)], "path": ["a", "a"]}), tmp_path / "t.parquet", row_group_size=1
    )
    for size in (1, 2):
        planned(student, tmp_path / f"codes{size}", tmp_path / "t.parquet", size)
        with (
            Index(tmp_path / f"index{size}", write=True) as index,
            pytest.raises(UserError, match="two pictures of that name"),
        ):
            encoding.load(index, str(tmp_path / f"codes{size}"))


def test_two_pictures_of_one_name_are_refused_again(tmp_path, student, monkeypatch):
    held = {"image": [jpeg(1), jpeg(2), jpeg(1), jpeg(3)], "path": ["a", "b", "a", "a"]}
    pq.write_table(pa.table(held), tmp_path / "t.parquet", row_group_size=1)
    planned(student, tmp_path / "codes", tmp_path / "t.parquet", 1)
    with Index(tmp_path / "index", write=True) as index:
        for batch in (1, 1, 2, 10):
            monkeypatch.setattr(encoding, "BATCH", batch)
            with pytest.raises(UserError, match="/a: two pictures of that name"):
                encoding.load(index, str(tmp_path / "codes"))
            digests = [record.digest for record in index.records(index.codes()[0].tolist())]
            assert digests == [hashlib.sha256(jpeg(i)).hexdigest() for i in (1, 2)]


def test_codes_at_a_file_url_appear_whole(tmp_path, monkeypatch):
    out = Output(f"file://{tmp_path}/codes")
    assert out.folder == str(tmp_path / "codes")
    seen, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(out.names()), fsync(file)))
    out.write("card.json", b"{}")
    assert seen and not any("card.json" in names for names in seen) and "card.json" in out.names()


def test_broken_pictures_of_earlier_runs_are_told(tmp_path, student):
    folder_of(tmp_path / "photos", 3)
    (tmp_path / "photos" / "zzz.jpg").write_bytes(b"no picture")
    planned(student, tmp_path / "codes", tmp_path / "photos", 2)
    facts = {"inputs": [str(tmp_path / "photos")], "column": None, "part": 2, "thumbnails": False}
    facts |= {"model_sha256": Exported(student).hash, "pixels": PIXELS}
    out = Output(str(tmp_path / "codes"))
    encoding.write_plan(out, encoding.read_plan(out)[0], facts)
    words = ["--student", student, "--input", tmp_path / "photos", "--out", tmp_path / "codes", "--part", 2]
    code, said = run_here("search.encode", *words)
    assert code == 0 and "2 parts, 2 of them from before" in said and "1 picture can't be read" in said
    with Index(tmp_path / "index", write=True) as index:
        assert encoding.load(index, out.folder) == encoding.Loaded(added=3, broken=1)


def test_codes_of_older_pixels_are_not_mixed_with_new_ones(tmp_path, student, capsys):
    folder_of(tmp_path / "photos", 2)
    planned(student, tmp_path / "codes", tmp_path / "photos", 2)
    out = Output(str(tmp_path / "codes"))
    facts = {"inputs": [str(tmp_path / "photos")], "column": None, "part": 2, "thumbnails": False}
    encoding.write_plan(out, encoding.read_plan(out)[0], {**facts, "model_sha256": Exported(student).hash})
    words = ["--student", student, "--input", tmp_path / "photos", "--out", tmp_path / "codes", "--part", 2]
    assert "holds codes of other pixels; choose another --out" in str(run_here("search.encode", *words)[0])
    out.write("card.json", (student / "card.json").read_bytes())
    with Index(tmp_path / "index", write=True) as index:
        assert encoding.load(index, out.folder).added == 2
    assert "is of an older reader" in capsys.readouterr().out


# The command, on a real Ray


def running(*words) -> subprocess.Popen:
    return subprocess.Popen(
        command_line("search.encode", *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


@pytest.fixture
def blocked(tmp_path, student):
    """A job of six parts whose last two never end, for each has a picture that is a pipe which nobody writes to."""
    files = folder_of(tmp_path / "photos", 22)
    pipes = [tmp_path / "photos" / name for name in ("first.jpg", "second.jpg")]
    for place, pipe in zip((17, 21), pipes, strict=True):
        os.mkfifo(pipe)
        files.insert(place, pipe)
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    words = ["--student", student, "--input", tmp_path / "list.txt", "--out", tmp_path / "codes", "--part", 4]
    process = running(*words, "--workers", 1)
    yield words, process, pipes
    process.kill()
    process.communicate()


def fill(pipe: Path, content: bytes) -> None:
    pipe.unlink(missing_ok=True)
    pipe.write_bytes(content)


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    """The processes that hash."""
    there = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in there if any("MapWorker" in word for word in process.cmdline())]


def same_as_added(tmp_path: Path, student: Path, command, total: int) -> None:
    """The codes of the job are those that python -m search add makes of the same files."""
    for how in (["--codes", tmp_path / "codes"], ["--student", student, tmp_path / "photos"]):
        done = command("search", "add", "--index", tmp_path / f"{how[0]}.index", *how)
        assert done.returncode == 0, done.stderr
    coded, added = ({}, {})
    for name, codes in (("--codes", coded), ("--student", added)):
        with Index(tmp_path / f"{name}.index") as index:
            ids, held = index.codes()
            records = index.records(ids.tolist())
            codes |= {r.path: (r.digest, r.taken, c.tobytes()) for r, c in zip(records, held, strict=True)}
    assert coded == added and len(coded) == total


@pytest.mark.slow
def test_what_a_killed_worker_or_driver_has_begun_is_done_by_another(tmp_path, student, blocked, command):
    words, process, (first, second) = blocked
    until(lambda: (tmp_path / "codes" / part_name(3)).exists(), process)
    done = command("search.encode", *words)
    assert done.returncode == 1 and "another process is at work there" in done.stderr
    (worker,) = workers_of(process)
    fill(first, b"broken")
    worker.kill()
    until(lambda: (tmp_path / "codes" / part_name(4)).exists(), process)
    kept = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "codes").glob("part-*")}
    workers = workers_of(process)
    process.kill()
    process.wait()
    fill(second, jpeg(51))
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert len(kept) == 5 and not alive, "workers have outlived their driver"
    before = len(list((tmp_path / "codes").glob("part-*")))  # 6 where a worker ended its part before it was missed
    done = command("search.encode", *words, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert f"6 parts, {before} of them from before; {4 * (6 - before)} pictures" in done.stdout
    assert "1 picture can't be read" in done.stdout
    assert kept == {name: (tmp_path / "codes" / name).stat().st_mtime_ns for name in kept}
    fill(first, jpeg(50))
    done = command("search.encode", *words, "--workers", 1, "--again")
    assert done.returncode == 0 and "6 parts, 5 of them from before; 4 pictures" in done.stdout, done.stderr
    same_as_added(tmp_path, student, command, 24)
    done = command("search.encode", *words)
    assert done.returncode == 0 and "6 parts, 6 of them from before; 0 pictures" in done.stdout, done.stderr
    for more, message in (
        (["--part", 5], "holds codes of other part; choose another --out"),
        (["--student", write_export(tmp_path / "other", BITS, seed=1)], "holds codes of other model_sha256"),
    ):
        code, said = run_here("search.encode", *words, *more)
        assert message in str(code) and "\n" not in code and not said


@pytest.fixture
def disk(tmp_path):
    """Set the size of a small disk of its own, in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kib: int, *more: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([*more, f"size={kib}k"]), "tmpfs", folder], check=True)
        return folder

    try:
        size(64)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk that fills up can be mounted by root alone")
    yield lambda kib: size(kib, "remount")
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_is_done_stays(tmp_path, student, disk, command):
    folder_of(tmp_path / "photos", 24)
    out = disk(64) / "codes"
    words = ["--student", student, "--input", tmp_path / "photos", "--out", out, "--part", 1, "--workers", 1]
    done = command("search.encode", *words)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"error: {out}/part-") and "no space is left" in last, done.stderr
    kept = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert 0 < len(kept) < 24 and not list(out.glob(".part-*"))
    disk(2048)
    done = command("search.encode", *words)
    assert done.returncode == 0 and f"24 parts, {len(kept)} of them from before" in done.stdout, done.stderr
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    load = ["search", "add", "--index", out.parent / "index", "--codes", out]
    disk(sum(file.stat().st_blocks for file in out.iterdir()) // 2 + 40)
    done = command(*load)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and "no space" in last, done.stderr
    disk(2048)
    done = command(*load)
    assert done.returncode == 0 and "24 pictures" in done.stdout, done.stderr


@pytest.mark.slow
def test_what_can_not_be_done_is_one_line(tmp_path, student):
    folder_of(tmp_path / "photos", 2)
    words = ["--student", student, "--input", tmp_path / "photos", "--out", tmp_path / "codes"]
    for more, message in (
        (["--ray", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
        (["--ray", "nowhere"], "no Ray cluster answers at nowhere"),
        (["--student", tmp_path], "no export there"),
        (["--gpus", 0.5], "no GPU can be used: ONNX Runtime has no CUDA here"),
        (["--input", tmp_path / "none"], "no such file or folder"),
        (["--out", "/proc/codes"], "/proc/codes"),
        (["--workers", 0], "--workers: '0' is not a whole number of at least 1"),
    ):
        code, said = run_here("search.encode", *words, *more)
        assert str(code).startswith("error: ") and message in code and "\n" not in code, (code, said)
