"""Images in WebDataset tar shards: train-*.tar, test-*.tar and, if there are any, database-*.tar and val-*.tar.

A sample is KEY.jpg (or another image) with KEY.cls, which holds a class number, or a 0/1 row such as "0 1 0". The heads
of a shard's members are read once; then each image is one read at its offset, so shards need no unpacking, and under
torchrun each rank reads the images of its turns alone. Write shards of any data set with

    python -m scripts.make_shards --dataset folder --data-dir ROOT --out SHARDS
"""

import hashlib
import io
import os
import tarfile
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from webdataset.tariterators import base_plus_ext

from data.dataset import HashingData, one_hot
from data.sources import IMAGE_SUFFIXES, decode
from utils.errors import UserError
from utils.seeds import seed_of

PARTS = ("train", "database", "test", "val")
K = 5000


class ShardImages:
    """Images inside tar files, read at their offsets.

    Args:
        shards: the tar files.
        names: shard/KEY.jpg of each image.
        places: int64 [n, 3]: which shard, offset and size of each image in bytes.
    """

    stack = None

    def __init__(self, shards: list[Path], names: list[str], places: np.ndarray):
        self.shards, self.names, self.places = shards, names, places
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        shard, offset, size = self.places[index].tolist()
        if shard not in self._handles:
            self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return os.pread(self._handles[shard], size, offset)  # no shared position: safe from many threads

    def __getitem__(self, index: int) -> torch.Tensor:
        return decode(io.BytesIO(self.read(index)), self.names[index])

    def encoded(self, index: int) -> tuple[str, bytes]:
        return self.names[index].rsplit(".", 1)[1], self.read(index)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every member's place and of every shard's name, size and modification time."""
        digest = hashlib.sha256(self.places.tobytes() + "\n".join(self.names).encode())
        for shard in self.shards:
            stat = shard.stat()
            digest.update(f"{shard.resolve()}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def parse_labels(text: str, where: str) -> list[int]:
    """ "7" or "0 1 0" as numbers."""
    words = text.split()
    if not words or not all(w.isdigit() for w in words) or (len(words) > 1 and not set(words) <= {"0", "1"}):
        raise UserError(f"{where}: '{text.strip()[:40]}' is neither a class number nor a row of 0 and 1")
    return [int(w) for w in words]


def index_shard(shard: Path) -> tuple[list[str], list[tuple[int, int]], list[list[int]]]:
    """(names, offsets and sizes, labels) of a shard's samples, in its order.

    Raises:
        UserError: no readable tar, or a sample without its image, its label, or with two of either.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, list[int]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, ending = base_plus_ext(member.name)
                if not member.isfile() or key is None:
                    continue
                if f".{ending.lower()}" in IMAGE_SUFFIXES:
                    members, value = images, (member.name, member.offset_data, member.size)
                elif ending == "cls":
                    text = tar.extractfile(member).read().decode()
                    members, value = labels, parse_labels(text, f"{shard}: {member.name}")
                else:
                    continue
                if key in members:
                    raise UserError(f"{shard}: {member.name}: its key comes twice; keys must be unique in a shard")
                members[key] = value
    except FileNotFoundError:
        raise UserError(f"{shard}: no such shard") from None
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{shard}: truncated or no uncompressed tar file ({error}); write it again") from None
    if odd := sorted(images.keys() ^ labels.keys()):
        raise UserError(f"{shard}: {odd[0]} has {'no .cls label' if odd[0] in images else 'no image'}")
    return (
        [f"{shard.name}/{name}" for name, _, _ in images.values()],
        [(offset, size) for _, offset, size in images.values()],
        [labels[key] for key in images],
    )


def label_rows(labels: list[list[int]], where: Path) -> np.ndarray:
    """Class numbers or 0/1 rows of all samples as uint8 [n, L]."""
    widths = {len(row) for row in labels}
    if len(widths) > 1:
        raise UserError(f"{where}: its shards have labels of different widths ({', '.join(map(str, sorted(widths)))})")
    rows = np.array(labels)
    return one_hot(rows[:, 0], int(rows.max()) + 1) if widths == {1} else rows.astype(np.uint8)


def load(root: Path, seed: int = 0) -> HashingData:
    """A data set from shards. Without database shards the training images are searched; without val shards half of
    the test images, drawn by the seed, validates.

    Raises:
        UserError: no shards of a part that is needed, or a faulty shard.
    """
    root = Path(root)
    files = {part: sorted(root.glob(f"{part}-*.tar")) for part in PARTS}
    for part in ("train", "test"):
        if not files[part]:
            raise UserError(
                f"{root}: no {part}-*.tar; `python -m scripts.make_shards --out {root}` writes shards of a data set"
            )
    shards = [shard for part in PARTS for shard in files[part]]
    names, places, labels, rows = [], [], [], {part: [] for part in PARTS}
    for number, shard in enumerate(tqdm(shards, "reading shards", unit="shard", leave=False)):
        inside, spans, known = index_shard(shard)
        part = next(p for p in PARTS if shard in files[p])
        rows[part] += range(len(names), len(names) + len(inside))
        names += inside
        places += [(number, offset, size) for offset, size in spans]
        labels += known
    train, database, test, val = (np.array(rows[part], dtype=np.int64) for part in PARTS)
    notes = []
    if not len(database):
        database = train
    if not len(val):
        test = np.random.RandomState(seed_of("validation queries", seed) % 2**32).permutation(test)
        val, test = test[: len(test) // 2], test[len(test) // 2 :]
        notes.append("validation queries: half of the test shards")
    matrix = label_rows(labels, root)
    return HashingData(
        name="shards",
        source=ShardImages(shards, names, np.array(places, dtype=np.int64)),
        labels=matrix,
        classes=[str(i) for i in range(matrix.shape[1])],
        train=train,
        database=database,
        val=val,
        test=test,
        k=K,
        notes=notes,
    )
