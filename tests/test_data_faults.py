"""Hostile and careless data of one's own: refused in one line, or read as what it is."""

import io
import os
import tarfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_data import make_folder
from test_lists import lists_and_images, write
from test_shards import png, tar_of

from data import content, digits, folder, from_lists, shards
from data.dataset import remarks
from data.lists import find_list, read_list
from data.load import add_data_arguments, load_data
from data.protocols import PROTOCOLS
from data.sources import FileImages, decode
from scripts.make_shards import write_shards
from utils.errors import UserError
from utils.options import Parser

LISTS = PROTOCOLS["lists"]

# Image files


def test_pillow_opens_named_formats_only(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"x\.jpg: not a readable image \(none of JPEG, PNG"):
        decode(tmp_path / "x.jpg")


def test_a_tag_of_another_kind_is_one_line(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "TIFF")
    damaged = bytearray(content.getvalue())
    damaged[72] = 2  # a number becomes text, which Pillow meets with a TypeError
    (tmp_path / "x.tif").write_bytes(damaged)
    with pytest.raises(UserError, match=r"x\.tif: not a readable image \('str' object cannot"):
        decode(tmp_path / "x.tif")


def test_a_phones_file_of_several_jpegs_is_an_image(tmp_path):
    first, second = (Image.new("RGB", (9, 7), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    assert decode(tmp_path / "x.jpg")[0].float().mean() > 250


def tiff(file, values, dtype):
    Image.fromarray(np.array([values], dtype=dtype)).save(file)
    return file


@pytest.mark.parametrize(
    "values, dtype, gray",
    [
        ([0, 0.5, 1], np.float32, [0, 128, 255]),
        ([0, 100, 255], np.float32, [0, 100, 255]),
        ([0, 514, 65535], np.float32, [0, 2, 255]),
        ([0, 50_000, 100_000], np.float32, [0, 128, 255]),
        ([-1, 0, 1], np.float32, [0, 128, 255]),
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([0, 1, 1], np.int32, [0, 1, 1]),
        ([-100, 0, 100], np.int32, [0, 128, 255]),
        ([-5, -5, -5], np.int32, [0, 0, 0]),
        ([0, 257, 65535], np.uint16, [0, 1, 255]),
        ([0, 100, 255], np.uint16, [0, 0, 1]),
    ],
)
def test_wide_grayscale_has_the_range_it_uses(tmp_path, values, dtype, gray):
    assert decode(tiff(tmp_path / "x.tif", values, dtype))[0].tolist() == [gray]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path, odd):
    with pytest.raises(UserError, match=r"x\.tif: not a readable image \(it has NaN or infinite pixels\)"):
        decode(tiff(tmp_path / "x.tif", [0.5, odd, 1], np.float32))


def lying(file, orientation: int = 6):
    """A photograph whose left half is white, to be turned by its EXIF orientation."""
    image, exif = Image.new("L", (40, 20)), Image.Exif()
    image.paste(255, (0, 0, 20, 20))
    exif[0x0112] = orientation
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, exif=exif)
    return file


def test_exif_orientation_is_applied_to_ones_own_images_only(tmp_path):
    lying(tmp_path / "x.jpg")
    stored, upright = (FileImages(tmp_path, ["x.jpg"], upright=u) for u in (False, True))
    assert stored[0].shape == (3, 20, 40) and upright[0].shape == (3, 40, 20)
    assert upright[0][0, :15].float().mean() > 240 and upright[0][0, 25:].float().mean() < 15
    assert stored.fingerprint != upright.fingerprint


