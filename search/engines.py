"""What --index names: a file, or a collection on a Milvus server; both have the same methods and results."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from tqdm import tqdm

from search.index import Index, Row
from utils.errors import UserError

SCHEMES = ("milvus://", "milvus+tls://")
NPROBE = 16  # lists of an approximate search
BATCH = 4096  # pictures that are copied at a time


def is_milvus(name: str) -> bool:
    return name.startswith(SCHEMES)


def open_index(name: str, write: bool = False, nprobe: int | None = None) -> Index:
    """Open an index.

    Args:
        name: a file, or milvus://HOST:PORT/NAME.
        write: also change it: it is made where there is none.
        nprobe: search approximately, in so many of the inverted lists; None: exactly.

    Raises:
        UserError: see ``Index`` and ``MilvusIndex``; pymilvus is not installed; a file that is to be searched
            approximately.
    """
    if not is_milvus(name):
        if nprobe is not None:
            raise UserError(f"{name}: an index in a file is always searched exactly; leave --approximate out")
        return Index(Path(name), write)
    try:
        from search.milvus import MilvusIndex  # seldom needed, and takes a second
    except ImportError:
        raise UserError(
            f"{name}: pymilvus is not installed; pip install -r requirements-scale.txt -c constraints.txt"
        ) from None
    return cast(Index, MilvusIndex(name, write, nprobe))  # it has the same methods


def copy(source: Index, to: Index) -> tuple[int, int]:
    """Add all pictures of an index to another, in their order; how many, and how many were there with the same bytes.

    A copy that was killed goes on when it is run again. Thumbnails that the source does not keep are made of the files.

    Raises:
        UserError: the source is empty; the other is of another model, or is not the same in the end.
    """
    from search.encoding import add_new  # pyarrow comes with it, which a search need not wait for

    if (card := source.card) is None or not len(source):
        raise UserError(f"{source.path}: is empty; there is nothing to copy")
    to.set_card(card, source.student)
    ids, codes = source.codes()

    def batches() -> Iterator[list[Row]]:
        for start in tqdm(range(0, len(ids), BATCH), "copying", unit_scale=BATCH, unit="img"):
            records = source.records(ids[start : start + BATCH].tolist())
            yield [
                Row(r.path, r.size, r.mtime_ns, bytes.fromhex(r.digest), code, source.thumbnail(r.id), r.taken)
                for r, code in zip(records, codes[start : start + BATCH], strict=True)
            ]

    copied, there = map(sum, zip(*add_new(to, batches()), strict=True))
    if there:
        follow(source, to)
    to.note_broken(source.broken())
    if fingerprint(source) != fingerprint(to):
        raise UserError(
            f"{to.path}: has {len(to):,} pictures, {source.path} {len(source):,}, not the same ones in the same order; "
            "copy to a new index"
        )
    return copied, there


def follow(source: Index, to: Index) -> None:
    """Sizes and times of pictures that were there before are those of the source: their files may be touched since."""
    for folder in source.folders():
        there, stats = to.known(folder), []
        for name, (_, *stat) in source.known(folder).items():
            if name in there and [*there[name][1:]] != stat:
                stats.append((there[name][0], stat[0], stat[1]))
        for start in range(0, len(stats), BATCH):
            to.touch(stats[start : start + BATCH])


def fingerprint(index: Index) -> str:
    """Hash of all pictures in the order added: paths, sizes, times, digests and codes; not of ids."""
    ids, codes = index.codes()
    digest = hashlib.sha256(codes.tobytes())
    for start in range(0, len(ids), BATCH):
        for r in index.records(ids[start : start + BATCH].tolist()):
            digest.update(os.fsencode(f"{r.path}\0{r.size} {r.mtime_ns} {r.taken!r} {r.digest}\0"))
    return digest.hexdigest()
