"""Packed binary codes and search by Hamming distance."""

import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import faiss
import numpy as np

from utils.errors import UserError
from utils.files import read_arrays, written_aside

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"  # PyTorch, which takes seconds to import, is not needed here
TRAINING_CODES = "train_codes.npz"  # in a run folder


def to_array(values: Any) -> np.ndarray:
    """A tensor of any type on any device, an array or a list, as an array."""
    if not hasattr(values, "numpy"):
        return np.asarray(values)
    return (values.float() if values.is_floating_point() else values).numpy(force=True)


def bits_of(codes: Array, what: str = "codes") -> np.ndarray:
    """Codes [n, b] in {-1, +1}, in {0, 1} or bool, as bool [n, b].

    Raises:
        ValueError: another shape or other values.
    """
    codes = to_array(codes)
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"{what}: [n, b] is needed, not {list(codes.shape)}")
    one = codes == 1
    if (one | (codes == -1)).all() or (one | (codes == 0)).all():
        return one
    packed = "; packed codes are unpacked by retrieval.codes.unpack" if codes.dtype == np.uint8 else ""
    raise ValueError(
        f"{what}: all values must be in {{-1, 1}} or all in {{0, 1}}, not from {codes.min()} to {codes.max()}{packed}; "
        "logits and probabilities become codes by losses.binarize or a threshold"
    )


def pack(codes: Array) -> np.ndarray:
    """Codes [n, b], as of ``bits_of``, or logits -> uint8 [n, ceil(b/8)], the first bit highest.

    Logits are floats of which some are negative; positive or zero is 1: sign(0) = +1, as in ``binarize``. Where 8 does
    not divide b the last byte is filled with zeros, in every code alike, so that no distance changes.

    Raises:
        ValueError: another shape, probabilities, or values that are no numbers.
    """
    values = to_array(codes)
    logits = values.ndim == 2 and values.dtype.kind == "f" and (values < 0).any() and not np.isnan(values).any()
    return np.packbits(values >= 0 if logits else bits_of(values), axis=1)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of ``pack``: int8 [n, bits] in {-1, +1}."""
    return np.unpackbits(packed, axis=1, count=bits).astype(np.int8) * 2 - 1


def hamming_topk(query: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest database codes of every query, by faiss' counting search.

    Args:
        query, database: packed codes uint8 [q, w] and [n, w], or codes as ``pack`` takes them.
        k: how many, at most n.

    Raises:
        ValueError: codes of different widths, or k.

    Returns:
        (distances int32 [q, k], indices int64 [q, k]), ascending; ties in the database's order.
    """
    query, database = (to_array(c) if to_array(c).dtype == np.uint8 else pack(c) for c in (query, database))
    k = operator.index(k)  # faiss takes no integer of numpy
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