def test_damaged_exif_does_not_lose_the_pixels(tmp_path):
    Image.new("L", (40, 20)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(tmp_path / "x.jpg", upright=True).shape == (3, 20, 40)


def test_no_memory_for_the_turned_copy_is_no_damaged_exif(tmp_path, monkeypatch):
    def full(image):
        raise MemoryError

    Image.new("L", (40, 20)).save(tmp_path / "x.jpg")
    monkeypatch.setattr("data.decode.ImageOps.exif_transpose", full)
    with pytest.raises(MemoryError):
        decode(tmp_path / "x.jpg", upright=True)


# Content


def test_a_folder_may_move_but_not_change(tmp_path, photo):
    photo(tmp_path / "a/x.png"), photo(tmp_path / "b/x.png")
    os.utime(tmp_path / "b/x.png", (1, 1))
    fingerprint = lambda root, name="x.png": FileImages(tmp_path / root, [name]).fingerprint  # noqa: E731
    assert fingerprint("a") == fingerprint("b")
    os.rename(tmp_path / "b/x.png", tmp_path / "b/y.png")
    assert fingerprint("a") != fingerprint("b", "y.png")
    photo(tmp_path / "b/x.png", seed=1)
    assert fingerprint("a") != fingerprint("b")


def test_content_is_read_once_and_again_where_it_changed(tmp_path, photo, monkeypatch):
    names = [f"{i}.png" for i in range(150)]
    for i, name in enumerate(names):
        photo(tmp_path / "root" / name, seed=i, size=(4, 4))
    read, digest_of = [], content.digest_of
    monkeypatch.setattr(content, "digest_of", lambda data: read.append(data) or digest_of(data))

    def digests(names=names):
        read.clear()
        return FileImages(tmp_path / "root", names, cache_dir=tmp_path / "cache").digests

    first = digests()
    assert len(read) == 150 and len(np.unique(first, axis=0)) == 150
    assert (digests() == first).all() and not read
    assert (digests(names[50::-1]) == first[50::-1]).all() and not read
    photo(tmp_path / "root/7.png", seed=200, size=(5, 5))
    assert (np.flatnonzero((digests() != first).any(axis=1)) == [7]).all() and len(read) == 1
    (table,) = (tmp_path / "cache").glob("content_*.npz")
    for damage in (b"junk", table.read_bytes()[:-40], b""):
        table.write_bytes(damage)
        assert (digests()[8:] == first[8:]).all() and len(read) == 150


def test_names_may_be_of_any_bytes(tmp_path, photo):
    name = os.fsdecode(b"caf\xe9.png")
    photo(tmp_path / "root/x.png").rename(tmp_path / "root" / name)
    images = [FileImages(tmp_path / "root", [name], cache_dir=tmp_path / "cache") for _ in range(2)]
    assert images[0].fingerprint == images[1].fingerprint and torch.equal(images[0][0], images[1][0])


def test_a_moved_data_set_is_the_same_data_set(tmp_path, photo):
    make_folder(tmp_path / "a", photo)
    write_shards(folder.load(tmp_path / "a"), tmp_path / "s", per_shard=5)
    lists_and_images(tmp_path / "l", photo)
    loaders = {"a": folder.load, "s": shards.load, "l": lambda root: from_lists.load(LISTS, root)}
    before = {name: load(tmp_path / name).fingerprint for name, load in loaders.items()}
    for name, load in loaders.items():
        os.rename(tmp_path / name, tmp_path / f"moved {name}")
        for file in (tmp_path / f"moved {name}").rglob("*"):
            os.utime(file, (1, 1))
        moved = load(tmp_path / f"moved {name}")
        assert moved.fingerprint == before[name] and moved.title == f"{moved.name} moved {name}"


def test_digits_are_the_data_set_they_were():
    known = "b959d1b6132be829e4f3304f34e6d9c4c05b378572b364711b633e3a468aa977"
    data = digits.load()
    assert data.fingerprint == known and data.k == 100 and data.title == "digits"
    assert len(np.unique(data.source.digests, axis=0)) > 1700


def test_the_cut_off_is_no_larger_than_the_database():
    data = digits.load(limit=20)
    assert data.k == 20 and replace(data, k=5).k == 5


# Folders


def make_classes(top, photo, first=0, count=3, classes=("cat", "dog")):
    for c, name in enumerate(classes):
        for i in range(count):
            photo(top / name / f"{i}.png", seed=first + 10 * c + i, size=(6, 6))


@pytest.mark.parametrize("database", ["database", "TRAIN"])
@pytest.mark.parametrize("query", ["query", "test", "VAL"])
def test_the_parts_of_a_folder_have_the_names_people_give_them(tmp_path, photo, database, query):
    make_classes(tmp_path / database, photo), make_classes(tmp_path / query, photo, first=100)
    data = folder.load(tmp_path)
    assert data.classes == ["cat", "dog"] and (len(data.train), len(data.val), len(data.test)) == (6, 3, 3)
    assert all(data.source.names[i].startswith(f"{query}/") for i in [*data.val, *data.test])


def test_val_validates_and_test_asks_where_both_are(tmp_path, photo):
    for i, part in enumerate(("train", "val", "test")):
        make_classes(tmp_path / part, photo, first=100 * i)
    data = folder.load(tmp_path)
    for part in ("train", "val", "test"):
        assert {data.source.names[i].split("/")[0] for i in getattr(data, part)} == {part}


def test_half_a_split_is_refused(tmp_path, photo):
    make_classes(tmp_path / "database", photo)
    with pytest.raises(UserError, match=r"has database, but no query \(or test, val\) with CLASS folders inside"):
        folder.load(tmp_path)
    (tmp_path / "query").mkdir()
    photo(tmp_path / "query/0.png")  # no class
    with pytest.raises(UserError, match="no query"):
        folder.load(tmp_path)
    make_classes(tmp_path / "query", photo, first=100), make_classes(tmp_path / "Train", photo, first=200)
    with pytest.raises(UserError, match="Train and database both name one part"):
        folder.load(tmp_path)
    os.rename(tmp_path / "Train", tmp_path / "holiday")
    with pytest.raises(
        UserError, match=r"database \(of a split\?\) and holiday \(of classes\?\) lie side by side.*ROOT/query"
    ):
        folder.load(tmp_path)


def test_images_in_no_class_are_counted(tmp_path, photo):
    make_folder(tmp_path, photo)
    photo(tmp_path / "lone.jpg", seed=900), photo(tmp_path / "database/lone.jpg", seed=901)
    data = folder.load(tmp_path)
    assert len(data.source) == 20 and "2 images lie in no class folder" in data.notes[0]


def test_a_class_may_be_called_train(tmp_path, photo):
    make_classes(tmp_path, photo, classes=("bus", "train"))
    assert folder.load(tmp_path).classes == ["bus", "train"]


def test_folders_that_cannot_be_read_and_links_to_nothing_are_named(tmp_path, photo, monkeypatch):
    make_folder(tmp_path, photo)
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("query/dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        data = folder.load(tmp_path)
    assert any("query/dog: can't be read (Permission denied)" in note for note in data.notes), data.notes
    for link in ("database/cat/9.jpg", "database/cow"):  # an image, a class
        os.symlink("nowhere", tmp_path / link)
    (tmp_path / "database/cat/clip.mov").write_bytes(b"no image")
    data = folder.load(tmp_path)
    assert any("9.jpg: can't be read (a link to nothing)" in note for note in data.notes), data.notes
    assert any("passed over: 1 .mov" in note for note in data.notes), data.notes


def test_linked_folders_are_followed_once_and_never_round(tmp_path, photo):
    make_folder(tmp_path / "root", photo)
    photo(tmp_path / "more/deep/0.jpg", seed=900)
    for name, target in (
        ("more", "more"),
        ("again", "more/deep"),
        ("loop", "root"),
        ("all", ""),
        ("dog", "root/database/dog"),
    ):
        os.symlink(tmp_path / target, tmp_path / "root/database/cat" / name)
    names = folder.load(tmp_path / "root").source.names
    assert len(names) == 21 and [n for n in names if n.count("/") > 2] == ["database/cat/again/0.jpg"]


def test_a_query_in_the_database_is_found_by_content(tmp_path, photo):
    make_folder(tmp_path, photo)
    content = (tmp_path / "query/cat/0.jpg").read_bytes()
    (tmp_path / "database/dog/copy.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"1 database images.*database/dog/copy\.jpg is query/cat/0\.jpg.*--drop-leaks"):
        folder.load(tmp_path)
    data = folder.load(tmp_path, drop_leaks=True)
    assert len(data.database) == len(data.train) == 12 and len(data.notes) == 1
    (tmp_path / "query/dog/copy.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"1 val images are queries too|1 database images"):
        folder.load(tmp_path)
    (tmp_path / "database/dog/copy.jpg").unlink()
    (tmp_path / "query/dog/copy.jpg").unlink()
    (tmp_path / "database/dog/twice.jpg").write_bytes((tmp_path / "database/dog/0.jpg").read_bytes())
    assert len(folder.load(tmp_path).database) == 13


def test_a_validation_query_that_is_a_test_query_is_dropped_from_validation(tmp_path, photo):
    for i, part in enumerate(("train", "val", "test")):
        make_classes(tmp_path / part, photo, first=100 * i)
    (tmp_path / "val/cat/0.png").write_bytes((tmp_path / "test/dog/1.png").read_bytes())
    with pytest.raises(UserError, match=r"1 val images are queries too, by content: val/cat/0\.png is test/dog/1"):
        folder.load(tmp_path)
    assert len(folder.load(tmp_path, drop_leaks=True).val) == 5


def test_file_and_class_names_may_be_of_any_bytes(tmp_path, photo):
    root = make_folder(tmp_path / "root", photo, classes=(os.fsdecode(b"caf\xe9"), "dog"))
    assert folder.load(root, cache_dir=tmp_path / "cache").fingerprint == folder.load(root).fingerprint


def test_a_command_line_keeps_digests_and_says_what_means_little(tmp_path, photo, capsys):
    make_folder(tmp_path / "photos", photo, classes=("cat",))
    parser = Parser("")
    add_data_arguments(parser)
    args = parser.parse_args(["--dataset", "folder", "--data-dir", str(tmp_path / "photos")])
    args.cache_dir = tmp_path / "cache"
    data = load_data(args)
    assert data.title == "folder photos" and list((tmp_path / "cache").glob("content_*.npz"))
    assert "note: every test query shares a label with every database image: mAP is 1" in capsys.readouterr().out


def test_remarks_on_data_that_judges_nothing():
    data = digits.load(limit=20)
    assert remarks(data) == []
    assert "one training image" in remarks(replace(data, train=data.train[:1]))[0]
    assert "mAP is 0" in remarks(replace(data, labels=data.labels * 0))[0]
    assert "ONE label" in remarks(replace(data, labels=data.labels[:, :1]))[0]


# Lists


@pytest.mark.parametrize(
    "text, n_labels, words",
    [
        ("a.jpg 1 0\nb.jpg 1 0 1\n", None, r"x\.txt:2: 3 labels, 2 are needed"),
        ("a.jpg 1 0\nmy b.jpg 1\n", None, r"x\.txt:2: 1 labels, 2 are needed"),
        ("my a.jpg 1\n", 3, r"x\.txt:1: 1 labels, 3 are needed"),
        ("a.jpg 1 0 1\n", 2, r"x\.txt:1: 3 labels, 2 are needed"),
        ("a.jpg\t1\t0\t1\n", 2, r"x\.txt:1: 3 labels, 2 are needed"),
        ("a.jpg 7\n", None, r"x\.txt:1: .*'7' looks like a class number; 0/1 rows are needed"),
        ("a.jpg 1\nb.jpg 7\n", None, r"x\.txt:2: label '7' is not 0 or 1; .*0/1 rows are needed"),
        ("a.jpg\n", None, r"x\.txt:1: a path and at least one 0/1 label"),
    ],
)
def test_label_columns_are_counted_and_class_numbers_named(tmp_path, text, n_labels, words):
    with pytest.raises(UserError, match=words):
        read_list(write(tmp_path / "x.txt", text), n_labels)


def test_paths_may_hold_spaces_whatever_the_width(tmp_path):
    one = read_list(write(tmp_path / "x.txt", "my photos/00012.jpg 1 0\nb 0 c.jpg 0 1\n"))
    assert one.names == ["my photos/00012.jpg", "b 0 c.jpg"] and one.labels.tolist() == [[1, 0], [0, 1]]


def test_two_lists_of_one_part_are_refused(tmp_path):
    write(tmp_path / "train.txt", "a.jpg 1\n"), write(tmp_path / "train.csv", "path,labels\na.jpg,1\n")
    with pytest.raises(UserError, match=r"two lists of one part, train\.txt and train\.csv"):
        find_list(tmp_path, "train")


def csv_lists(root, photo, test="path,sky,sea", train="path,sky,sea"):
    for i in range(8):
        photo(root / f"{i}.png", seed=i, size=(4, 4))
    write(root / "train.csv", train + "\n" + "".join(f"{i}.png,{i % 2},1\n" for i in range(4)))
    write(root / "test.csv", test + "\n" + "".join(f"{i}.png,1,0\n" for i in range(4, 8)))
    return root


def test_label_columns_are_matched_by_name(tmp_path, photo):
    data = from_lists.load(LISTS, csv_lists(tmp_path, photo, test="path,sea,sky"))
    assert data.classes == ["sky", "sea"] and data.labels[data.test].tolist() == [[0, 1], [0, 1]]
    data = from_lists.load(LISTS, csv_lists(tmp_path, photo, test="path,1,0", train="path,0,1"))  # numbers are names
    assert data.classes == ["0", "1"] and data.labels[data.test].tolist() == [[0, 1], [0, 1]]
    with pytest.raises(UserError, match=r"test\.csv: its label columns are not those of .*train\.csv.*lake, sea"):
        from_lists.load(LISTS, csv_lists(tmp_path, photo, test="path,sky,lake"))


@pytest.mark.parametrize("damage", [lambda whole: b"junk\nand more", lambda whole: whole[:-7]])
def test_damaged_lists_are_one_line(tmp_path, damage):
    name = "x.parquet"
    pd.DataFrame({"path": ["a.jpg"], "labels": ["1"]}).to_parquet(tmp_path / name)
    write(tmp_path / name, damage((tmp_path / name).read_bytes()))
    with pytest.raises(UserError, match=f"{name}: not a readable table") as error:
        read_list(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"path": [1, 2], "labels": ["1", "0"]}, "column 'path' holds integer, not text"),
        ({"path": [b"a.jpg", b"b.jpg"], "labels": ["1", "0"]}, "column 'path' holds bytes, not text"),
        ({"path": ["a.jpg", "b.jpg"], "sky": [[1], [0]]}, r"x\.parquet:1: label '\[1\]' of 'sky' is not 0 or 1"),
        ({"path": ["a.jpg", "b.jpg"], "sky": [1, None]}, r"x\.parquet:2: label 'nan' of 'sky'"),
    ],
)
def test_tables_of_other_types_are_one_line(tmp_path, columns, words):
    pd.DataFrame(columns).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=words):
        read_list(tmp_path / "x.parquet")


