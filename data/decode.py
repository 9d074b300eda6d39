"""An image file as pixels; nothing here needs PyTorch, so that a search starts at once."""

import contextlib
import io
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from utils.errors import UserError

# What Pillow may open; without names it tries every plugin, and that of PostScript starts a program. Phones' MPO are
# JPEG with more images behind the first.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
IMAGE_SUFFIXES |= {".avif", ".heic", ".heif"}
RAW_SUFFIXES = {".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
READER = f"1, Pillow {PIL.__version__}"  # what could not be read is tried again by another one
PIXELS = 2  # raised where some files get other pixels than before; ``shown_anew`` tells which
LARGEST, LARGE = 300_000_000, 100_000_000  # pixels; a JPEG above the second is decoded at half its size
Image.MAX_IMAGE_PIXELS = (
    None  # a person's own panorama is no attack; ``LARGEST`` and the server have limits of their own
)
GRAYS = ("1", "L", "LA", "I", "F")  # and those that begin so
SRGB = ImageCms.createProfile("sRGB")
MOST_PROFILE = 2**24  # bytes of a colour profile
HEAD = 32  # bytes that tell a format
BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}


def format_of(head: bytes) -> str | None:
    """Which of ``FORMATS`` a file is that begins with these bytes, whatever its name; None: none of them."""
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in range(8, len(head) - 3, 4)}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIF" if brands & HEIF_BRANDS else None
    if head[:2] == b"BM":
        return "BMP" if int.from_bytes(head[14:18], "little") in BMP_HEADERS else None
    known = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    known |= {b"II+\0": "TIFF", b"MM\0+": "TIFF"}
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in known.items() if head.startswith(magic)), None)


def pixels_of(file: Path | BinaryIO, name: str | None = None, upright: bool = False) -> np.ndarray:
    """An image file as viewers show it, uint8 RGB [H, W, 3] in sRGB, of any mode, alpha over white.

    Args:
        file: a path, or the file's content.
        name: what to call it in errors; a path speaks for itself.
        upright: turn it as its EXIF orientation says (in WebP viewers pass it over).

    Raises:
        UserError: the file is missing, empty, truncated or no image.
    """
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide
            with _opened(content) as image:
                return _pixels(image, upright)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file}: no such image file") from None
    except UnidentifiedImageError:  # Pillow's own words hold an object's address
        raise UserError(f"{name or file}: not a readable image (none of {', '.join(FORMATS)})") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds, by what is damaged
        raise UserError(f"{name or file}: not a readable image ({error or type(error).__name__})") from None


def shown_anew(content: bytes) -> bool:
    """Whether ``PIXELS`` 1 gave other pixels: it left colours alone, turned WebP, and saw through no PNG of 16 bits."""
    try:
        with _opened(content) as image:
            turned = image.format == "WEBP" and image.getexif().get(0x112, 1) != 1
            clear = image.format == "PNG" and content[24] == 16 and "transparency" in image.info
            return turned or clear or _to_srgb(image) is not None
    except Exception:  # a file that can't be read has no pixels
        return False


def opened(content: bytes) -> Image.Image:
    """An image that Pillow has opened, not yet decoded; it learns HEIC, which phones write, when some is met, since
    loading that decoder takes a while."""
    kinds: tuple[str, ...] = FORMATS[:-1]
    if format_of(content[:HEAD]) == "HEIF":
        try:
            import pillow_heif
        except ImportError:
            raise ValueError("HEIC is read by a package that is not installed: pip install pillow-heif") from None
        pillow_heif.register_heif_opener()
        kinds = ("HEIF",)
    return Image.open(io.BytesIO(content), formats=kinds)


