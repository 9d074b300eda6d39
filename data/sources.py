"""Where pixels come from: an array in memory or files on disk; tar shards have a file of their own."""

import hashlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from data.content import content_digests, content_fingerprint, digest_of
from utils.errors import UserError

# What Pillow may open; without names it tries every plugin, and that of PostScript starts a program. Phones' MPO are
# JPEG with more images behind the first.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImageSource(Protocol):
    """Images by their position, uint8 RGB [3, H, W] each.

    Attributes:
        names: what each image is called.
        stack: all pixels, uint8 [n, 3, H, W], where they are in memory; else None.
        digests: uint8 [n, 32], SHA-256 of each image's content: equal for copies, wherever they lie.
        fingerprint: changes when an image or a name does, not when they move.
    """

    names: list[str]
    stack: torch.Tensor | None

    @property
    def digests(self) -> np.ndarray: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> torch.Tensor: ...

    def encoded(self, index: int) -> tuple[str, bytes]:
        """(ending without its dot, bytes) of an image file."""
        ...


class ArrayImages:
    """Images of one size held in memory, such as CIFAR-10: pixels uint8 [n, H, W, 3]."""

    def __init__(self, pixels: np.ndarray, names: list[str]):
        self.stack = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # [n, 3, H, W]
        self.names = names

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.stack[index]

    @cached_property
    def digests(self) -> np.ndarray:
        return np.stack([digest_of(image) for image in self.stack.numpy()])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every pixel."""
        return hashlib.sha256(self.stack.numpy()).hexdigest()

    def encoded(self, index: int) -> tuple[str, bytes]:
        buffer = io.BytesIO()
        F.to_pil_image(self.stack[index]).save(buffer, "PNG")
        return "png", buffer.getvalue()


class FileImages:
    """Image files below ``root``; decoded when asked for.

    Args:
        names: paths relative to the root.
        upright: turn each image as its EXIF orientation says.
        cache_dir: where digests are kept, so that a file is read for its digest once; None: nowhere.
    """

    stack = None

    def __init__(self, root: Path, names: list[str], upright: bool = False, cache_dir: Path | None = None):
        self.root = Path(root)
        self.names = names
        self.upright, self.cache_dir = upright, cache_dir

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        return decode(self.root / self.names[index], upright=self.upright)

    def encoded(self, index: int) -> tuple[str, bytes]:
        file = self.root / self.names[index]
        return file.suffix[1:].lower(), file.read_bytes()

    @cached_property
    def digests(self) -> np.ndarray:
        paths = [os.path.join(self.root, name) for name in self.names]  # Path's own joining takes ten times as long
        stats = np.array([(s.st_size, s.st_mtime_ns) for s in map(os.stat, paths)], dtype=np.int64).reshape(-1, 2)
        return content_digests(self.names, stats, lambda i: Path(paths[i]).read_bytes(), self.root, self.cache_dir)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every file's name and content."""
        return content_fingerprint(self.names, self.digests, self.upright)


def decode(file: Path | BinaryIO, name: str | None = None, upright: bool = False) -> torch.Tensor:
    """An image file as uint8 RGB [3, H, W]; grayscale, palette, alpha (over white) and 16-bit files included.

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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name or file}: not a readable image ({error or type(error).__name__})") from None


def _pixels(image: Image.Image, upright: bool) -> torch.Tensor:
    image.load()
    return F.pil_to_tensor(_to_rgb(_upright(image) if upright else image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF raises a dozen kinds, and is no reason to lose the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_eight_bits(np.asarray(image, dtype=np.float64), image.mode)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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


def broken_images(source: ImageSource, workers: int = 4) -> dict[int, str]:
    """Decode every image of a source once; {position: why} of those that do not decode."""

    def reason(index: int) -> str | None:
        try:
            source[index]
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        reasons = tqdm(pool.map(reason, range(len(source))), "checking images", len(source), unit="img", leave=False)
        return {index: why for index, why in enumerate(reasons) if why}
