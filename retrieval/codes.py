"""Packed binary codes and search by Hamming distance."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import faiss
import numpy as np

from utils.errors import UserError
from utils.files import read_arrays, written_aside

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"  # PyTorch, which takes seconds to import, is not needed here
TRAINING_CODES = "train_codes.npz"  # in a run folder


def to_array(codes: Array) -> np.ndarray:
    """A tensor on any device, or an array, as an array."""
    return codes.numpy(force=True) if hasattr(codes, "numpy") else np.asarray(codes)


def pack(codes: Array) -> np.ndarray:
    """Codes [n, b] (positive or zero: 1, negative: 0) -> uint8 [n, ceil(b/8)], the first bit highest.

    sign(0) = +1, as in ``binarize``. Where 8 does not divide b the last byte is filled with zeros, in every code
    alike, so that no distance changes.
    """
    return np.packbits(to_array(codes) >= 0, axis=1)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of ``pack``: int8 [n, bits] in {-1, +1}."""
    return np.unpackbits(packed, axis=1, count=bits).astype(np.int8) * 2 - 1


def hamming_topk(query: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest database codes of every query, by faiss' counting search.

    Args:
        query, database: packed codes uint8 [q, w] and [n, w], or codes in {-1, +1}, which are packed first.
        k: how many, at most n.

    Returns:
        (distances int32 [q, k], indices int64 [q, k]), ascending; ties in the database's order.
    """
    query, database = (to_array(c) if to_array(c).dtype == np.uint8 else pack(c) for c in (query, database))
    if not 1 <= k <= len(database):
        raise ValueError(f"k is {k}: it must be from 1 to the database's {len(database)} codes")
    if query.shape[1] != database.shape[1]:
        raise ValueError(f"queries of {query.shape[1]} bytes, database of {database.shape[1]}")
    index = faiss.IndexBinaryFlat(8 * database.shape[1])
    # Counting, not a heap: faster, and ties keep the database's order.
    index.use_heap = False  # type: ignore[attr-defined]
    index.add(np.ascontiguousarray(database))
    return index.search(np.ascontiguousarray(query), k)


def write_training_codes(run: Path, codes: Array) -> None:
    """Keep a network's codes of the training images, [n, b], with its run."""
    with written_aside(run / TRAINING_CODES) as file:
        np.savez(file, codes=pack(codes), bits=codes.shape[1])


def read_training_codes(run: Path) -> np.ndarray:
    """The codes that a finished run wrote of its training images, int8 [n, b].

    Raises:
        UserError: missing or damaged.
    """
    file = Path(run) / TRAINING_CODES
    kept = read_arrays(file, codes=("u", 2), bits=("iu", 0))
    if not len(kept["codes"]) or not 0 <= 8 * kept["codes"].shape[1] - kept["bits"] < 8 or kept["bits"] < 1:
        raise UserError(f"{file}: damaged ({kept['codes'].shape[1]} bytes for {kept['bits']} bits); make it again")
    return unpack(kept["codes"], int(kept["bits"]))