def test_a_wrong_cell_is_named_by_its_own_line(tmp_path, recwarn):
    rows = [f"{i}.jpg,{i % 2},1" for i in range(2, 20)]
    rows[12] = "x.jpg,yes,1"
    with pytest.raises(UserError, match=r"x\.csv:14: label 'yes' of 'sky' is not 0 or 1"):
        read_list(write(tmp_path / "x.csv", "\n".join(["path,sky,sea", *rows, ""])))
    for extra in ("a.jpg,1,0\nb.jpg,1,0,1\n", "a.jpg,1,0,1\n"):
        with pytest.raises(UserError, match=r"not a readable table \(Error|more fields a line") as error:
            read_list(write(tmp_path / "x.csv", "path,sky,sea\n" + extra))
        assert "\n" not in str(error.value)
    assert not recwarn.list


def test_leaks_between_lists_are_looked_for_everywhere(tmp_path, photo):
    root = lists_and_images(tmp_path, photo)
    lines = (root / "test.txt").read_text().splitlines(keepends=True)
    write(root / "val.txt", "".join(lines[:3]) + (root / "database.txt").read_text().splitlines(keepends=True)[-1])
    with pytest.raises(UserError, match=r"val\.txt:1: 3 val images are queries too, the first im/"):
        from_lists.load(LISTS, root)
    train = (root / "train.txt").read_text()
    write(root / "train.txt", lines[5] + train)
    data = from_lists.load(LISTS, root, drop_leaks=True)
    assert (len(data.val), len(data.database), len(data.train)) == (1, 39, 10) and len(data.notes) == 3
    (root / "val.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt:1: 1 train images are queries too"):
        from_lists.load(LISTS, root)


