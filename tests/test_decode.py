"""Image files as people have them: what is in them decides, not their names or their metadata."""

import io
import struct
import sys
import zlib

import numpy as np
import pillow_heif
import pytest
from conftest import ROOT
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(ROOT / "benchmarks"))

from viewers import SRGB, cmyk_profile, corpus, curve, png, profile, rgb_profile, turned

from data import decode
from data.content import digest_of, seen_digest
from data.decode import FORMATS, HEAD, format_of, pixels_of, shown_anew
from utils.errors import UserError

IMAGE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 50, 3)).astype(np.uint8))


def content(kind: str, image: Image.Image = IMAGE, **more) -> bytes:
    if kind == "HEIF":
        pillow_heif.register_heif_opener()
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def read(data: bytes, **more) -> np.ndarray:
    return pixels_of(io.BytesIO(data), "x", **more)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_known_by_its_first_bytes_and_read(kind, tmp_path):
    data = content(kind)
    assert format_of(data[:HEAD]) == kind and read(data).shape == (40, 50, 3)
    file = tmp_path / "IMG_1.unknown"
    file.write_bytes(data)
    assert np.array_equal(pixels_of(file), read(data))


@pytest.mark.parametrize(
    "data", [b"", b"BMW drives by", b"%PDF-1.7", b"\0\0\0\x20ftypisom", b"RIFF\0\0\0\0WAVE", b"GIF"]
)
def test_other_files_are_none_of_them(data):
    assert format_of(data[:HEAD]) is None
    with pytest.raises(UserError, match=r"x: not a readable image \(none of JPEG, PNG, .*HEIF\)"):
        read(data)


def chunk(kind: bytes, data: bytes, right: bool = True) -> bytes:
    check = zlib.crc32(kind + data) if right else 1
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def test_metadata_that_pillow_refuses_costs_no_png():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    assert np.array_equal(read(content("PNG", pnginfo=info)), np.array(IMAGE))
    plain, at = content("PNG"), 33  # behind the head
    for more in (chunk(b"tEXt", b"a\0b", False), chunk(b"tIME", b"1234567", False), chunk(b"iCCP", b"no profile")):
        assert np.array_equal(read(plain[:at] + more + plain[at:]), np.array(IMAGE))


def test_a_damaged_or_cut_png_is_refused():
    plain = content("PNG")
    at = plain.index(b"IDAT") + 20
    for data in (plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :], plain[:-6], plain[: len(plain) // 2]):
        with pytest.raises(UserError, match="x: not a readable image"):
            read(data)


def test_around_a_gifs_first_frame_there_is_nothing():
    """As in a browser, where the page shows through."""
    small = content("GIF", Image.new("RGB", (10, 8), "black"))
    width, height = struct.pack("<H", 30), struct.pack("<H", 20)
    at = small.index(b"\x2c", 13)  # the frame's own head
    whole = small[:6] + width + height + small[10 : at + 1] + struct.pack("<HH", 5, 4) + small[at + 5 :]
    pixels = read(whole)
    assert pixels.shape == (20, 30, 3) and not pixels[4:12, 5:15].any()
    pixels[4:12, 5:15] = 255
    assert (pixels == 255).all()


def bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """A BMP of version 4, whose masks say that the fourth byte is alpha."""
    height, width = rgba.shape[:2]
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = (
        struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    )
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def test_a_bmp_whose_alpha_nobody_set_is_opaque():
    rgba = np.dstack([np.array(IMAGE), np.zeros((40, 50), np.uint8)])
    assert np.array_equal(read(bmp_with_alpha(rgba)), np.array(IMAGE))
    rgba[0, 0, 3] = 255
    assert (read(bmp_with_alpha(rgba))[1:] == 255).all()


def test_large_photographs_are_decoded_at_half_their_size(monkeypatch):
    monkeypatch.setattr(decode, "LARGE", 1000)
    assert read(content("JPEG")).shape == (20, 25, 3) and read(content("PNG")).shape == (40, 50, 3)
    monkeypatch.setattr(decode, "LARGEST", 1999)
    with pytest.raises(UserError, match="0 megapixels; at most 0 are read"):
        read(content("PNG"))


def test_two_hundred_megapixels_are_read():
    assert read(content("JPEG", Image.new("L", (20_000, 10_000), 77))).shape == (5_000, 10_000, 3)


SMOOTH = Image.fromarray(np.random.RandomState(1).randint(40, 216, (4, 5, 3)).astype(np.uint8)).resize((50, 40))
SWAPPED = rgb_profile(SRGB, order="bgr")  # red and blue are each other's


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("GIF", "BMP")])
def test_colours_are_those_that_the_profile_means(kind):
    pixels = read(content(kind, SMOOTH, icc_profile=SWAPPED, quality=95)).astype(int)
    assert np.abs(pixels - np.array(SMOOTH)[..., ::-1]).mean() < 6
    assert np.abs(pixels - np.array(SMOOTH)).mean() > 20


