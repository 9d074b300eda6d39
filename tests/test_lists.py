"""Image lists: every format, every fault, leaks, splits, and the check before work."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import from_lists
from data.lists import ImageList, merge, read_list
from data.protocols import PROTOCOLS, Protocol
from scripts import fetch_lists
from scripts.fetch_lists import derive
from utils.errors import UserError

LISTS = PROTOCOLS["lists"]


def write(path, text: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def the_same(one: ImageList) -> None:
    assert one.names == ["a/1.jpg", "a/2.jpg", "b 3.jpg"]
    assert one.labels.dtype == np.uint8 and one.labels.tolist() == [[1, 0], [0, 1], [1, 1]]


def test_every_format_reads_the_same(tmp_path):
    text = "a/1.jpg 1 0\na/2.jpg 0 1\nb 3.jpg 1 1\n"
    the_same(read_list(write(tmp_path / "x.txt", text)))
    the_same(read_list(write(tmp_path / "no_end.txt", text.rstrip("\n"))))
    the_same(read_list(write(tmp_path / "windows.txt", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())))
    write(tmp_path / "y_label_onehot.txt", "1 0 \n0 1 \n1 1 \n")  # as published, with a space at the end
    the_same(read_list(write(tmp_path / "y_img.txt", "a/1.jpg\na/2.jpg\nb 3.jpg\n")))
    the_same(read_list(write(tmp_path / "x.csv", "path,labels\na/1.jpg,1 0\na/2.jpg,0 1\nb 3.jpg,1 1\n")))
    the_same(read_list(write(tmp_path / "wide.csv", "path,sky,sea\na/1.jpg,1,0\na/2.jpg,0,1\nb 3.jpg,1,1\n")))
    table = pd.DataFrame({"path": ["a/1.jpg", "a/2.jpg", "b 3.jpg"], "labels": [[1, 0], [0, 1], [1, 1]]})
    table.to_parquet(tmp_path / "x.parquet")
    the_same(read_list(tmp_path / "x.parquet"))
    assert read_list(tmp_path / "wide.csv").classes == ["sky", "sea"]


def test_prefix_is_removed_and_dots_are_normalised(tmp_path):
    file = write(tmp_path / "x.txt", "./data/coco/val/1.jpg 1\n./2.jpg 0\n")
    assert read_list(file, prefix="./data/coco/").names == ["val/1.jpg", "2.jpg"]


FAULTS = {
    "few labels": ("a.jpg 1 0\nb.jpg 1\n", r"x\.txt:2: 1 labels, 2 are needed|x\.txt:2"),
    "no label": ("a.jpg\n", r"x\.txt:1: a path and at least one"),
    "not 0 or 1": ("a.jpg 1 0\nb.jpg 2 0\n", r"x\.txt:2: label '2' is not 0 or 1"),
    "two digits": ("a.jpg 1 0\nb.jpg 10 0\n", r"x\.txt:2: label '10' is not 0 or 1"),
    "not text": (b"a.jpg 1\n\xff\xfe 0\n", r"x\.txt:2: not UTF-8"),
    "duplicate": ("a.jpg 1\nb.jpg 0\na.jpg 1\n", r"x\.txt:3: a\.jpg is in the list already, at line 1"),
    "empty": ("", r"x\.txt: empty list"),
    "empty line": ("a.jpg 1\n\nb.jpg 0\n", r"x\.txt:2: empty line"),
    "outside": ("a.jpg 1\n../b.jpg 0\n", r"x\.txt:2: \.\./b\.jpg lies outside"),
    "absolute": ("/etc/passwd 1\n", r"x\.txt:1: /etc/passwd lies outside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_file_and_line_number(tmp_path, fault):
    text, words = FAULTS[fault]
    with pytest.raises(UserError, match=words) as error:
        read_list(write(tmp_path / "x.txt", text))
    assert "\n" not in str(error.value)


TABLES = {
    "no path column": ("image,labels\na,1\n", "no column 'path'"),
    "no labels": ("path\na.jpg\n", "no labels"),
    "not 0 or 1": ("path,labels\na.jpg,1 0\nb.jpg,1 3\n", r"x\.csv:3: label '3'"),
    "wide, not 0 or 1": ("path,sky,sea\na.jpg,1,0\nb.jpg,1,7\n", r"x\.csv:3: label '7' of 'sea'"),
    "no path": ("path,labels\na.jpg,1\n,0\n", r"x\.csv:3: no path"),
    "empty": ("path,labels\n", "empty list"),
    "other width": ("path,labels\na.jpg,1 0\nb.jpg,1\n", r"x\.csv:3: 1 labels"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_faults_of_tables(tmp_path, fault):
    text, words = TABLES[fault]
    with pytest.raises(UserError, match=words):
        read_list(write(tmp_path / "x.csv", text))


def test_faults_of_files(tmp_path):
    write(tmp_path / "bad.parquet", "no parquet")
    write(tmp_path / "lone_img.txt", "a.jpg\n")
    write(tmp_path / "short_img.txt", "a.jpg\nb.jpg\n")
    write(tmp_path / "short_label_onehot.txt", "1 0\n")
    write(tmp_path / "x.txt", "a.jpg 1 0\n")
    for call, words in (
        (lambda: read_list(tmp_path / "none.txt"), "no such list"),
        (lambda: read_list(tmp_path / "bad.parquet"), "not a readable table"),
        (lambda: read_list(tmp_path / "lone_img.txt"), "lone_label_onehot.txt are not beside it"),
        (lambda: read_list(tmp_path / "short_img.txt"), "1 lines for the 2 images"),
        (lambda: read_list(tmp_path / "x.txt", n_labels=3), r"x\.txt:1: 2 labels|x\.txt"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def lists_and_images(root, photo, test=6, database=40, train=10, more=""):
    names = [f"im/{i:03d}.jpg" for i in range(test + database)]
    for i, name in enumerate(names):
        photo(root / name, seed=i, size=(8, 8))
    draw = np.random.RandomState(0)
    lines = [f"{n} {' '.join(map(str, draw.randint(0, 2, 3)))}\n" for n in names]
    write(root / "test.txt", "".join(lines[:test]))
    write(root / "database.txt", "".join(lines[test:]) + more.format(leak=lines[0]))
    write(root / "train.txt", "".join(lines[test : test + train]))
    return root


def test_a_data_set_of_lists(tmp_path, photo):
    data = from_lists.load(LISTS, lists_and_images(tmp_path, photo))
    assert [len(p) for p in (data.train, data.database, data.val, data.test)] == [10, 40, 6, 6]
    assert set(data.train) <= set(data.database) and not set(data.test) & set(data.database)
    assert set(data.val) <= set(data.database) and not set(data.val) & set(data.train)
    assert set(data.val_database) == set(data.database) - set(data.val)
    assert [data.source.names[i] for i in data.test] == [f"im/{i:03d}.jpg" for i in range(6)]
    again, other = from_lists.load(LISTS, tmp_path), from_lists.load(LISTS, tmp_path, seed=1)
    assert again.fingerprint == data.fingerprint != other.fingerprint


def test_without_free_database_images_the_test_list_is_halved(tmp_path, photo):
    data = from_lists.load(LISTS, lists_and_images(tmp_path, photo, database=10, train=10))
    assert len(data.val) == len(data.test) == 3 and not set(data.val) & set(data.test)
    assert (data.val_database == data.database).all() and "half of the test list" in data.notes[0]


def test_a_leak_is_refused_or_dropped_and_counted(tmp_path, photo):
    root = lists_and_images(tmp_path, photo, more="{leak}")
    with pytest.raises(
        UserError, match=r"database\.txt:41: 1 database images are queries too, .*000\.jpg.*--drop-leaks"
    ):
        from_lists.load(LISTS, root)
    data = from_lists.load(LISTS, root, drop_leaks=True)
    assert len(data.database) == 40 and "dropped from database: 1 database images" in data.notes[0]


def test_missing_images_and_lists_are_named(tmp_path, photo):
    root = lists_and_images(tmp_path, photo)
    for i in range(7):
        (root / f"im/{i:03d}.jpg").unlink()
    with pytest.raises(UserError, match=r"train\.txt:1: im/006\.jpg is not there; .*and 2 more"):  # each once
        from_lists.load(LISTS, root)
    (root / "train.txt").unlink()
    with pytest.raises(UserError, match=r"no list train\.txt"):
        from_lists.load(LISTS, root)


def test_published_lists_have_their_length(tmp_path, photo):
    protocol = Protocol("known", counts={"train": 11})
    with pytest.raises(UserError, match="10 images; the published known train list has 11"):
        from_lists.load(protocol, lists_and_images(tmp_path, photo))


def image_list(names: list[str], labels=None) -> ImageList:
    return ImageList("x", names, np.array(labels if labels is not None else [[1]] * len(names), dtype=np.uint8), ["0"])


def test_merge_takes_each_image_once_and_refuses_contradictions():
    names, labels, rows = merge(
        {"train": image_list(["a", "b"], [[1], [0]]), "test": image_list(["c", "a"], [[0], [1]])}
    )
    assert names == ["a", "b", "c"] and labels.tolist() == [[1], [0], [0]] and rows["test"].tolist() == [2, 0]
    with pytest.raises(UserError, match="x:1: a has other labels"):
        merge({"train": image_list(["a"], [[1]]), "test": image_list(["a"], [[0]])})
    with pytest.raises(UserError, match="they must agree"):
        merge({"train": image_list(["a"]), "test": image_list(["b"], [[0, 1]])})


def test_the_coco_database_is_derived_and_counted(monkeypatch):
    monkeypatch.setattr(fetch_lists, "DERIVED", 3)
    found = derive(image_list(["a", "b"]), image_list(["b", "c", "t", "d"]), image_list(["t", "d"]))
    assert found.names == ["a", "b", "c"]
    with pytest.raises(UserError, match="has 4 images, not 3"):
        derive(image_list(["a", "b"]), image_list(["c", "t", "d"]), image_list(["t"]))


@pytest.mark.slow
def test_the_check_finds_what_training_would_refuse(tmp_path, photo, cli):
    root = lists_and_images(tmp_path, photo)
    check = ["scripts.check_data", "--dataset", "lists", "--data-dir", root]
    code, said = cli(*check)
    assert code == 0 and "no problem found" in said and "labels of train" in said, said
    (root / "im/003.jpg").write_bytes(b"broken")
    (root / "im/004.jpg").unlink()
    write(
        root / "database.txt",
        (root / "database.txt").read_text() + (root / "test.txt").read_text().splitlines()[0] + "\n",
    )
    code, said = cli(*check)
    for words in ("3 problems", "database.txt:41", "test.txt:5: im/004.jpg", "003.jpg: not a readable image"):
        assert words in f"{said}{code}"
    lists = ["--train", root / "train.txt", "--test", root / "test.txt"]
    code, said = cli("scripts.check_data", *lists)
    assert code == 0 and "no problem found" in said
    code, _ = cli("scripts.check_data", *lists, "--data-dir", root)
    assert "test.txt:5: im/004.jpg is not there" in code
    assert "no problem" in cli("scripts.check_data", "--dataset", "digits")[1]


def test_published_lists_are_believed_by_their_hash(tmp_path, monkeypatch):
    content = b"a.jpg 0 1\nb.jpg 1 1\n"
    known = fetch_lists.Published("x_train.txt", "file:///nowhere/train.txt", hashlib.sha256(content).hexdigest())
    (tmp_path / "x_train.txt").write_bytes(content)
    assert fetch_lists.fetch(known, tmp_path) == content
    (tmp_path / "x_train.txt").write_bytes(content[:-1])
    with pytest.raises(UserError, match="was changed or cut"):
        fetch_lists.fetch(known, tmp_path)
    with pytest.raises(UserError, match=r"no x_train\.txt in it"):
        fetch_lists.fetch(known, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"could not be downloaded.*--from"):
        fetch_lists.fetch(known, None)
    there = Path(tmp_path / "served.txt")
    there.write_bytes(content)
    assert fetch_lists.fetch(replace(known, url=there.as_uri()), None) == content
