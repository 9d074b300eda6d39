"""Folders as people have them: what lies there beside JPEGs, what is odd, what moves, and what must be asked for."""

import os
import sqlite3
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from conftest import run_here
from exports import write_export
from PIL import Image
from test_decode import SMOOTH, SWAPPED, content

from data import decode
from models.exported import Exported
from search import adding
from search import index as of_index
from search.index import Filters, Index
from utils.errors import UserError


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("export"))


@pytest.fixture
def album(tmp_path):
    """Six photographs of six kinds, and what else is on a phone and on a NAS."""
    top = tmp_path / "album"
    kinds = {"a.jfif": "JPEG", "IMG_1.HEIC": "HEIF", "b.avif": "AVIF", "no ending": "PNG", "c.dat": "WEBP"}
    kinds["d.jpg"] = "JPEG"
    for number, (name, kind) in enumerate(kinds.items()):
        pixels = np.random.RandomState(number).randint(0, 256, (40, 50, 3)).astype(np.uint8)
        write(top / name, content(kind, Image.fromarray(pixels)))
    for name in ("clip.mov", "IMG_1.xmp", "raw.CR2", "Thumbs.db", ".hidden.jpg"):
        write(top / name, b"II*\0 a RAW file begins like a TIFF" if name == "raw.CR2" else b"no image")
    for folder in ("@eaDir/d.jpg", "#recycle", "Lib.photoslibrary/resources", "Cat Previews.lrdata"):
        write(top / folder / "thumb.jpg", content("JPEG"))
    (top / "gone.jpg").symlink_to("nowhere")
    return top


