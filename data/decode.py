"""An image file as pixels; nothing here needs PyTorch, so that a search starts at once."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import UserError

# What Pillow may open; without names it tries every plugin, and that of PostScript starts a program. Phones' MPO are
# JPEG with more images behind the first.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def pixels_of(file: Path | BinaryIO, name: str | None = None, upright: bool = False) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3]; grayscale, palette, alpha (over white) and 16-bit files included.

    Args:
        file: a path, or the file's content.
        name: what to call it in errors; a path speaks for itself.
        upright: turn it as its EXIF orientation says.

    Raises:
        UserError: the file is missing, empty, truncated or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide
            with Image.open(file, formats=FORMATS) as image:
                if image.format != "PNG":
                    return _pixels(image, upright)
                image.verify()  # Pillow forgives a last chunk that is cut; after this it wants the file opened anew
            if not isinstance(file, Path):
                file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                return _pixels(image, upright)
    except FileNotFoundError:
        raise UserError(f"{file}: no such image file") from None
    except UnidentifiedImageError:  # Pillow's own words hold an object's address
        raise UserError(f"{name or file}: not a readable image (none of {', '.join(FORMATS)})") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds, by what is damaged
        raise UserError(f"{name or file}: not a readable image ({error or type(error).__name__})") from None


def _pixels(image: Image.Image, upright: bool) -> np.ndarray:
    image.load()
    return np.array(_to_rgb(_upright(image) if upright else image))


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
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_eight_bits(np.asarray(image, dtype=np.float64), image.mode)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


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
