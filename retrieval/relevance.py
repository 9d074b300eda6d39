"""What is relevant to a query: images that share a label, or, where there are no labels, what features find."""

import numpy as np

from data.dataset import HashingData
from data.features import Extractor
from utils.errors import UserError


def relevance(
    images: HashingData, queries: np.ndarray, database: np.ndarray, teacher: Extractor
) -> tuple[np.ndarray, np.ndarray]:
    """Label rows of queries and database, 0/1 [q, L] and [n, L]: relevant is what shares one.

    Without labels every query is a label of its own, L = q, and the ``images.k`` database images nearest to it by
    cosine of the teacher's features carry it. So every metric measures how well codes find what those features find.

    Args:
        queries, database: positions in ``images``.
        teacher: the teacher's features of them.

    Raises:
        UserError: nothing is relevant to any query.
    """
    if images.labelled:
        asked, searched = images.labels[queries], images.labels[database]
        if not asked[:, searched.any(axis=0)].any():
            raise UserError(f"{images.title}: no query shares a label with any image searched: mAP says nothing there")
        return asked, searched
    nearest = nearest_by_cosine(teacher.evaluation(queries)[:], teacher.evaluation(database)[:], images.k)
    rows = np.zeros((len(database), len(queries)), dtype=np.uint8)
    rows[nearest, np.arange(len(queries))[:, None]] = 1
    return np.eye(len(queries), dtype=np.uint8), rows


def measure(images: HashingData) -> str:
    """What mAP is called, so that the two kinds can't be taken for each other."""
    return f"mAP@{images.k}" if images.labelled else f"mAP@{images.k} of the teacher's nearest by features"


def nearest_by_cosine(queries: np.ndarray, database: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k rows of ``database`` [n, D] nearest to each of ``queries`` [q, D]: int64 [q, k].

    In float64 and rounded, so that the order of summation, which depends on the number of threads, decides nothing;
    ties in the database's order.
    """
    queries, database = (
        x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-30) for x in map(np.float64, (queries, database))
    )
    return np.argsort(-(queries @ database.T).round(9), axis=1, kind="stable")[:, :k]
