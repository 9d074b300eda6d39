"""Tar shards: what is written is read back, and every fault is one line."""

import io
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from test_data import make_folder

from data import digits, folder, shards
from data.load import add_data_arguments, load_data
from data.views import eval_batches
from scripts.make_shards import write_shards
from utils.errors import UserError
from utils.options import Parser


def tar_of(file, members: dict[str, bytes]):
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (9, 7), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def sets_of(tmp_path, photo):
    yield digits.load(limit=20)
    make_folder(tmp_path / "photos", photo)
    yield folder.load(tmp_path / "photos")


def test_a_data_set_survives_its_shards(tmp_path, photo):
    for number, images in enumerate(sets_of(tmp_path, photo)):
        out = tmp_path / f"shards{number}"
        files = write_shards(images, out, per_shard=7)
        again = shards.load(out)
        # Both train on the whole database, whose images are written once.
        assert len(files) == sum(-(-len(getattr(images, part)) // 7) for part in ("database", "test", "val"))
        for part in shards.PARTS:
            before, after = getattr(images, part), getattr(again, part)
            assert len(before) == len(after)
            assert all(torch.equal(images.source[i], again.source[j]) for i, j in zip(before, after, strict=True))
            width = again.labels.shape[1]
            assert np.array_equal(images.labels[before][:, :width], again.labels[after])
    assert number == 1  # and of the photographs, what a backbone sees is the same too
    views = (torch.cat(list(eval_batches(d, d.database, 32, 8))) for d in (images, again))
    assert torch.equal(*views)


def test_webdataset_reads_what_we_write_and_we_what_it_writes(tmp_path):
    write_shards(digits.load(limit=10), tmp_path / "ours", per_shard=4)
    urls = sorted(map(str, (tmp_path / "ours").glob("database-*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    assert len(samples) == 10 and samples[0][0].size == (8, 8) and isinstance(samples[0][1], int)

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for part, count in (("train", 4), ("test", 6)):
        with webdataset.TarWriter(f"{theirs}/{part}-0.tar") as tar:
            for i in range(count):
                tar.write({"__key__": f"a/{i}", "png": png(10 * count + i), "cls": b"0 1 1", "json": {"more": 1}})
    found = shards.load(theirs)
    assert (len(found.train), len(found.database), len(found.val), len(found.test)) == (4, 4, 3, 3)
    assert found.labels.tolist() == [[0, 1, 1]] * 10 and found.source[2][0, 0, 0] == 42


def test_no_shards_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no train-\*\.tar"):
        shards.load(tmp_path)
    tar_of(tmp_path / "train-0.tar", {"1.png": png(), "1.cls": b"0"})
    with pytest.raises(UserError, match=r"no test-\*\.tar"):
        shards.load(tmp_path)


@pytest.mark.parametrize(
    "members, words",
    [
        ({"1.png": png()}, "1 has no .cls label"),
        ({"1.cls": b"0"}, "1 has no image"),
        ({"1.png": png(), "1.cls": b"cat"}, "1.cls: 'cat' is neither"),
        ({"1.png": png(), "1.cls": b""}, "1.cls: '' is neither"),
        ({"1.png": png(), "1.cls": b"0 2"}, "1.cls: '0 2' is neither"),
        ({"1.png": png(), "1.jpg": png(), "1.cls": b"0"}, "1.jpg: its key comes twice"),
    ],
)
def test_faults_are_one_line(tmp_path, members, words):
    with pytest.raises(UserError, match=words):
        shards.index_shard(tar_of(tmp_path / "train-0.tar", members))


def test_a_truncated_or_foreign_file_is_refused(tmp_path):
    whole = tar_of(tmp_path / "whole.tar", {f"{i}.png": png() * 20 for i in range(4)}).read_bytes()
    for content in (whole[:700], b"no tar at all" * 100):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(UserError, match="truncated or no uncompressed tar"):
            shards.index_shard(tmp_path / "bad.tar")


def test_labels_of_two_widths_and_a_broken_image_are_named(tmp_path):
    tar_of(tmp_path / "train-0.tar", {"1.png": png(), "1.cls": b"0 1"})
    tar_of(tmp_path / "test-0.tar", {"1.png": b"broken", "1.cls": b"0 1", "2.png": png(1), "2.cls": b"1 0"})
    found = shards.load(tmp_path)
    with pytest.raises(UserError, match=r"test-0\.tar: 1\.png: not a readable image"):
        [found.source[i] for i in range(3)]
    tar_of(tmp_path / "test-0.tar", {"1.png": png(), "1.cls": b"1", "2.png": png(), "2.cls": b"0"})
    with pytest.raises(UserError, match="different widths"):
        shards.load(tmp_path)


def test_shards_are_a_data_set_of_the_command_lines(tmp_path, capsys):
    out = tmp_path / "shards"
    write_shards(digits.load(limit=12), out, per_shard=100)
    parser = Parser("")
    add_data_arguments(parser)
    load_data(parser.parse_args(["--dataset", "shards", "--data-dir", str(out)]))
    assert "12 train" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already"):
        write_shards(digits.load(limit=12), out, per_shard=100)


def test_shards_appear_all_or_not_at_all(tmp_path, monkeypatch):
    images, encoded = digits.load(limit=12), []

    def stops(index):
        encoded.append(index)
        if len(encoded) > 15:
            raise KeyboardInterrupt
        return "png", png()

    monkeypatch.setattr(images.source, "encoded", stops)
    with pytest.raises(KeyboardInterrupt):
        write_shards(images, tmp_path / "out", per_shard=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_check_decodes_shards(tmp_path, cli):
    for i, part in enumerate(("train", "test")):
        broken = b"broken" + bytes([i])
        tar_of(tmp_path / f"{part}-0.tar", {"1.png": png(i), "1.cls": b"0", "2.png": broken, "2.cls": b"1"})
    check = ["scripts.check_data", "--dataset", "shards", "--data-dir", tmp_path]
    code, said = cli(*check)
    assert code != 0 and "train-0.tar: 2.png: not a readable image" in f"{said}{code}"
    assert cli(*check, "--no-images")[0] == 0
