"""The compiled scan of many queries. Apart, since importing numba takes a while."""

import numpy as np
from numba import njit

from retrieval.compiled import CAN_CACHE, popcount

BLOCK = 4096  # codes that all queries are compared with before the next: they stay in the processor's nearest cache
CHUNK = 64  # codes whose least distance is looked at first


@njit(cache=CAN_CACHE)
def _distance(query: np.ndarray, code: np.ndarray) -> np.uint64:
    total = np.uint64(0)
    for w in range(len(query)):
        total += popcount(np.uint64(query[w] ^ code[w]))
    return total


@njit(cache=CAN_CACHE)
def _least(query: np.ndarray, codes: np.ndarray) -> np.uint64:
    """The least distance in a chunk of codes."""
    least = np.uint64(1 << 32)
    for i in range(len(codes)):
        least = min(least, _distance(query, codes[i]))
    return least


@njit(cache=CAN_CACHE)
def _least_of_one_word(query: np.unsignedinteger, codes: np.ndarray) -> np.uint64:
    """The same for codes [m] of one word each: eight at once where the processor can."""
    least = np.uint64(1 << 32)
    for i in range(len(codes)):
        least = min(least, popcount(np.uint64(query ^ codes[i])))
    return least


@njit(nogil=True, cache=CAN_CACHE)
def scan(queries: np.ndarray, database: np.ndarray, k: int, bins: int, distances: np.ndarray, rows: np.ndarray) -> None:
    """Fill distances int32 and rows int64 [q, k] with the nearest, ascending, ties in the database's order.

    As in a counting search, every distance has its list of rows. As soon as k codes are within a distance, no later one
    of that distance counts; so most chunks hold none that is near enough, and are left after one look.

    Args:
        queries, database: words [q, w] and [n, w], of any unsigned type.
        bins: bits + 1.
    """
    found = np.empty((len(queries), bins, k), np.int64)  # touched only where codes are near
    counts = np.zeros((len(queries), bins), np.int64)
    limits = np.full(len(queries), bins, np.uint64)  # a code of this distance is too far
    totals = np.zeros(len(queries), np.int64)  # codes nearer than that, fewer than k
    one_word = database.shape[1] == 1
    flat = database.reshape(-1)
    for start in range(0, len(database), BLOCK):
        for q in range(len(queries)):
            limit = limits[q]
            for first in range(start, min(start + BLOCK, len(database)), CHUNK):
                chunk = database[first : first + CHUNK]
                if one_word:
                    least = _least_of_one_word(queries[q, 0], flat[first : first + CHUNK])
                else:
                    least = _least(queries[q], chunk)
                if least >= limit:
                    continue
                for i in range(len(chunk)):
                    d = _distance(queries[q], chunk[i])
                    if d < limit:
                        found[q, d, counts[q, d]] = first + i
                        counts[q, d] += 1
                        totals[q] += 1
                        while totals[q] >= k:  # enough are as near as the farthest that counts: it is too far now
                            limit -= np.uint64(1)
                            totals[q] -= counts[q, limit]
            limits[q] = limit
    for q in range(len(queries)):
        at, d = 0, 0
        while at < k:
            for i in range(min(counts[q, d], k - at)):
                distances[q, at], rows[q, at] = d, found[q, d, i]
                at += 1
            d += 1
