"""The same picture: files of the same bytes, and edited copies, near by their codes and alike at a second look.

Codes say what is seen in a picture, so another of its kind may be as near as an edited copy. The second look is a
perceptual hash (the low frequencies of the picture in gray, above or below their median), as many libraries have it; it
is written out since the browser needs it too.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.decode import opened
from search.index import Hit, Index, Record
from search.scan import nearest
from utils.files import written_aside

GRAY, LOW = 32, 8  # pixels a side that are looked at; frequencies
ALIKE = 10  # bits of a look that differ, at most: of 12,000 edited photographs one was taken for another
LOOKED = 100  # of the nearest
KNOWN: dict[str, np.ndarray] = {}  # looks by content: a picture that is found often is decoded once
MOST_KNOWN = 2**17
NEIGHBOURS, PART = 32, 1024  # of each picture that may be copies; pictures at a time
SAME, NEAR = "same bytes", "near copy"
WAVES = np.cos(np.pi * np.outer(np.arange(LOW), 2 * np.arange(GRAY) + 1) / (2 * GRAY))


@dataclass(frozen=True)
class Group:
    """Pictures that are one: the one to keep first (most pixels, then the largest file, then the oldest)."""

    pictures: list[Record]

    def kind(self, picture: Record) -> str:
        """How it is like the one to keep."""
        return SAME if picture.digest == self.pictures[0].digest else NEAR


def look_at(image: Image.Image) -> np.ndarray:
    """What the second look sees, uint8 [8]."""
    gray = np.asarray(image.convert("L").reduce(max(1, min(image.size) // (2 * GRAY))), np.float64)
    height, width = map(shares, gray.shape)
    low = (WAVES @ height @ gray @ width.T @ WAVES.T).ravel()[1:]  # less the mean
    return np.packbits(np.append(False, low > np.median(low)))


@lru_cache(maxsize=256)
def shares(n: int) -> np.ndarray:
    """[GRAY, n]: the part that each of n pixels has in the mean of each of ``GRAY`` equal pieces."""
    edges, pixel = np.arange(GRAY + 1)[:, None] * n / GRAY, np.arange(n)
    return np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None) * GRAY / n


def look_of(index: Index, picture: int) -> np.ndarray | None:
    """Of the thumbnail; None where there is none."""
    try:
        image = Image.open(io.BytesIO(index.thumbnail(picture)), formats=["JPEG"])
        image.draft("L", (2 * GRAY, 2 * GRAY))
        return look_at(image)
    except (OSError, KeyError):
        return None


def alike(look: np.ndarray | None, index: Index, hit: Hit) -> bool:
    """Whether a picture that was found is likely the one that was looked at."""
    if look is None:
        return False
    if (other := KNOWN.get(hit.content)) is None:
        if (other := look_of(index, hit.id)) is None:
            return False
        if len(KNOWN) >= MOST_KNOWN:
            KNOWN.clear()
        KNOWN[hit.content] = other
    return bool(np.bitwise_count(look ^ other).sum() <= ALIKE)


def duplicates(index: Index) -> list[Group]:
    """All groups, in the order added."""
    ids, codes = index.codes()
    digests = np.empty(len(ids), "V32")
    for part in parts(len(ids), "comparing bytes"):
        digests[part] = [bytes.fromhex(record.digest) for record in index.records(ids[part].tolist())]
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    one, two = near(codes[first], index.bits // 4)
    wanted = np.unique(np.concatenate([one, two]))
    looks, seen = np.zeros((len(first), LOW), np.uint8), np.zeros(len(first), bool)
    for row in tqdm(wanted, "looking again", unit="img", leave=False):
        if (look := look_of(index, int(ids[first[row]]))) is not None:
            looks[row], seen[row] = look, True
    same = seen[one] & seen[two] & (np.bitwise_count(looks[one] ^ looks[two]).sum(axis=1) <= ALIKE)
    label = connected(len(first), one[same], two[same])[group]
    order = np.argsort(label, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []
    several = (index.records(ids[rows].tolist()) for rows in groups if len(rows) > 1)
    return [
        Group(sorted(records, key=lambda one: (-pixels_in(one.path), -one.size, one.taken, one.id)))
        for records in several
    ]


def pixels_in(path: str) -> int:
    """Width times height; 0 where the file is not there, or in a shard."""
    try:
        return math.prod(opened(Path(path).read_bytes()).size)
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0


def near(codes: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of codes at most so many bits apart."""
    found = [np.empty((2, 0), np.int64)]
    for part in parts(len(codes), "comparing codes"):
        distances, rows = nearest(codes[part], codes, min(NEIGHBOURS, len(codes)))
        at, column = np.nonzero((distances <= radius) & (rows != np.arange(part.start, part.stop)[:, None]))
        found.append(np.stack([at + part.start, rows[at, column]]))
    one, two = np.concatenate(found, axis=1)
    return one, two


def connected(n: int, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The least row that each of n rows is joined to, by whatever way."""
    label = np.arange(n)
    while True:
        before = label.copy()
        np.minimum.at(label, one, before[two])
        np.minimum.at(label, two, label[one])
        label = label[label]
        if np.array_equal(label, before):
            return label


def parts(n: int, what: str) -> Iterator[slice]:
    for start in tqdm(range(0, n, PART), what, unit_scale=PART, unit="img", leave=False):
        yield slice(start, min(start + PART, n))


def write_list(groups: list[Group], file: Path) -> None:
    rows = csv.writer(text := io.StringIO())
    rows.writerow(["group", "what", "path", "bytes"])
    for number, group in enumerate(groups, 1):
        for picture in group.pictures:
            what = "keep" if picture is group.pictures[0] else group.kind(picture)
            rows.writerow([number, what, picture.path, picture.size])
    with written_aside(file) as binary:
        binary.write(text.getvalue().encode("utf-8", "surrogateescape"))