def write(path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def add(file, export, *words) -> tuple[object, str]:
    return run_here("search", "add", "--index", file, "--student", export, *words)


def test_nothing_is_passed_over_without_a_word(album, export, tmp_path):
    code, said = add(tmp_path / "i", export, album)
    assert code == 0 and "6 added; 6 pictures" in said, said
    for words in ("passed over: ", "1 .mov", "1 .xmp", "1 .cr2", "1 .db", "1 @eaDir/", "1 #recycle/", "1 resources/"):
        assert words in said, (words, said)
    assert "gone.jpg: can't be read (a link to nothing)" in said and ".hidden" not in said
    code, said = run_here("search", "info", "--index", tmp_path / "i")
    assert "passed over by the last add: " in said and "1 .mov" in said and "folders passed over: @eaDir" in said
    code, said = add(tmp_path / "i", export, album, "--exclude", "al*")
    assert code == 0 and "6 unchanged" in said  # a root is never excluded by its own name


def test_training_sees_the_same_pictures(album):
    code, said = run_here("scripts.check_data", "--dataset", "photos", "--data-dir", album)
    assert code == 0 and "6 pictures found" in said and "passed over: " in said, said


def test_a_folder_and_a_link_to_it_are_one(album, export, tmp_path):
    (tmp_path / "link").symlink_to(album)
    assert "6 added" in add(tmp_path / "i", export, album)[1]
    assert "0 added, 6 unchanged" in add(tmp_path / "i", export, tmp_path / "link")[1]
    within = ["--within", tmp_path / "link", "-k", 1]
    code, said = run_here("search", "query", "--index", tmp_path / "i", album / "d.jpg", *within)
    assert code == 0 and "d.jpg" in said


def test_very_deep_folders_are_walked(export, tmp_path):
    folder, top = os.open(tmp_path, os.O_RDONLY), tmp_path / "d"
    for _ in range(2500):  # deeper than one path may be long
        os.mkdir("d", dir_fd=folder)
        folder, before = os.open("d", os.O_RDONLY, dir_fd=folder), folder
        os.close(before)
    os.close(folder)
    write(top / "one.jpg", content("JPEG"))
    code, said = add(tmp_path / "i", export, top)
    assert code == 0 and "1 added" in said and "can't be read (File name too long)" in said
    code, said = run_here("scripts.check_data", "--dataset", "photos", "--data-dir", top)
    assert "RecursionError" not in said and "File name too long" in said + str(code)
    subprocess.run(["rm", "-rf", top], check=True)


@pytest.mark.parametrize("moment", [10**19, -(10**17), 0, 2**63 - 1])
def test_one_odd_time_is_that_files(album, export, tmp_path, moment):
    os.utime(album / "d.jpg", ns=(moment, moment))
    code, said = add(tmp_path / "i", export, album)
    assert code == 0 and "6 added" in said, said
    assert "6 unchanged" in add(tmp_path / "i", export, album)[1]


def test_what_one_reader_could_not_read_another_tries_again(album, export, tmp_path, monkeypatch):
    write(album / "odd.png", b"\x89PNG no picture")
    assert "1 file could not be decoded" in add(tmp_path / "i", export, album)[1]
    assert "1 could not be decoded, as before" in add(tmp_path / "i", export, album)[1]
    write(album / "odd.png", (album / "odd.png").read_bytes())
    with Index(tmp_path / "i", write=True) as index:
        monkeypatch.setattr(adding, "READER", "a newer one")
        report = adding.add(index, Exported(export), [album])
        assert len(report.broken) == 1 and index.broken()[0].reader == "a newer one"


def test_forgetting_much_is_asked_for(album, export, tmp_path):
    add(tmp_path / "i", export, album)
    (album / "a.jfif").unlink()
    code, _ = add(tmp_path / "i", export, album, "--prune")
    assert "--prune would forget 1 of 6 pictures: 1 in " in str(code) and "add --yes" in str(code)
    code, said = add(tmp_path / "i", export, album, "--prune", "--yes")
    assert code == 0 and "1 gone and forgotten; 5 pictures" in said


def test_a_library_that_moved_is_moved(album, export, tmp_path):
    add(tmp_path / "i", export, album)
    new = tmp_path / "new"
    code, _ = run_here("search", "move", "--index", tmp_path / "i", album, new)
    assert "new: no such folder" in str(code)
    album.rename(new)
    code, said = run_here("search", "move", "--index", tmp_path / "i", album, new)
    assert code == 0 and "6 pictures of " in said
    code, said = add(tmp_path / "i", export, new)
    assert "0 added, 6 unchanged" in said
    assert run_here("search", "check", "--index", tmp_path / "i", "--files")[0] == 0
    code, _ = run_here("search", "move", "--index", tmp_path / "i", album, new)
    assert "no picture of this index lies there" in str(code)


def test_names_match_however_their_letters_are_composed(export, tmp_path):
    apart, together = unicodedata.normalize("NFD", "Café"), unicodedata.normalize("NFC", "Café")
    write(tmp_path / "p" / apart / "x.jpg", content("JPEG"))
    add(tmp_path / "i", export, tmp_path / "p")
    with Index(tmp_path / "i", write=True) as index:
        for name in (apart, together):
            assert index.count(Filters(label=name)) == index.count(Filters(folder=str(tmp_path / "p" / name))) == 1
        assert index.remove([str(tmp_path / "p" / together / "x.jpg")]) == 1


def test_names_do_not_command_the_terminal(export, tmp_path):
    write(tmp_path / "p" / "red\x1b[31m\nline.jpg", content("JPEG"))
    add(tmp_path / "i", export, tmp_path / "p")
    code, said = run_here("search", "query", "--index", tmp_path / "i", next((tmp_path / "p").iterdir()))
    assert code == 0 and "\x1b" not in said and "red\\x1b[31m\\nline.jpg" in said
    assert "\x1b" not in str(UserError("a\x1b[31mb"))


def test_a_picture_is_found_by_its_own_date_in_any_zone(export, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2024:05:31 08:00:00"
    exif.get_ifd(0x8769)[0x9011] = "+09:00"
    write(tmp_path / "p" / "x.jpg", content("JPEG", exif=exif))
    days = [("2024-05-31", "2024-06-01", True), ("2024-05-31T07:59", "2024-05-31T08:01", True)]
    for number, zone in enumerate(("Asia/Tokyo", "UTC", "America/Lima")):
        words = ["add", "--index", tmp_path / f"{number}", "--student", export, tmp_path / "p"]
        command = list(map(str, [sys.executable, "-m", "search", *words]))
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TZ": zone})
        for after, before, found in (*days, ("2024-06-01", "2025-01-01", False)):
            query = ["search", "query", "--index", tmp_path / f"{number}", tmp_path / "p" / "x.jpg", "--json"]
            code, _ = run_here(*query, "--after", after, "--before", before)
            assert (code == 0) == found, (zone, after, code)


def test_an_index_of_older_code_is_brought_up_to_date(album, export, tmp_path):
    add(tmp_path / "i", export, album)
    con = sqlite3.connect(tmp_path / "i")
    con.executescript(
        "ALTER TABLE broken DROP COLUMN reader; DELETE FROM facts WHERE name = 'identity'; PRAGMA user_version = 1;"
    )
    con.close()
    with Index(tmp_path / "i") as index:
        assert index.info()["format"] == 1 and index.identity == "" and index.broken() == []
    code, said = add(tmp_path / "i", export, album)
    assert code == 0 and "6 unchanged" in said
    with Index(tmp_path / "i") as index:
        facts = index.info()
    assert facts["format"] == of_index.FORMAT and len(facts["identity"]) == 32 and facts["generation"] > 1


def test_codes_of_older_pixels_are_made_anew_and_others_stay(album, export, tmp_path, monkeypatch):
    write(album / "wide.jpg", content("JPEG", SMOOTH, icc_profile=SWAPPED))
    with monkeypatch.context() as older:
        older.setattr(decode, "_to_srgb", lambda image: None)
        add(tmp_path / "i", export, album)
    con = sqlite3.connect(tmp_path / "i")
    con.execute("PRAGMA user_version = 2")
    con.close()
    with Index(tmp_path / "i") as index:
        before, old = index.codes()
    write(album / "copy.jpg", (album / "wide.jpg").read_bytes())  # its code is no longer that of the bytes
    code, said = add(tmp_path / "i", export, album)
    assert code == 0 and "2 added, 6 unchanged" in said
    with Index(tmp_path / "i") as index:
        ids, codes = index.codes()
        assert len(set(ids) & set(before)) == 6 and not index.faults() and not adding.file_faults(index)
        paths = [record.path for record in index.records(ids[-2:].tolist())]
    assert [os.path.basename(path) for path in paths] == ["copy.jpg", "wide.jpg"]
    right = Exported(export).code(decode.pixels_of(album / "wide.jpg", upright=True))
    assert np.array_equal(codes[-2:], [right, right]) and not (old == right).all(axis=1).any()
    assert "0 added, 8 unchanged" in add(tmp_path / "i", export, album)[1]


def test_words_do_not_mislead(album, export, tmp_path):
    add(tmp_path / "i", export, album)
    query = ["search", "query", "--index", tmp_path / "i"]
    assert "queries are files of this machine" in str(run_here(*query, "https://example.com/a.jpg")[0])
    with Index(tmp_path / "empty", write=True) as index:
        index.set_card(Exported(export).card, str(export))
    code = str(run_here("search", "query", "--index", tmp_path / "empty", album / "d.jpg")[0])
    assert "holds no picture" in code and "--within" not in code
