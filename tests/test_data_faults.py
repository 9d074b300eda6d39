"""Hostile and careless data of one's own: refused in one line, or read as what it is."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from data import content
from data.sources import FileImages, decode
from utils.errors import UserError

# Image files


def test_pillow_opens_named_formats_only(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"x\.jpg: not a readable image \(none of JPEG, PNG"):
        decode(tmp_path / "x.jpg")


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
