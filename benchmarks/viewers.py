"""Do we see what viewers show?  python benchmarks/viewers.py

Odd image files, all drawn here, as data/decode.py reads them, as Chromium draws them and as ImageMagick does: mean
absolute differences of 8-bit RGB over white, into results/benchmarks/viewers.md.
"""

import argparse
import base64
import io
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, TiffImagePlugin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.decode import pixels_of  # noqa: E402
from utils.errors import UserError, guarded  # noqa: E402
from utils.files import written_aside  # noqa: E402

WIDE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))  # primaries of Adobe RGB
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DRAW = """async (content) => {
    const image = new Image();
    image.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))]));
    try { await image.decode(); } catch { return null; }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    return [canvas.width, canvas.height, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
}"""


def profile(kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2."""
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249), b"desc": b"desc" + struct.pack(">II", 0, 2) + b"x" + bytes(80)} | tags
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value
    head = struct.pack(">I4xI", at + len(body), 0x02400000) + (b"prtr" if kind == b"CMYK" else b"mntr")
    head += kind + connection + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    return head + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(256 * gamma))


def rgb_profile(primaries: tuple = WIDE, gamma: float = 2.2, order: str = "rgb") -> bytes:
    """Of a screen whose white is D65, adapted to D50."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    colours = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white, d50 = np.array([0.9505, 1, 1.089]), np.array([0.9642, 1, 0.8249])
    adapted = np.linalg.inv(bradford) @ np.diag(bradford @ d50 / (bradford @ white)) @ bradford
    columns = (adapted @ colours * np.linalg.solve(colours, white)).T
    tags = {f"{c}XYZ".encode(): xyz(*column) for c, column in zip(order, columns, strict=True)}
    return profile(b"RGB ", tags | {f"{c}TRC".encode(): curve(gamma) for c in "rgb"})


def cmyk_profile() -> bytes:
    """Inks by a table of their sixteen solid overprints, in Lab: its blue is no ink's complement."""
    inks = np.array([[55, -37, -50], [48, 74, -3], [89, -5, 93], [16, 0, 0]]) - (95, 0, -2)
    corners = np.array([[i >> 3 & 1, i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(16)])
    lab = np.clip((95, 0, -2) + corners @ inks, (5, -100, -100), 100)
    clut = np.round(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], 1)).astype(np.uint8)
    ramp, unit = bytes(range(256)), np.eye(3).ravel() * 65536
    lut = b"mft1" + struct.pack(">IBBBx9i", 0, 4, 3, 2, *unit.astype(int)) + 4 * ramp + clut.tobytes() + 3 * ramp
    return profile(b"CMYK", {b"A2B0": lut}, b"Lab ")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, *extra: tuple[bytes, bytes], colour: int | None = None, interlaced: bool = False) -> bytes:
    """Any kind of PNG of 8 or 16 bits; extra chunks stand before the pixels."""
    height, width, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if colour is None else colour
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = (row for x, y, dx, dy in (passes if interlaced else [(0, 0, 1, 1)]) for row in pixels[y::dy, x::dx])
    data = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, interlaced)
    parts = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bmp(head: int, bits: int, kind: int, pixels: bytes, masks: tuple = (), palette: bytes = b"", up: int = 1) -> bytes:
    start = 14 + max(head, 40) + len(palette)
    info = struct.pack("<IiiHHIIiiII", head, 64, 48 * up, 1, bits, kind, len(pixels), 0, 0, len(palette) // 4, 0)
    info += struct.pack(f"<{len(masks)}I", *masks) + b"BGRs" * (head > 40)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info.ljust(head, b"\0") + palette + pixels


def tiff(pixels: np.ndarray, kind: int, planes: bool = False, *more: tuple[int, int]) -> bytes:
    """An uncompressed TIFF of one strip, or of one a plane; kind: 0 white is zero, 1 black is, 2 RGB."""
    height, width, channels = pixels.shape
    strips = [pixels[..., c].tobytes() for c in range(channels)] if planes else [pixels.tobytes()]
    lists = {258: [8 * pixels.itemsize] * channels, 279: [len(s) for s in strips]}
    lists[273] = [8 + sum(lists[279][:i]) for i in range(len(strips))]
    lists |= {k: [v] for k, v in ((256, width), (257, height), (259, 1), (262, kind), (277, channels), (278, height))}
    lists |= {284: [1 + planes]} | {k: [v] for k, v in more}
    at = 8 + sum(lists[279])
    table, aside, behind = struct.pack("<H", len(lists)), b"", at + 2 + 12 * len(lists) + 4
    for tag, values in sorted(lists.items()):
        data = struct.pack(f"<{len(values)}I", *values)
        table += struct.pack("<HHI", tag, 4, len(values))
        table += data if len(values) == 1 else struct.pack("<I", behind + len(aside))
        aside += data if len(values) > 1 else b""
    return struct.pack("<2sHI", b"II", 42, at) + b"".join(strips) + table + bytes(4) + aside


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    image.copy().save(buffer := io.BytesIO(), kind, **more)  # a JPEG leaves its settings on an image
    return buffer.getvalue()


def without(jpeg: bytes, marker: int) -> bytes:
    """A JPEG that lacks one kind of its application segments."""
    at = 2
    while jpeg[at + 1] != marker:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4]) :]


