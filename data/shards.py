"""Images in WebDataset tar shards: train-*.tar, test-*.tar and, if there are any, database-*.tar and val-*.tar.

A sample is KEY.jpg (or another image) with KEY.cls, which holds a class number, or a 0/1 row such as "0 1 0". A
database image with an empty KEY.train beside it is trained on too, so that no image is written twice; the training
images are those of train-*.tar and the marked ones. Without database shards the training images are searched. The heads
of a shard's members are read once; then each image is one read at its offset, so shards need no unpacking, and under
torchrun each rank reads the images of its turns alone. Write shards of any data set with

    python -m scripts.make_shards --dataset folder --data-dir ROOT --out SHARDS
"""

import io
import os
import re
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.content import content_digests
from data.dataset import HashingData, one_hot, without_shared_content
from data.decode import IMAGE_SUFFIXES
from data.sources import ImageSource, decode
from data.tree import ends_here
from utils.errors import UserError
from utils.seeds import seed_of

PARTS = ("train", "database", "test", "val")
K = 5000
CLASS_NUMBER = re.compile("0{0,20}[0-9]{1,5}")  # below 100,000: each is a column of labels


class ShardImages(ImageSource):
    """Images inside tar files, read at their offsets.

    Args:
        shards: the tar files.
        names: shard/KEY.jpg of each image.
        places: int64 [n, 3]: which shard, offset and size of each image in bytes.
        upright: turn each image as its EXIF orientation says.
        cache_dir: where digests are kept; None: nowhere.
    """

    def __init__(
        self,
        shards: list[Path],
        names: list[str],
        places: np.ndarray,
        upright: bool = False,
        cache_dir: Path | None = None,
    ):
        self.shards, self.names, self.places = shards, names, places
        self.upright, self.cache_dir = upright, cache_dir
        self._handles: dict[int, int] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handles": {}}  # another process opens its own

    def read(self, index: int) -> bytes:
        shard, offset, size = self.places[index].tolist()
        if shard not in self._handles:
            self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return os.pread(self._handles[shard], size, offset)  # no shared position: safe from many threads

    def __getitem__(self, index: int) -> torch.Tensor:
        shard = self.shards[self.places[index, 0]]
        member = self.names[index].removeprefix(f"{shard.name}/")
        return decode(io.BytesIO(self.read(index)), f"{shard}: {member}", self.upright)

    def encoded(self, index: int) -> tuple[str, bytes]:
        return self.names[index].rsplit(".", 1)[1], self.read(index)

    @cached_property
    def digests(self) -> np.ndarray:
        times = np.array([shard.stat().st_mtime_ns for shard in self.shards], dtype=np.int64)
        stats = np.stack([self.places[:, 2], times[self.places[:, 0]]], axis=1)
        return content_digests(self.names, stats, self.read, self.shards[0].parent, self.cache_dir)


def key_and_ending(name: str) -> tuple[str, str]:
    """A member's name at the first dot of its last part, as WebDataset has it: "a.b/7.seg.png" -> ("a.b/7", "seg.png");
    ("", "") for what has no key or no dot."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return (f"{folder}{slash}{stem}", ending) if stem and dot else ("", "")


def parse_labels(text: str, where: str) -> list[int]:
    """ "7" or "0 1 0" as numbers."""
    words = text.split()
    if not all(map(CLASS_NUMBER.fullmatch, words)) or not words or (len(words) > 1 and not set(words) <= {"0", "1"}):
        shown = text.strip()[:40]
        raise UserError(f"{where}: '{shown}' is neither a class number below 100,000 nor a row of 0 and 1")
    return [int(w) for w in words]


@dataclass(frozen=True)
class ShardIndex:
    """A shard's samples, in its order: names, (offset, size), labels, and which are marked to be trained on."""

    names: list[str]
    places: list[tuple[int, int]]
    labels: list[list[int]]
    marked: list[bool]


