"""How far a student's bits are its teacher's: agreement, and matching after training."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from retrieval.codes import Array, bits_of


def correlations(student: Array, teacher: Array) -> np.ndarray:
    """Pearson correlation of every bit of one with every bit of the other, over n images: [n, b], [n, b] -> [b, b].

    A bit that is the same for all images correlates with nothing: 0.
    """
    s, t = (bits_of(codes).astype(np.float64) for codes in (student, teacher))
    p, q = s.mean(axis=0)[:, None], t.mean(axis=0)  # [b, 1], [b]
    size = np.sqrt(p * (1 - p) * q * (1 - q))  # [b, b]
    # Sums of 0 and 1 are exact, so the result has the same bits on any number of threads.
    return np.divide(s.T @ t / len(s) - p * q, size, out=np.zeros_like(size), where=size > 0)


def agreement(student: Array, teacher: Array) -> dict[str, float]:
    """Of two networks' codes [n, b] of the same images: the share of equal bits, 0.5 by chance, and the mean over the
    bits of the correlation of each with its own counterpart, 0 by chance."""
    equal = (bits_of(student) == bits_of(teacher)).mean()
    return {"equal_bits": float(equal), "bit_correlation": float(np.diag(correlations(student, teacher)).mean())}


def match_bits(student: Array, teacher: Array) -> tuple[np.ndarray, np.ndarray]:
    """The permutation and signs that make a student's bits most like the teacher's on n images: what an undistilled
    student reaches in ASHP without training.

    Returns:
        (order, sign), [b] each, which maximise the sum of correlations: ``codes[:, order] * sign`` for codes in
        {-1, +1}.
    """
    known = correlations(student, teacher)
    order = linear_sum_assignment(-np.abs(known).T)[1]  # for each bit of the teacher, the student's
    return order, np.where(known[order, np.arange(len(order))] < 0, -1, 1)