def test_published_images_stay_as_stored(tmp_path, photo):
    lists_and_images(tmp_path, photo)
    assert from_lists.load(LISTS, tmp_path).source.upright
    assert not from_lists.load(replace(LISTS, name="coco", own=False), tmp_path).source.upright
    assert not any(p.own for name, p in PROTOCOLS.items() if name != "lists")


@pytest.mark.slow
def test_the_check_says_what_training_would(tmp_path, photo, cli):
    root = lists_and_images(tmp_path, photo)
    (root / "im/020.jpg").unlink()
    (root / "database.txt").unlink()
    write(root / "train.txt", "".join(f"im/{i:03d}.jpg 1\n" for i in range(10, 30)))
    write(root / "test.txt", "im/000.jpg 1\n")
    code, _ = cli("scripts.check_data", "--dataset", "lists", "--data-dir", root)
    assert "2 problems: data set lists: its val part is empty" in code
    assert "train.txt:11: im/020.jpg is not there" in code and code.count("im/020") == 1


# Shards


def test_a_cut_or_corrupt_shard_is_refused(tmp_path):
    members = {f"{i}.{ending}": data for i in range(4) for ending, data in (("png", png(i)), ("cls", b"0"))}
    whole = tar_of(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        heads = [member.offset for member in tar]
        end = tar.offset
    assert len(shards.index_shard(tmp_path / "whole.tar").names) == 4
    corrupt = bytearray(whole)
    corrupt[heads[4]] ^= 1
    zeroed = whole[: heads[4]] + bytes(1024) + whole[heads[4] + 1024 :]
    cuts = [whole[:at] for head in heads[1:] for at in (head, head + 100, head + 512, head + 530)]
    for damaged in (*cuts, whole[:end], whole[: end + 512], bytes(corrupt), zeroed, whole + b"more"):
        (tmp_path / "bad.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad\.tar: .*write"):
            shards.index_shard(tmp_path / "bad.tar")


@pytest.mark.parametrize("label", ["\u00b2", "9" * 5000, "0" * 5000, "1000000000", "100000", "-1", "1.0", "\u0663"])
def test_class_numbers_are_ascii_and_not_absurd(label):
    with pytest.raises(UserError, match="neither a class number below 100,000"):
        shards.parse_labels(label, "x")
    assert shards.parse_labels("0099999\n", "x") == [99999]


def test_a_query_in_the_database_shards_is_found_by_content(tmp_path):
    for part, first in (("train", 0), ("test", 3)):
        numbers = range(first, first + 4)  # 3 is in both
        tar_of(
            tmp_path / f"{part}-0.tar", {f"{i}.{e}": c for i in numbers for e, c in (("png", png(i)), ("cls", b"0"))}
        )
    with pytest.raises(UserError, match=r"1 database images.*train-0\.tar/3\.png is test-0\.tar/3\.png"):
        shards.load(tmp_path)
    data = shards.load(tmp_path, drop_leaks=True, cache_dir=tmp_path / "cache")
    assert len(data.database) == len(data.train) == 3 and len(list((tmp_path / "cache").glob("*.npz"))) == 1


def test_shards_hold_each_image_once_and_no_query_to_search(tmp_path, photo, capsys):
    data = from_lists.load(LISTS, lists_and_images(tmp_path / "lists", photo))
    files = write_shards(data, tmp_path / "shards", per_shard=9)
    assert "6 queries are left out of the database shards" in capsys.readouterr().out
    held = [name for file in files for name in shards.index_shard(file).names]
    assert len(held) == len(data.source) == 46 and not list((tmp_path / "shards").glob("train-*.tar"))
    again = shards.load(tmp_path / "shards")
    kept = {
        "database": np.setdiff1d(data.database, data.val),
        **{part: getattr(data, part) for part in ("train", "val", "test")},
    }
    for part, rows in kept.items():
        before, after = data.source.digests[rows], again.source.digests[getattr(again, part)]
        assert (before == after).all()


def test_one_column_of_0_and_1_is_not_written_as_class_numbers(tmp_path):
    data = digits.load(limit=10)
    with pytest.raises(UserError, match="one 0/1 column can't be told from class numbers"):
        write_shards(replace(data, labels=data.labels[:, :1]), tmp_path / "s", per_shard=9)


def test_training_images_that_are_not_searched_have_shards_of_their_own(tmp_path):
    data = digits.load(limit=20)
    write_shards(replace(data, database=data.database[10:]), tmp_path / "s", per_shard=100)
    again = shards.load(tmp_path / "s")
    assert (len(again.train), len(again.database)) == (20, 10) and set(again.database) < set(again.train)


def test_photographs_in_shards_are_upright(tmp_path):
    for i, orientation in enumerate((1, 6, 3, 8)):
        content = lying(tmp_path / f"{i}.jpg", orientation).read_bytes()
        part = "train" if i < 2 else "test"
        tar_of(tmp_path / f"{part}-{i}.tar", {"1.jpg": content, "1.cls": b"0"})
    assert [tuple(image.shape[1:]) for image in shards.load(tmp_path).source] == [
        (20, 40),
        (40, 20),
        (20, 40),
        (40, 20),
    ]
