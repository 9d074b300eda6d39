"""Where pixels come from: an array in memory or files on disk; tar shards have a file of their own."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from data.content import content_digests, content_fingerprint, digest_of
from data.decode import pixels_of
from utils.errors import UserError


class ImageSource(ABC):
    """Images by their position, uint8 RGB [3, H, W] each.

    Attributes:
        names: what each image is called.
        stack: all pixels, uint8 [n, 3, H, W], where they are in memory; else None.
        upright: whether each image is turned as its EXIF orientation says.
    """

    names: list[str]
    stack: torch.Tensor | None = None
    upright = False

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @abstractmethod
    def encoded(self, index: int) -> tuple[str, bytes]:
        """(ending without its dot, bytes) of an image file."""

    @cached_property
    @abstractmethod
    def digests(self) -> np.ndarray:
        """uint8 [n, 32], SHA-256 of each image's content: equal for copies, wherever they lie."""

    @cached_property
    def fingerprint(self) -> str:
        """Changes when an image or a name does, not when they move."""
        return content_fingerprint(self.names, self.digests, self.upright)


class ArrayImages(ImageSource):
    """Images of one size held in memory, such as CIFAR-10: pixels uint8 [n, H, W, 3]."""

    stack: torch.Tensor

    def __init__(self, pixels: np.ndarray, names: list[str]):
        self.stack = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # [n, 3, H, W]
        self.names = names

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.stack[index]

    @cached_property
    def digests(self) -> np.ndarray:
        return np.stack([digest_of(image.data) for image in self.stack.numpy()])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every pixel."""
        return hashlib.sha256(self.stack.numpy().data).hexdigest()

    def encoded(self, index: int) -> tuple[str, bytes]:
        buffer = io.BytesIO()
        F.to_pil_image(self.stack[index]).save(buffer, "PNG")
        return "png", buffer.getvalue()


class FileImages(ImageSource):
    """Image files below ``root``; decoded when asked for.

    Args:
        names: paths relative to the root.
        upright: turn each image as its EXIF orientation says.
        cache_dir: where digests are kept, so that a file is read for its digest once; None: nowhere.
    """

    def __init__(self, root: Path, names: list[str], upright: bool = False, cache_dir: Path | None = None):
        self.root = Path(root)
        self.names = names
        self.upright, self.cache_dir = upright, cache_dir

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


def decode(file: Path | BinaryIO, name: str | None = None, upright: bool = False) -> torch.Tensor:
    """An image file as uint8 RGB [3, H, W]; arguments and errors as of ``pixels_of``."""
    return torch.from_numpy(pixels_of(file, name, upright)).permute(2, 0, 1)


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