def turned(how: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = how
    return exif.tobytes()


def corpus() -> dict[str, bytes]:
    """Files by name; all show one picture of 64 x 48, or a part of it, in some way."""
    pillow_heif.register_heif_opener()
    fields = np.random.RandomState(2).randint(30, 226, (4, 5, 3)).astype(np.uint8)
    image = Image.fromarray(fields).resize((64, 48), Image.Resampling.BICUBIC)
    rgb, gray = np.array(image), np.array(image.convert("L"))[..., None]
    alpha = np.array(Image.fromarray(fields[..., 0]).resize((64, 48)))[..., None]
    rgba, wide, few = np.dstack([rgb, alpha]), rgb.astype(np.uint16) * 257, image.quantize(16)
    seen, cmyk, small = Image.fromarray(rgba), image.convert("CMYK"), image.crop((8, 4, 40, 28))
    swapped, adobe = rgb_profile(order="bgr"), rgb_profile()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    linear_gray = profile(b"GRAY", {b"kTRC": curve(1)})
    inks = 255 - np.array(cmyk)
    ycck = np.dstack([255 - np.array(Image.fromarray(inks[..., :3]).convert("YCbCr")), 255 - inks[..., 3:]])
    ycck = saved(Image.frombytes("CMYK", (64, 48), ycck.tobytes()), "JPEG", subsampling=0, quality=95)
    at = ycck.index(b"Adobe")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    jpeg = {"quality": 95, "subsampling": 0}
    made = {
        "JPEG gray": saved(image.convert("L"), "JPEG", **jpeg),
        "JPEG progressive, 4:2:0": saved(image, "JPEG", progressive=True, quality=90),
        "JPEG stored as RGB": saved(image, "JPEG", keep_rgb=True, **jpeg),
        "JPEG without JFIF": without(saved(image, "JPEG", **jpeg), 0xE0),
        "JPEG CMYK": saved(cmyk, "JPEG", **jpeg),
        "JPEG CMYK without Adobe's marker": without(saved(cmyk, "JPEG", **jpeg), 0xEE),
        "JPEG YCCK": ycck[: at + 11] + b"\2" + ycck[at + 12 :],
        "JPEG CMYK, profile": saved(cmyk, "JPEG", icc_profile=cmyk_profile(), **jpeg),
        "JPEG, sRGB profile": saved(image, "JPEG", icc_profile=srgb.tobytes(), **jpeg),
        "JPEG, sRGB profile of gamma 2.2": saved(image, "JPEG", icc_profile=rgb_profile(SRGB), **jpeg),
        "JPEG, wide gamut": saved(image, "JPEG", icc_profile=adobe, **jpeg),
        "JPEG, swapped channels": saved(image, "JPEG", icc_profile=swapped, **jpeg),
        "JPEG gray, linear profile": saved(image.convert("L"), "JPEG", icc_profile=linear_gray, **jpeg),
        "JPEG gray, profile of RGB": saved(image.convert("L"), "JPEG", icc_profile=swapped, **jpeg),
        "JPEG, damaged profile": saved(image, "JPEG", icc_profile=swapped[:200], **jpeg),
        "JPEG turned by EXIF (6)": saved(image, "JPEG", exif=turned(6), **jpeg),
        "JPEG turned by EXIF (7)": saved(image, "JPEG", exif=turned(7), **jpeg),
        "JPEG turned by XMP": saved(image, "JPEG", xmp=xmp, **jpeg),
        "MPO of two": saved(image, "MPO", save_all=True, append_images=[small], **jpeg),
        "PNG gray of 16 bits": png(wide[..., 1:2]),
        "PNG gray, 12 bits in 16": png(wide[..., 1:2] >> 4, (b"sBIT", b"\x0c")),
        "PNG RGB of 16 bits": png(wide),
        "PNG RGBA of 16 bits": png(rgba.astype(np.uint16) * 257),
        "PNG interlaced": png(rgb, interlaced=True),
        "PNG of 1 bit": saved(image.convert("1"), "PNG"),
        "PNG palette": saved(few, "PNG"),
        "PNG palette of 2 bits": saved(image.quantize(4), "PNG", bits=2),
        "PNG palette, see-through": saved(few, "PNG", transparency=bytes(range(0, 256, 16))),
        "PNG LA": png(np.dstack([gray, alpha])),
        "PNG RGBA over white": png(rgba),
        "PNG gray, one see-through": png(gray // 16 * 16, (b"tRNS", struct.pack(">H", 112))),
        "PNG RGB, one see-through": png(rgb // 64 * 64, (b"tRNS", struct.pack(">3H", 128, 128, 64))),
        "PNG gray of 16 bits, one see-through": png(wide[..., 1:2] & 0xF000, (b"tRNS", struct.pack(">H", 0x7000))),
        "PNG RGB of 16 bits, one see-through": png(wide & 0x8000, (b"tRNS", struct.pack(">3H", 0x8000, 0x8000, 0))),
        "PNG turned by eXIf": png(rgb, (b"eXIf", turned(6)[6:])),
        "PNG, gAMA of 1": png(rgb, (b"gAMA", struct.pack(">I", 100000))),
        "PNG, gAMA of 1/1.8": png(rgb, (b"gAMA", struct.pack(">I", 55556))),
        "PNG, gAMA of 1/2.2": png(rgb, (b"gAMA", struct.pack(">I", 45455))),
        "PNG, gAMA and cHRM wide": png(
            rgb,
            (b"gAMA", struct.pack(">I", 45455)),
            (b"cHRM", struct.pack(">8I", *(round(1e5 * v) for v in (0.3127, 0.329, *sum(WIDE, ()))))),
        ),
        "PNG, sRGB and gAMA": png(rgb, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))),
        "PNG, swapped channels": png(rgb, (b"iCCP", b"x\0\0" + zlib.compress(swapped))),
        "PNG RGBA, swapped channels": png(rgba, (b"iCCP", b"x\0\0" + zlib.compress(swapped))),
        "PNG palette, swapped channels": saved(few, "PNG", icc_profile=swapped),
        "PNG gray, linear profile": png(gray, (b"iCCP", b"x\0\0" + zlib.compress(linear_gray))),
        "PNG RGB of 16 bits, swapped": png(wide, (b"iCCP", b"x\0\0" + zlib.compress(swapped))),
        "PNG, cICP of Display P3": png(rgb, (b"cICP", bytes((12, 13, 0, 1)))),
        "APNG": saved(image, "PNG", save_all=True, append_images=[few.convert("RGB")]),
        "APNG, first picture hidden": saved(
            image, "PNG", save_all=True, append_images=[Image.new("RGB", (64, 48), "navy")], default_image=True
        ),
        "GIF": saved(few, "GIF"),
        "GIF interlaced, see-through": saved(few, "GIF", transparency=3, interlace=1),
        "GIF of frames that end": saved(
            few, "GIF", save_all=True, append_images=[small.quantize(8).resize((64, 48))], disposal=2, background=2
        ),
        "WebP": saved(image, "WEBP", quality=95),
        "WebP see-through": saved(seen, "WEBP", lossless=True, exact=True),
        "WebP of frames": saved(seen, "WEBP", save_all=True, append_images=[image.convert("RGBA")], lossless=True),
        "WebP turned by EXIF": saved(image, "WEBP", exif=turned(6), lossless=True),
        "WebP, swapped channels": saved(image, "WEBP", icc_profile=swapped, lossless=True),
        "AVIF": saved(image, "AVIF", quality=95),
        "AVIF turned (irot)": saved(image, "AVIF", exif=turned(6), quality=95),
        "AVIF mirrored (imir)": saved(image, "AVIF", exif=turned(2), quality=95),
        "AVIF see-through": saved(seen, "AVIF", quality=95),
        "AVIF, swapped channels": saved(image, "AVIF", icc_profile=swapped, quality=95),
        "HEIC": saved(image, "HEIF", quality=95),
        "HEIC turned (irot)": saved(image, "HEIF", exif=turned(6), quality=95),
        "HEIC, swapped channels": saved(image, "HEIF", icc_profile=swapped, quality=95),
        "JPEG 2000": saved(image, "JPEG2000"),
        "ICO of three sizes": saved(seen, "ICO", sizes=[(16, 12), (32, 24), (64, 48)]),
    }
    # A frame of 32 x 24 at (8, 4) of a canvas of 64 x 48.
    part = saved(small.quantize(16), "GIF")
    at = part.index(b"\x2c\0\0\0\0\x20\0\x18\0")
    made["GIF smaller than its canvas"] = (
        part[:6] + struct.pack("<HH", 64, 48) + part[10 : at + 1] + struct.pack("<HH", 8, 4) + part[at + 5 :]
    )
    bgra = np.dstack([rgb[::-1, :, ::-1], alpha[::-1]])
    masks, five = (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (rgb[::-1] >> np.array([3, 2, 3])).astype(np.uint16)
    five = five[..., 0] << 11 | five[..., 1] << 5 | five[..., 2]
    places = np.array(few)[::-1]
    palette = np.pad(np.array(few.getpalette()[:48], np.uint8).reshape(16, 3)[:, ::-1], ((0, 0), (0, 1))).tobytes()
    runs = b"".join(bytes(v for p in row for v in (1, p)) + b"\0\0" for row in places.tolist()) + b"\0\1"
    made |= {
        "BMP with alpha": bmp(124, 32, 3, bgra.tobytes(), masks),
        "BMP, alpha of zeros": bmp(124, 32, 3, (bgra * (1, 1, 1, 0)).astype(np.uint8).tobytes(), masks),
        "BMP of 32 bits, fourth byte in use": bmp(40, 32, 0, bgra.tobytes()),
        "BMP of 565 bits": bmp(56, 16, 3, five.tobytes(), (0xF800, 0x7E0, 0x1F, 0)),
        "BMP from the top": bmp(40, 24, 0, rgb[..., ::-1].tobytes(), up=-1),
        "BMP run-length": bmp(40, 8, 1, runs, palette=palette),
        "BMP run-length, parts left out": bmp(40, 8, 1, b"\0\2\x10\x08" + b"\x20\1\0\0" * 9 + b"\0\1", palette=palette),
    }
    scan = {"compression": "tiff_lzw"}
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x112] = 6
    made |= {
        "TIFF": saved(image, "TIFF", **scan),
        "TIFF gray of 16 bits": saved(Image.fromarray(wide[..., 1]), "TIFF"),
        "TIFF gray, 12 bits in 16": saved(Image.fromarray(wide[..., 1] >> 4), "TIFF"),
        "TIFF of floats": saved(Image.fromarray(gray[..., 0].astype(np.float32) / 255), "TIFF"),
        "TIFF of two pages": saved(image, "TIFF", save_all=True, append_images=[few.convert("RGB")]),
        "TIFF RGB of 16 bits": tiff(wide, 2),
        "TIFF in planes": tiff(rgb, 2, True),
        "TIFF, white is zero": tiff(255 - gray, 0),
        "TIFF of alpha multiplied in": tiff(
            np.dstack([rgb * (alpha / 255), alpha]).astype(np.uint8), 2, False, (338, 1)
        ),
        "TIFF turned": saved(image, "TIFF", tiffinfo=tags),
        "TIFF CMYK": saved(cmyk, "TIFF", **scan),
        "TIFF see-through": saved(seen, "TIFF", **scan),
        "TIFF palette": saved(few, "TIFF"),
        "TIFF of 1 bit, faxed": saved(image.convert("1"), "TIFF", compression="group4"),
        "TIFF with a JPEG inside": saved(image, "TIFF", compression="jpeg", quality=95),
        "TIFF Lab": saved(
            ImageCms.profileToProfile(image, srgb, ImageCms.createProfile("LAB"), outputMode="LAB"), "TIFF"
        ),
        "TIFF, swapped channels": saved(image, "TIFF", icc_profile=swapped, **scan),
    }
    return made


def by_imagemagick(program: str, file: Path, srgb: Path) -> np.ndarray | None:
    """Its first picture on its canvas, upright, in sRGB, over white."""
    words = [f"{file}[0]", "-coalesce", "-auto-orient", *(() if "Lab" in file.name else ("-profile", srgb))]
    words += ["-colorspace", "sRGB", "-background", "white", "-alpha", "remove", "-depth", "8", "-strip", "PPM:-"]
    done = subprocess.run([program, *words], capture_output=True)
    return np.array(Image.open(io.BytesIO(done.stdout)).convert("RGB")) if done.stdout else None


def by_us(content: bytes) -> np.ndarray | None:
    try:
        return pixels_of(io.BytesIO(content), upright=True)
    except UserError:
        return None


def compared(one: np.ndarray | None, two: np.ndarray | None) -> str:
    if one is None or two is None:
        return "–"
    if one.shape != two.shape:
        return f"{one.shape[1]}×{one.shape[0]}, {two.shape[1]}×{two.shape[0]}"
    return f"{np.abs(one.astype(int) - two).mean():.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="a new folder for the files, to be looked at")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "viewers.md")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright  # tests that take the files need no browser

    magick = shutil.which("magick") or shutil.which("convert-im6.q16") or shutil.which("convert")
    if not magick:
        raise UserError("no ImageMagick: apt install imagemagick")
    rows = ["| file | we, Chromium | we, ImageMagick | Chromium, ImageMagick |", "|---|---|---|---|"]
    with TemporaryDirectory() as aside, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page, folder = browser.new_page(), args.keep or Path(aside)
        folder.mkdir(exist_ok=True)
        (srgb := folder / "srgb.icc").write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        for number, (name, content) in enumerate(corpus().items()):
            file = folder / f"{number:02} {name.replace('/', ' ')}"
            file.write_bytes(content)
            drawn = page.evaluate(DRAW, base64.b64encode(content).decode())
            chromium = drawn and np.array(drawn[2], np.uint8).reshape(drawn[1], drawn[0], 4)[..., :3]
            ours, theirs = by_us(content), by_imagemagick(magick, file, srgb)
            cells = compared(ours, chromium), compared(ours, theirs), compared(chromium, theirs)
            rows.append(f"| {name} | {' | '.join(cells)} |")
            print(rows[-1])
        browser.close()
    with written_aside(args.out, "w") as out:
        out.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    guarded(main)