def _opened(content: bytes) -> Image.Image:
    """As ``opened``; of a PNG all is checked, and only its pixels and colours are kept."""
    if not content.startswith(b"\x89PNG"):
        return opened(content)
    content, profile = _without_metadata(content)
    opened(content).verify()  # it forgives a last chunk that is cut
    image = opened(content)
    image.info["icc_profile"] = profile
    if content[24] == 16 and isinstance(clear := image.info.get("transparency"), tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # Pillow reads the high bytes
    return image


def _without_metadata(png: bytes) -> tuple[bytes, bytes | None]:
    """(a PNG without its text and colour profile, which Pillow limits, and without other chunks that viewers pass over
    and whose checksum is wrong; the profile)"""
    parts, at, profile = [png[:8]], 8, None
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        kind = png[at + 4 : at + 8]
        if kind[:1].islower():
            whole = zlib.crc32(png[at + 4 : end - 4]).to_bytes(4, "big") == png[end - 4 : end]
            kept = whole and kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
            if whole and kind == b"iCCP":
                with contextlib.suppress(zlib.error):
                    packed = png[png.index(b"\0", at + 8) + 2 : end - 4]
                    profile = zlib.decompressobj().decompress(packed, MOST_PROFILE)
        else:
            kept = True
        parts += [png[at:end]] * kept
        at = end
    return b"".join([*parts, png[at:]]), profile


def _pixels(image: Image.Image, upright: bool) -> np.ndarray:
    width, height = image.size
    if width * height > LARGEST:
        raise ValueError(f"{width * height / 1e6:.0f} megapixels; at most {LARGEST / 1e6:.0f} are read")
    if image.format in ("JPEG", "MPO") and width * height > LARGE:
        image.draft("RGB", (width // 2, height // 2))
    # A GIF's first frame may cover a part of its canvas; viewers show nothing around it, Pillow its first colour.
    tiles: list = getattr(image, "tile", [])
    frame = tiles[0][1] if image.format == "GIF" and tiles else None
    image.load()
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # a fourth byte that nobody meant to be alpha
    rgb = _to_rgb(_upright(image) if upright and image.format != "WEBP" else image)
    if frame and frame != (0, 0, *rgb.size):
        canvas = Image.new("RGB", rgb.size, "white")
        canvas.paste(rgb.crop(frame), (frame[0], frame[1]))
        rgb = canvas
    return np.array(rgb)


def _upright(image: Image.Image) -> Image.Image:
    for key in ("xmp", "XML:com.adobe.xmp"):  # Pillow would look there where EXIF says nothing; viewers do not
        image.info.pop(key, None)
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:  # of the turned copy: the picture as it lies would be another one
        raise
    except Exception:  # damaged EXIF raises a dozen kinds, and is no reason to lose the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    to_srgb, see_through = _to_srgb(image), image.has_transparency_data
    if image.mode.startswith(("I", "F")):
        values, clear = np.asarray(image, dtype=np.float64), image.info.get("transparency")
        image = Image.fromarray(_to_eight_bits(values, image.mode))
        if see_through:
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if to_srgb:
        mode, transform = to_srgb
        alpha = image.convert("RGBA").getchannel("A") if see_through else None
        image = image.convert(mode)
        image = image.point(transform) if isinstance(transform, list) else transform.apply(image)
        if alpha:
            image.putalpha(alpha)
    if see_through:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _to_srgb(image: Image.Image) -> tuple[str, ImageCms.ImageCmsTransform | list[int]] | None:
    """(mode, what turns pixels of that mode into sRGB), by the colour profile or a PNG's gamma; None: they are sRGB."""
    gray = image.mode.startswith(GRAYS)
    if profile := image.info.get("icc_profile"):
        for mode in ("L", "RGB") if gray else ("CMYK",) if image.mode == "CMYK" else ("RGB",):
            if transform := _by_profile(profile, mode):
                return mode, transform
    elif "srgb" not in image.info and abs(2.2 * image.info.get("gamma", 1 / 2.2) - 1) > 0.05:
        light = (np.arange(256) / 255) ** (1 / max(image.info["gamma"], 0.01))
        shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        return "RGB", (255 * shown).round().astype(int).tolist() * 3
    return None


@lru_cache(maxsize=32)
def _by_profile(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None for a profile that is sRGB, as most are, damaged, or of another mode."""
    try:
        how = ImageCms.Intent.RELATIVE_COLORIMETRIC  # as browsers
        transform = ImageCms.buildTransform(io.BytesIO(profile), SRGB, mode, "RGB", how, ImageCms.Flags.NOCACHE)
        if mode == "CMYK":
            return transform
        values = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1) if mode == "RGB" else np.arange(256)[None]
        tried = Image.fromarray(values.reshape(len(values), -1, *values.shape[3:]).astype(np.uint8))
        apart = np.asarray(transform.apply(tried)).astype(int) - np.asarray(tried.convert("RGB"))
        return transform if np.abs(apart).max() > 2 else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _to_eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grayscale wider than 8 bits, by the range that it uses; Pillow's own conversion clips all above 255 to white.

    What is wholly inside 0..1 (floats), 0..255 or 0..65535 has that range; negative values: from least to greatest.
    """
    if not np.isfinite(values).all():
        raise ValueError("it has NaN or infinite pixels")
    low, high = min(values.min(), 0.0), values.max()
    if mode.startswith("I;16"):
        high = 65535.0
    elif low == 0:
        tops = (1.0, 255.0, 65535.0) if mode.startswith("F") else (255.0, 65535.0)
        high = next((top for top in tops if high <= top), high)
    share = (values - low) / max(high - low, np.finfo(float).tiny)
    return (share * 255).round().astype(np.uint8)
