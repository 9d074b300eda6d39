"""Retrieval metrics over binary codes: pure functions, no Python loop over queries.

AP@k = sum over ranks r <= k of precision(r) * rel(r), divided by D. The field's habit is D = relevant items among the
k retrieved ("retrieved", 0 where there are none); information retrieval's are min(k, R) ("min") and R ("total"), with
R the query's relevant items in the whole database. mAP is the mean over queries.

b bits give only b + 1 distances, so most ranks are ties. "stable" ranks ties in the database's order; "expected" is
the exact expectation of AP@k over uniformly random orders of each tie.

Under torchrun every process calls these functions with the same codes, searches its part of the database, and all get
the whole's result.
"""

import operator
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy.special import gammaln

from retrieval.codes import Array, bits_of, hamming_topk, pack, to_array
from retrieval.compiled import CAN_CACHE, popcount
from utils import distributed

DENOMINATORS = ("retrieved", "min", "total")
TIES = ("stable", "expected")


def label_rows(query_labels: Array, database_labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Labels as 0/1 rows uint8 [q, L] and [n, L].

    Args:
        query_labels, database_labels: both class numbers or names [.], a column for each in ascending order; or both
            0/1 rows [., L].

    Raises:
        ValueError: other shapes or values, or no query shares a label with any database item.
    """
    query, database = to_array(query_labels), to_array(database_labels)
    shapes = f"{list(query.shape)} and {list(database.shape)}"
    if query.ndim == database.ndim == 1:
        if "f" in (query.dtype.kind, database.dtype.kind) and not (query % 1 == 0).all() * (database % 1 == 0).all():
            raise ValueError("class numbers must be whole numbers")
        classes, numbers = np.unique(np.concatenate([query, database]), return_inverse=True)
        rows = np.zeros((len(numbers), len(classes)), dtype=np.uint8)
        rows[np.arange(len(numbers)), numbers] = 1
        query, database = rows[: len(query)], rows[len(query) :]
    elif query.ndim != 2 or database.ndim != 2 or query.shape[1] != database.shape[1]:
        raise ValueError(f"labels: classes [q] and [n], or rows [q, L] and [n, L] are needed, not {shapes}")
    for rows in (query, database):
        whole = rows.dtype.kind in "bui" or (rows.dtype.kind == "f" and not (rows % 1).any())
        if not whole or not 0 <= rows.min() <= rows.max() <= 1:
            raise ValueError(f"label rows: values must be 0 or 1; classes are of shape [n], not {list(rows.shape)}")
    query, database = query.astype(np.uint8), database.astype(np.uint8)
    if not query[:, database.any(axis=0)].any():
        raise ValueError("no query shares a label with any database item: mAP would be 0, whatever the codes")
    return query, database


def checked(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Codes as bool, labels as 0/1 rows, and k, at most the database.

    Raises:
        ValueError: what makes no sense, by name.
    """
    codes = bits_of(query_codes, "query codes"), bits_of(database_codes, "database codes")
    if codes[0].shape[1] != codes[1].shape[1]:
        raise ValueError(f"query codes have {codes[0].shape[1]} bits, database codes {codes[1].shape[1]}")
    labels = label_rows(query_labels, database_labels)
    for what, these, those in zip(("query", "database"), codes, labels, strict=True):
        if len(these) != len(those):
            raise ValueError(f"{len(these)} {what} codes, and labels of {len(those)}")
    if operator.index(k) < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    return *codes, *labels, min(operator.index(k), len(codes[1]))


@dataclass(frozen=True)
class Histograms:
    """Per query and distance d: ``total`` and ``relevant`` database items at d, int64 [q, b + 1] each."""

    total: np.ndarray
    relevant: np.ndarray


def distance_histograms(
    query_codes: np.ndarray, database_codes: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray
) -> Histograms:
    """Count the database by distance and relevance; no distance is ever stored.

    Args:
        query_codes, database_codes: bool [q, b] and [n, b].
        query_labels, database_labels: 0/1 rows [q, L] and [n, L].
    """
    bits = query_codes.shape[1]
    mine = distributed.my_shard(len(database_codes))
    counts = sum(
        distributed.gather(
            count_distances(
                _words(pack(query_codes)),
                _words(pack(database_codes[mine])),
                _words(np.packbits(query_labels, axis=1)),
                _words(np.packbits(database_labels[mine], axis=1)),
                bits + 1,
            )
        )
    )
    return Histograms(counts.sum(axis=2), counts[..., 1])


def _words(packed: np.ndarray) -> np.ndarray:
    """uint8 [n, w] -> uint64 [n, ceil(w/8)], filled with zeros."""
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


@njit(parallel=True, nogil=True, cache=CAN_CACHE)
def count_distances(
    query: np.ndarray, database: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray, bins: int
) -> np.ndarray:
    """int64 [q, bins, 2]: database items by Hamming distance and by whether they share a label bit; uint64 words."""
    counts = np.zeros((len(query), bins, 2), dtype=np.int64)
    for q in prange(len(query)):
        # Two histograms in turn: neighbours often fall into one bin, and a counter cannot be bumped twice at once.
        even, odd = np.zeros(2 * bins, dtype=np.int32), np.zeros(2 * bins, dtype=np.int32)
        for i in range(len(database)):
            distance = np.uint64(0)
            for w in range(query.shape[1]):
                distance += popcount(query[q, w] ^ database[i, w])
            shared = np.uint64(0)
            for w in range(query_labels.shape[1]):
                shared |= query_labels[q, w] & database_labels[i, w]
            place = 2 * np.int64(distance) + (shared != 0)
            if i % 2:
                odd[place] += 1
            else:
                even[place] += 1
        counts[q] = (even + odd).reshape(bins, 2)
    return counts


@njit(parallel=True, nogil=True, cache=CAN_CACHE)
def count_shared(query_labels: np.ndarray, database_labels: np.ndarray, bins: int) -> np.ndarray:
    """int64 [q, bins]: database items by how many label bits they share with each query; words are uint64."""
    counts = np.zeros((len(query_labels), bins), dtype=np.int64)
    for q in prange(len(query_labels)):
        for i in range(len(database_labels)):
            shared = np.uint64(0)
            for w in range(query_labels.shape[1]):
                shared += popcount(query_labels[q, w] & database_labels[i, w])
            counts[q, np.int64(shared)] += 1
    return counts


def nearest(query_codes: np.ndarray, database_codes: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of every query by Hamming distance, ties in the database's order: int64 [q, k]."""
    n = len(database_codes)
    mine = distributed.my_shard(n)
    distances, indices = hamming_topk(pack(query_codes), pack(database_codes[mine]), min(k, mine.stop - mine.start))
    if distributed.size() == 1:
        return indices
    # One number that sorts by distance, then by place in the whole database.
    keys = np.concatenate(distributed.gather(distances.astype(np.int64) * n + indices + mine.start), axis=1)
    return np.sort(keys, axis=1)[:, :k] % n


def relevant_among(indices: np.ndarray, query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Which retrieved items share a label with their query, by 0/1 rows [q, L] and [n, L]: bool [q, k] for indices
    [q, k]."""
    return shared_labels(indices, query, database) > 0


def shared_labels(indices: np.ndarray, query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """How many labels each retrieved item shares with its query: int [q, k] for indices [q, k]."""
    query, database = np.packbits(query, axis=1), np.packbits(database, axis=1)  # [., ceil(L/8)]
    count = np.zeros(indices.shape, dtype=np.int16)
    for byte in range(query.shape[1]):
        count += np.bitwise_count(database[indices, byte] & query[:, byte, None])
    return count


def ndcg(indices: np.ndarray, query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """NDCG@k of ranked lists [q, k] with graded relevance (Jarvelin & Kekalainen, TOIS 2002), float [q].

    An item that shares g labels gains 2^g - 1, discounted by log2(rank + 1); divided by what the best order of the
    whole database gains, 0 where that is 0.
    """
    k = indices.shape[1]
    discount = 1 / np.log2(np.arange(2, k + 2))  # [k]
    gained = (np.exp2(shared_labels(indices, query, database)) - 1) @ discount
    most = int(query.sum(axis=1).max(initial=0))
    if most == 1:
        counts = query.astype(np.int64) @ database.sum(axis=0, dtype=np.int64)[:, None]  # [q, 1]
    else:
        words = (_words(np.packbits(labels, axis=1)) for labels in (query, database))
        counts = count_shared(*words, most + 1)[:, :0:-1]  # [q, most] items by shared labels, most first
    # In that order they fill the ideal ranking's ranks.
    filled = np.pad(np.minimum(np.cumsum(counts, axis=1), k), ((0, 0), (1, 0)))  # [q, most + 1]
    totals = np.concatenate([[0.0], np.cumsum(discount)])  # discounts of the first r ranks
    ideal = np.diff(totals[filled], axis=1) @ (np.exp2(np.arange(most, 0, -1)) - 1)
    return np.divide(gained, ideal, out=np.zeros(len(ideal)), where=ideal > 0)


def per_label_precision(indices: np.ndarray, query: np.ndarray, database: np.ndarray) -> list[float | None]:
    """For each label: of the k retrieved by queries that have it, the share that has it too; None if no query does."""
    asked = [np.flatnonzero(query[:, label]) for label in range(query.shape[1])]
    return [float(database[indices[rows], label].mean()) if len(rows) else None for label, rows in enumerate(asked)]


def stable_ap(relevant: np.ndarray, n_relevant: np.ndarray) -> dict[str, np.ndarray]:
    """AP@k of ranked lists, in all three denominators.

    Args:
        relevant: bool [q, k], best first.
        n_relevant: int [q]: each query's relevant items in the whole database.
    """
    k = relevant.shape[1]
    hits = np.cumsum(relevant, axis=1, dtype=np.int32)  # [q, k]
    gain = np.einsum("qk,qk,k->q", relevant, hits, 1 / np.arange(1, k + 1))
    return _divide(gain, {"retrieved": hits[:, -1], "min": np.minimum(n_relevant, k), "total": n_relevant})


def _divide(gain: np.ndarray, denominators: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.divide(gain, d, out=np.zeros(len(gain)), where=d > 0) for name, d in denominators.items()}


def tie_gain(
    total: np.ndarray,
    relevant: np.ndarray,
    before: np.ndarray,
    hits_before: np.ndarray,
    kept: np.ndarray,
    harmonic: np.ndarray,
) -> np.ndarray:
    """Expected sum of precision * rel over the first ``kept`` ranks of items at one distance, in random order.

    Args:
        total, relevant: how many they are, and how many of them relevant; before, hits_before: both of all before.
        harmonic: [i] is 1 + 1/2 + ... + 1/i.
    """
    zeros = np.zeros_like(total)
    slope = np.divide(relevant - 1, total - 1, out=zeros.copy(), where=total > 1)
    share = np.divide(relevant, total, out=zeros, where=total > 0)
    # sum over s=1..kept of (a + (s-1) slope) / (N+s), a = R+1: kept*slope + (a - (N+1) slope) * (H[N+kept] - H[N])
    start, stop = before.astype(np.int64), (before + kept).astype(np.int64)
    last = len(harmonic) - 1
    span = harmonic[np.minimum(stop, last)] - harmonic[np.minimum(start, last)]
    return share * (kept * slope + (hits_before + 1 - (before + 1) * slope) * span)


def expected_ap(histograms: Histograms, k: int) -> dict[str, np.ndarray]:
    """AP@k in expectation over random tie orders, in all three denominators, from the histograms alone.

    A tie of t items, r of them relevant, after N items with R relevant, fills ranks N+1..N+t. At its position s the
    item is relevant with probability r/t, and given that, (s-1)(r-1)/(t-1) of those before it in the tie are too:
    E[precision * rel] = r/t * (R + 1 + (s-1)(r-1)/(t-1)) / (N+s). Summed over s (up to rank k) this is a difference
    of harmonic numbers. For "retrieved", whose D is random where rank k cuts a tie, the expectation of the ratio is
    taken over the hypergeometric number of hits in the part kept.
    """
    total, relevant = histograms.total.astype(np.float64), histograms.relevant.astype(np.float64)
    n_items = int(total[0].sum())
    k = min(k, n_items)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n_items + 1))])
    end = np.cumsum(total, axis=1)
    before, hits_before = end - total, np.cumsum(relevant, axis=1) - relevant
    kept = np.clip(k - before, 0, total)  # [q, b + 1] how much of each tie is within rank k

    whole = tie_gain(total, relevant, before, hits_before, kept, harmonic)
    gain = whole.sum(axis=1)
    n_relevant = relevant.sum(axis=1)
    result = _divide(gain, {"min": np.minimum(n_relevant, k), "total": n_relevant})

    # "retrieved": condition on h hits in the kept part of the tie that rank k cuts; given h, they lie at random there.
    rows = np.arange(len(total))
    cut = (end >= k).argmax(axis=1)  # [q] the tie that holds rank k
    t, r, m = (a[rows, cut] for a in (total, relevant, kept))
    n0, r0 = before[rows, cut], hits_before[rows, cut]
    base = gain - whole[rows, cut]  # gain of the ties before, all kept whole
    h = np.arange(int(np.minimum(m, r).max(initial=0)) + 1)[None]  # [1, H]
    chance = _hypergeometric(h, t[:, None], r[:, None], m[:, None])  # [q, H]
    wide = np.broadcast_to(m[:, None], chance.shape)
    inner = tie_gain(wide, h + 0.0 * wide, n0[:, None], r0[:, None], wide, harmonic)
    hits = r0[:, None] + h
    ratio = np.divide(base[:, None] + inner, hits, out=np.zeros_like(inner), where=hits > 0)
    result["retrieved"] = (chance * ratio).sum(axis=1)
    return {name: result[name] for name in DENOMINATORS}


def _hypergeometric(h: np.ndarray, total: np.ndarray, good: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """P(h good among ``drawn`` of ``total`` items with ``good`` good ones); 0 where impossible."""

    def log_choose(n: np.ndarray, m: np.ndarray) -> np.ndarray:
        return gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)

    possible = (h <= good) & (h <= drawn) & (drawn - h <= total - good)
    h = np.where(possible, h, np.maximum(drawn - (total - good), 0))  # some possible value, masked below
    log = log_choose(good, h) + log_choose(total - good, drawn - h) - log_choose(total, drawn)
    return np.where(possible, np.exp(log), 0.0)


def mean_average_precision(
    query_codes: Array,
    database_codes: Array,
    query_labels: Array,
    database_labels: Array,
    k: int,
    denominator: str = "retrieved",
    ties: str = "stable",
) -> float:
    """mAP@k of binary codes; see the module's text for the definitions.

    Args:
        query_codes, database_codes: [q, b] and [n, b] in {-1, +1}, in {0, 1} or bool: arrays, tensors on any device,
            or lists.
        query_labels, database_labels: class numbers or names [.], or 0/1 rows [., L]; relevant = at least one label
            shared.
        k: cut-off; more than the database means all of it.
        denominator: "retrieved" (default), "min" or "total".
        ties: "stable" (default: the database's order) or "expected" (over random orders).

    Raises:
        ValueError: an unknown denominator or tie rule, k < 1, codes or labels of other shapes or values, or nothing
            relevant to any query.
    """
    if denominator not in DENOMINATORS or ties not in TIES:
        raise ValueError(f"denominator is one of {DENOMINATORS}, ties one of {TIES}; got {denominator!r}, {ties!r}")
    *data, k = checked(query_codes, database_codes, query_labels, database_labels, k)
    query, database, *labels = data
    if ties == "expected":
        return float(expected_ap(distance_histograms(*data), k)[denominator].mean())
    relevant = relevant_among(nearest(query, database, k), *labels)
    if denominator == "retrieved":
        n_relevant = np.zeros(len(relevant), dtype=np.int64)
    else:
        n_relevant = distance_histograms(*data).relevant.sum(axis=1)
    return float(stable_ap(relevant, n_relevant)[denominator].mean())


def retrieval_report(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array, k: int
) -> dict:
    """Everything about one search setting in one pass; arguments and errors as of ``mean_average_precision``.

    Returns:
        ``map``: {"stable/retrieved": value, ...} for both tie rules and all denominators at ``k``; ``map_all``: the
        same, expected over ties, over the whole database; ``precision_at``: {rank: value}; ``precision_recall``:
        within each Hamming radius: precision, mean over the queries that find anything there; recall, mean over all;
        and the share of queries ``answered``; ``precision_radius_2``: precision of what
        lies within radius 2 (0 for a query with nothing there); ``ndcg``: NDCG@k by shared
        labels; ``per_label_precision``: see there; ``curve``: precision@1..k as an array; ``ap``: AP@k of each
        query (stable, retrieved);
        ``indices``: the first ten retrieved.
    """
    *data, k = checked(query_codes, database_codes, query_labels, database_labels, k)
    query, database, *labels = data
    histograms = distance_histograms(*data)
    n_relevant = histograms.relevant.sum(axis=1)
    indices = nearest(query, database, k)
    relevant = relevant_among(indices, *labels)
    stable, expected = stable_ap(relevant, n_relevant), expected_ap(histograms, k)
    within, hits = np.cumsum(histograms.total, axis=1), np.cumsum(histograms.relevant, axis=1)  # [q, b + 1]
    precision = np.divide(hits, within, out=np.zeros(hits.shape), where=within > 0)
    answered = (within > 0).sum(axis=0)  # [b + 1] queries that find anything within each radius
    recall = np.divide(hits, n_relevant[:, None], out=np.zeros(hits.shape), where=n_relevant[:, None] > 0)
    curve = (np.cumsum(relevant, axis=1) / np.arange(1, k + 1)).mean(axis=0)  # [k]
    ranks = sorted({r for r in (1, 10, 100, 1000, 5000) if r <= k} | {k})
    return {
        "k": k,
        "map": {
            f"{ties}/{d}": float(ap[d].mean())
            for ties, ap in (("stable", stable), ("expected", expected))
            for d in DENOMINATORS
        },
        "map_all": float(expected_ap(histograms, len(database))["total"].mean()),
        "precision_at": {str(r): float(curve[r - 1]) for r in ranks},
        "precision_radius_2": float(precision[:, min(2, precision.shape[1] - 1)].mean()),
        "precision_recall": {
            "precision": (precision.sum(axis=0) / np.maximum(answered, 1)).tolist(),
            "recall": recall.mean(axis=0).tolist(),
            "answered": (answered / len(within)).tolist(),
        },
        "ndcg": float(ndcg(indices, *labels).mean()),
        "per_label_precision": per_label_precision(indices, *labels),
        "curve": curve,
        "ap": stable["retrieved"],
        "indices": indices[:, :10],
    }
