"""Codes held in memory in the order they were added, and the exact scan over them.

A query is scanned by faiss' counting search, which ``IndexBinaryFlat`` runs too; here it reads the array as it is, so
that a hundred million codes are in memory once. Many queries together are scanned by compiled code of our own.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from utils.machine import cores

BLOCK = 4096  # ids a block
COUNTERS = 1 << 28  # bytes that one counting search may take: (bits + 1) * k places a query
MANY, WORTH_COMPILING = 4, 1 << 28  # queries, and comparisons in all, from which on compiled code is worth its start
GROUP = 128  # queries, of all threads, that look at the database together

Block = tuple[int, np.ndarray, np.ndarray]  # number, places uint16 [m], codes uint8 [m, w]


def nearest(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(distances int32 [q, k], rows int64 [q, k]) of the k nearest codes, ascending; ties in the database's order.

    The same as ``retrieval.codes.hamming_topk``, without its copy of the database.

    Args:
        queries, database: packed codes uint8 [q, w] and [n, w], contiguous.
        k: how many, at most n.
    """
    if not len(queries) or not k:
        return np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
    group = COUNTERS // (8 * (8 * database.shape[1] + 1) * k)
    if not group:  # most of the database is asked for: sorting takes less memory
        parts = [_sorted(query, database, k) for query in queries]
    elif len(queries) >= MANY and len(queries) * len(database) >= WORTH_COMPILING:
        return _batched(queries, database, k, min(group, GROUP))
    else:
        parts = [
            faiss.knn_hamming(queries[i : i + group], database, k, variant="mc") for i in range(0, len(queries), group)
        ]
    distances, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return distances, rows


def _batched(queries: np.ndarray, database: np.ndarray, k: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """By all threads, a group of queries each: several times as fast as faiss, which counts every code's distance."""
    from search.compiled import scan

    q, bits = len(queries), 8 * database.shape[1]
    threads = cores()
    group = max(1, min(group // threads, -(-q // threads)))
    distances, rows = np.empty((q, k), np.int32), np.empty((q, k), np.int64)
    queries, database = _words(queries), _words(database)
    parts = [slice(i, i + group) for i in range(0, q, group)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda p: scan(queries[p], database, k, bits + 1, distances[p], rows[p]), parts))
    return distances, rows


def _words(codes: np.ndarray) -> np.ndarray:
    """As words, of the longest type that fills a code."""
    return codes.view(f"u{next(size for size in (8, 4, 2, 1) if codes.shape[1] % size == 0)}")


def _sorted(query: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.zeros(len(database), np.uint16)
    for byte, column in zip(query, database.T, strict=True):
        distances += np.bitwise_count(column ^ byte)
    rows = np.argsort(distances, kind="stable")[:k]  # of 16 bits: a radix sort
    return distances[rows][None].astype(np.int32), rows[None]


class Snapshot:
    """The codes at one moment, never changed: a search goes on with it while a newer one is made.

    Code r has the id ``BLOCK * numbers[b] + places[r]``, where block b is the one that row r lies in: ten bytes a
    picture of 64 bits, and no Python object. A newer snapshot that only has more codes shares their memory.

    Attributes:
        codes: uint8 [n, w], in the order of ids.
        selections: rows and codes of what filters have let through, by filter.
        version: of the index that it is of.
    """

    selections: dict[object, tuple[np.ndarray, np.ndarray]]
    version: int

    def __init__(self, blocks: Iterable[Block], n: int, width: int):
        room = n + n // 8 + BLOCK  # untouched memory costs nothing
        self._places, self._codes = np.empty(room, np.uint16), np.empty((room, width), np.uint8)
        self._fill(np.empty(0, np.int64), np.zeros(1, np.int64), blocks)

    def _fill(self, numbers: np.ndarray, starts: np.ndarray, blocks: Iterable[Block]) -> None:
        at, new_numbers, new_starts = int(starts[-1]), [], []
        for number, places, codes in blocks:
            self._places[at : at + len(places)] = places
            self._codes[at : at + len(places)] = codes
            at += len(places)
            new_numbers.append(number)
            new_starts.append(at)
        self.numbers = np.append(numbers, np.array(new_numbers, np.int64))
        self.starts = np.append(starts, np.array(new_starts, np.int64))
        self.places, self.codes, self.selections = self._places[:at], self._codes[:at], {}

    def __len__(self) -> int:
        return len(self.codes)

    def _block(self, b: int) -> Block:
        rows = slice(self.starts[b], self.starts[b + 1])
        return int(self.numbers[b]), self.places[rows], self.codes[rows]

    def changed(self, blocks: list[Block]) -> "Snapshot":
        """As it is with these blocks, ascending, in the place of those of their numbers."""
        first = int(np.searchsorted(self.numbers, blocks[0][0]))
        kept, grown = int(self.starts[min(first, len(self.numbers))]), sum(len(places) for _, places, _ in blocks)
        if self._grows(first, blocks) and kept + grown <= len(self._places):
            newer = object.__new__(Snapshot)
            newer._places, newer._codes = self._places, self._codes
            newer._fill(self.numbers[:first], self.starts[: first + 1], blocks)
            return newer
        merged = {int(number): self._block(b) for b, number in enumerate(self.numbers)}
        merged |= {block[0]: block for block in blocks}
        n = sum(len(places) for _, places, _ in merged.values())
        return Snapshot((merged[number] for number in sorted(merged)), n, self.codes.shape[1])

    def _grows(self, first: int, blocks: list[Block]) -> bool:
        """Whether all of these codes come behind what is known, so that no row of this snapshot would change."""
        if first == len(self.numbers):
            return True
        number, places, codes = blocks[0]
        _, known, before = self._block(first)
        m = len(known)
        return (
            first == len(self.numbers) - 1
            and number == self.numbers[first]
            and np.array_equal(places[:m], known)
            and np.array_equal(codes[:m], before)
        )

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Ids of rows, int64 of the same shape."""
        block = np.searchsorted(self.starts, rows, side="right") - 1
        return self.numbers[block] * BLOCK + self.places[rows]

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows of ids, int64 ascending; ids that are not here are left out."""
        found = [np.empty(0, np.int64)]
        numbers = ids // BLOCK
        firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
        at = np.searchsorted(self.numbers, numbers[firsts])
        for b, wanted in zip(at.tolist(), np.split(ids, firsts[1:]) if len(ids) else [], strict=True):
            if b < len(self.numbers) and self.numbers[b] == wanted[0] // BLOCK:
                number, places, _ = self._block(b)
                places = places + np.int64(number * BLOCK)
                inside = np.searchsorted(places, wanted)
                here = inside < len(places)
                here[here] = places[inside[here]] == wanted[here]
                found.append(self.starts[b] + inside[here])
        return np.concatenate(found)
