"""What an image is, whatever it is called and wherever it lies: the SHA-256 of its bytes, computed once."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.decode import PIXELS, shown_anew
from utils.files import file_lock, written_aside

WORKERS = 4
CHUNK = 64  # images a task of the pool


def digest_of(content: bytes | memoryview) -> np.ndarray:
    """SHA-256, uint8 [32]."""
    return np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)


def seen_digest(content: bytes) -> np.ndarray:
    """``digest_of`` an image file; where ``data.decode`` shows it otherwise than it once did, of that too, so that
    features and runs of the old pixels are not taken for those of the new, and all others stay valid."""
    return digest_of(content + b"pixels %d" % PIXELS if shown_anew(content) else content)


def _joined(names: Sequence[str]) -> bytes:
    """Names as bytes, whatever bytes they are of."""
    return os.fsencode("\0".join(names))


def content_fingerprint(names: Sequence[str], digests: np.ndarray, upright: bool) -> str:
    """Hash of what images are called and hold and how they are shown; not of where they lie or since when."""
    digest = hashlib.sha256(b"upright" if upright else b"as stored")
    digest.update(digest_of(_joined(names)).data)
    digest.update(np.ascontiguousarray(digests).data)
    return digest.hexdigest()


def content_digests(
    names: Sequence[str], stats: np.ndarray, read: Callable[[int], bytes], root: Path, cache_dir: Path | None
) -> np.ndarray:
    """``seen_digest`` of each image, uint8 [n, 32]; read only where its name and ``stats`` are not in the table.

    Args:
        stats: int64 [n, 2], size and modification time of each.
        read: an image's bytes by its position.
        root: the table in ``cache_dir`` is this folder's.
    """
    if cache_dir is None:
        return _hashed(read, np.arange(len(names)))
    table = (
        Path(cache_dir) / f"content_{PIXELS}_{hashlib.sha256(os.fsencode(Path(root).resolve())).hexdigest()[:32]}.npz"
    )
    with file_lock(table.with_suffix(".lock")):  # of several processes one reads the images, the others wait
        known_names, known_stats, known_digests = _read_table(table)
        at = pd.Index(known_names, dtype=object).get_indexer(pd.Index(names, dtype=object))
        digests = np.zeros((len(names), 32), dtype=np.uint8)
        digests[at >= 0] = known_digests[at[at >= 0]]
        fresh = at < 0
        fresh[~fresh] = (known_stats[at[at >= 0]] != stats[at >= 0]).any(axis=1)
        if fresh.any():
            digests[fresh] = _hashed(read, np.flatnonzero(fresh))
            others = np.setdiff1d(np.arange(len(known_names)), at)  # of other lists over the same folder
            _write_table(
                table,
                [*names, *(known_names[i] for i in others)],
                np.concatenate([stats, known_stats[others]]),
                np.concatenate([digests, known_digests[others]]),
            )
    return digests


def _hashed(read: Callable[[int], bytes], rows: np.ndarray) -> np.ndarray:
    def chunk(first: int) -> np.ndarray:
        return np.stack([seen_digest(read(i)) for i in rows[first : first + CHUNK].tolist()])

    digests = [np.empty((0, 32), dtype=np.uint8)]
    bar = tqdm(total=len(rows), desc="hashing images", unit="img", leave=False)
    with bar, ThreadPoolExecutor(WORKERS) as pool:
        for found in pool.map(chunk, range(0, len(rows), CHUNK)):
            digests.append(found)
            bar.update(len(found))
    return np.concatenate(digests)


def _read_table(file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(names, stats, digests); empty where there is none, or a damaged one: then images are hashed again."""
    with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as table:
        names = os.fsdecode(table["names"].tobytes()).split("\0")
        stats, digests, n = table["stats"], table["digests"], len(set(names))
        if (stats.dtype, stats.shape, digests.dtype, digests.shape) == (np.int64, (n, 2), np.uint8, (n, 32)):
            return names, stats, digests
    return [], np.empty((0, 2), dtype=np.int64), np.empty((0, 32), dtype=np.uint8)


def _write_table(file: Path, names: list[str], stats: np.ndarray, digests: np.ndarray) -> None:
    with written_aside(file) as out:
        np.savez(out, names=np.frombuffer(_joined(names), dtype=np.uint8), stats=stats, digests=digests)
