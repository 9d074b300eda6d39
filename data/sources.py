"""Where pixels come from: an array in memory or files on disk; tar shards have a file of their own."""

import hashlib
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from utils.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImageSource(Protocol):
    """Images by their position, uint8 RGB [3, H, W] each.

    Attributes:
        names: what each image is called.
        stack: all pixels, uint8 [n, 3, H, W], where they are in memory; else None.
        fingerprint: changes when an image does.
    """

    names: list[str]
    stack: torch.Tensor | None

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
    def fingerprint(self) -> str:
        """Hash of every pixel."""
        return hashlib.sha256(self.stack.numpy()).hexdigest()

    def encoded(self, index: int) -> tuple[str, bytes]:
        buffer = io.BytesIO()
        F.to_pil_image(self.stack[index]).save(buffer, "PNG")
        return "png", buffer.getvalue()


class FileImages:
    """Image files below ``root``; decoded when asked for. Paths are relative to the root."""

    stack = None

    def __init__(self, root: Path, names: list[str]):
        self.root = Path(root)
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        return decode(self.root / self.names[index])

    def encoded(self, index: int) -> tuple[str, bytes]:
        file = self.root / self.names[index]
        return file.suffix[1:].lower(), file.read_bytes()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every file's name, size and modification time (contents would mean reading them all)."""
        digest = hashlib.sha256(str(self.root.resolve()).encode())
        for name in self.names:
            stat = (self.root / name).stat()
            digest.update(f"{name}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def decode(file: Path | BinaryIO, name: str | None = None) -> torch.Tensor:
    """An image file as uint8 RGB [3, H, W]; grayscale, palette, alpha (over white) and 16-bit files included.

    Args:
        file: a path, or the file's content.
        name: what to call it in errors; a path speaks for itself.

    Raises:
        UserError: the file is missing, empty, truncated or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide
            with Image.open(file) as image:
                image.load()
                return F.pil_to_tensor(_to_rgb(image))
    except FileNotFoundError:
        raise UserError(f"{file}: no such image file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name or file}: not a readable image ({error or type(error).__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # 16-bit and wider grayscale: Pillow's own conversion would clip everything above 255 to white.
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(values.max(initial=0.0), 1.0)
        return Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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