def index_shard(shard: Path) -> ShardIndex:
    """Where a shard's samples are.

    Raises:
        UserError: no readable tar, a cut one, or a sample without its image, its label, or with two of either.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, list[int]] = {}
    marks: dict[str, bool] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, ending = key_and_ending(member.name)
                if not member.isfile() or not key:
                    continue
                if f".{ending.lower()}" in IMAGE_SUFFIXES:
                    twice, images[key] = key in images, (member.name, member.offset_data, member.size)
                elif ending == "cls" and (content := tar.extractfile(member)):
                    text = content.read().decode()
                    twice, labels[key] = key in labels, parse_labels(text, f"{shard}: {member.name}")
                elif ending == "train":
                    twice, marks[key] = key in marks, True
                else:
                    continue
                if twice:
                    raise UserError(f"{shard}: {member.name}: its key comes twice; keys must be unique in a shard")
        with open(shard, "rb") as file:
            if not ends_here(file, tar.offset):
                raise UserError(f"{shard}: cut or damaged; write or copy it again")
    except FileNotFoundError:
        raise UserError(f"{shard}: no such shard") from None
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{shard}: truncated or no uncompressed tar file ({error}); write it again") from None
    if odd := sorted(images.keys() ^ labels.keys()):
        raise UserError(f"{shard}: {odd[0]} has {'no .cls label' if odd[0] in images else 'no image'}")
    if not images:
        raise UserError(f"{shard}: holds no image; remove it, or write or copy it again")
    return ShardIndex(
        [f"{shard.name}/{name}" for name, _, _ in images.values()],
        [(offset, size) for _, offset, size in images.values()],
        [labels[key] for key in images],
        [key in marks for key in images],
    )


def label_rows(labels: list[list[int]], names: list[str], root: Path) -> np.ndarray:
    """Class numbers or 0/1 rows of all samples as uint8 [n, L]."""
    width = len(labels[0])
    if other := next((i for i, row in enumerate(labels) if len(row) != width), None):
        raise UserError(
            f"{root / names[other]}: labels of different widths, {len(labels[other])} here, {width} in {names[0]}"
        )
    rows = np.array(labels)
    return one_hot(rows[:, 0], int(rows.max()) + 1) if width == 1 else rows.astype(np.uint8)


def load(root: Path, seed: int = 0, drop_leaks: bool = False, cache_dir: Path | None = None) -> HashingData:
    """A data set from shards. Without val shards half of the test images, drawn by the seed, validates.

    Args:
        drop_leaks: leave images that are queries too out of the database and the training images, not refuse.
        cache_dir: where the images' digests are kept.

    Raises:
        UserError: no shards of a part that is needed, a faulty shard, or a query in the database, by content.
    """
    root = Path(root)
    files = {part: sorted(root.glob(f"{part}-*.tar")) for part in PARTS}
    for part, there in (("train", files["train"] or files["database"]), ("test", files["test"])):
        if not there:
            raise UserError(
                f"{root}: no {part}-*.tar; `python -m scripts.make_shards --out {root}` writes shards of a data set"
            )
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels: list[list[int]] = []
    marked: list[bool] = []
    rows: dict[str, list[int]] = {part: [] for part in PARTS}
    shards = [(part, shard) for part in PARTS for shard in files[part]]
    for number, (part, shard) in enumerate(tqdm(shards, "reading shards", unit="shard", leave=False)):
        index, first = index_shard(shard), len(names)
        rows[part] += range(first, first + len(index.names))
        names += index.names
        places += [(number, offset, size) for offset, size in index.places]
        labels += index.labels
        marked += [part == "database" and mark for mark in index.marked]
    rows["train"] += np.flatnonzero(marked).tolist()
    if not rows["train"]:
        raise UserError(f"{root}: no image to train on: no train-*.tar, and no KEY.train beside a database image")
    train, database, test, val = (np.array(rows[part], dtype=np.int64) for part in PARTS)
    matrix, notes = label_rows(labels, names, root), []
    if not len(database):
        database = train
    if not len(val):
        test = np.random.RandomState(seed_of("validation queries", seed) % 2**32).permutation(test)
        val, test = test[: len(test) // 2], test[len(test) // 2 :]
        notes.append("validation queries: half of the test shards")
    source = ShardImages([shard for _, shard in shards], names, np.array(places, dtype=np.int64), True, cache_dir)
    parts = {"train": train, "database": database, "val": val, "test": test}
    parts, dropped = without_shared_content(root, source, parts, drop_leaks)
    return HashingData(
        name="shards",
        source=source,
        labels=matrix,
        classes=[str(i) for i in range(matrix.shape[1])],
        train=parts["train"],
        database=parts["database"],
        val=parts["val"],
        test=parts["test"],
        k=K,
        notes=notes + dropped,
        title=f"shards {root.resolve().name}",
    )