def test_profiles_of_gray_palettes_alpha_and_inks():
    gray, white = SMOOTH.convert("L"), Image.new("L", SMOOTH.size, 255)
    linear = profile(b"GRAY", {b"kTRC": curve(1)})
    light = np.array(gray) / 255
    shown = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    for image in (gray, Image.merge("LA", (gray, white))):
        assert np.abs(read(content("PNG", image, icc_profile=linear))[..., 0] - shown).max() <= 2
    clear = SMOOTH.copy()
    clear.putalpha(Image.linear_gradient("L").resize(SMOOTH.size))
    for image, mode in ((clear, "PNG"), (SMOOTH.quantize(64), "PNG"), (clear, "WEBP")):
        plain = read(content(mode, image, lossless=True))
        assert (
            np.abs(read(content(mode, image, lossless=True, icc_profile=SWAPPED)) - plain[..., ::-1].astype(int)).mean()
            < 6
        )
    inks = content("JPEG", SMOOTH.convert("CMYK"))
    coated = content("JPEG", SMOOTH.convert("CMYK"), icc_profile=cmyk_profile())
    assert np.abs(read(coated).astype(int) - read(inks)).mean() > 10


def test_a_profile_of_srgb_or_of_nothing_changes_no_pixel():
    for kind in ("JPEG", "PNG"):
        plain = content(kind)
        for other in (
            decode.ImageCms.ImageCmsProfile(decode.SRGB).tobytes(),
            SWAPPED[:200],
            b"no profile",
            cmyk_profile(),
        ):
            same = content(kind, icc_profile=other)
            assert np.array_equal(read(same), read(plain)) and not shown_anew(same)
    assert np.ptp(read(content("JPEG", IMAGE.convert("L"), icc_profile=SWAPPED)), axis=2).max() <= 2  # gray stays gray


def test_light_of_a_png_without_a_profile():
    plain = content("PNG", SMOOTH)
    for chunks, anew in (
        (chunk(b"gAMA", struct.pack(">I", 100_000)), True),
        (chunk(b"gAMA", struct.pack(">I", 45_455)), False),
    ):
        data = plain[:33] + chunks + plain[33:]
        assert (read(data).mean() > read(plain).mean() + 30) == anew == shown_anew(data)
        assert not shown_anew(plain[:33] + chunk(b"sRGB", b"\0") + chunks + plain[33:])


def test_webp_is_turned_by_no_viewer():
    for kind, shape in (("JPEG", (50, 40, 3)), ("PNG", (50, 40, 3)), ("AVIF", (50, 40, 3)), ("WEBP", (40, 50, 3))):
        assert read(content(kind, exif=turned(6)), upright=True).shape == shape
        assert shown_anew(content(kind, exif=turned(6))) == (kind == "WEBP")


def test_a_color_of_sixteen_bits_is_see_through():
    wide = np.random.RandomState(0).randint(0, 3, (20, 30, 3)).astype(np.uint16) * 20_000
    for pixels, clear in ((wide[..., :1], (20_000,)), (wide, (20_000, 0, 20_000))):
        data = png(pixels, (b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
        seen = (pixels != clear).any(axis=-1)
        assert (read(data)[~seen] == 255).all() and np.array_equal(read(data)[seen], read(png(pixels))[seen])
        assert shown_anew(data) and not shown_anew(png(pixels))


def test_only_files_that_are_shown_otherwise_count_as_changed():
    plain, wide = content("JPEG", SMOOTH), content("JPEG", SMOOTH, icc_profile=SWAPPED)
    assert np.array_equal(seen_digest(plain), digest_of(plain))
    assert not np.array_equal(seen_digest(wide), digest_of(wide))


def test_every_odd_file_is_read_at_its_size():
    unread = ("JPEG 2000", "ICO of three sizes", "BMP run-length, parts left out")
    for name, data in corpus().items():
        if name not in unread:
            sizes = ((64, 48, 3),) if "turned by EXIF (" in name or "eXIf" in name else ((48, 64, 3), (64, 48, 3))
            assert read(data, upright=True).shape in sizes, name
