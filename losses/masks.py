"""Clusters of the teacher's codes and the bit masks made of them (He et al., WWW 2024, arXiv 2403.06071)."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from utils.errors import UserError

N_STARTS = 30
TRIED, TRIED_STARTS, TRIED_IMAGES = (5, 10, 20, 50, 100, 200), 3, 5000  # what --clusters auto looks at
MASK_RULES = ("decided", "undecided")


def cluster_codes(
    codes: np.ndarray | torch.Tensor, n_clusters: int, seed: int = 0, n_starts: int = N_STARTS
) -> tuple[np.ndarray, np.ndarray]:
    """K-means (k-means++) on codes.

    Args:
        codes: [n, b] in {-1, +1}.

    Returns:
        (labels int64 [n], centroids float32 [K, b]).

    Raises:
        UserError: fewer images than clusters, or n_clusters < 1.
    """
    codes = np.asarray(codes).astype(np.float32)
    if not 1 <= n_clusters <= len(codes):
        raise UserError(f"--clusters {n_clusters}: it must be from 1 to the number of training images, {len(codes)}")
    distinct = len(np.unique(codes, axis=0))
    if n_clusters > distinct:
        raise UserError(
            f"--clusters {n_clusters}: the teacher gives the training images only {distinct} different "
            "codes; use fewer clusters"
        )
    with threadpool_limits(1):  # the same sums in the same order on any machine
        labels = KMeans(n_clusters, n_init=n_starts, random_state=seed).fit(codes).labels_.astype(np.int64)
    # From the labels, where sums of -1 and +1 are exact: k-means' own centres depend on the number of threads.
    return labels, cluster_means(codes, labels, n_clusters).astype(np.float32)


def choose_clusters(codes: np.ndarray | torch.Tensor, seed: int = 0) -> int:
    """The number of clusters of codes [n, b] with the highest mean silhouette (Rousseeuw, 1987), no labels asked: of
    ``TRIED``, as far as there are so many different codes; k-means of 3 starts, silhouettes of at most 5,000 images.

    Raises:
        UserError: fewer than 6 different codes, so that nothing can be tried.
    """
    codes = np.asarray(codes).astype(np.float32)
    distinct = len(np.unique(codes, axis=0))
    found = {}
    for k in (k for k in TRIED if k < distinct):
        labels, _ = cluster_codes(codes, k, seed, TRIED_STARTS)
        with threadpool_limits(1):
            found[k] = silhouette_score(codes, labels, sample_size=min(TRIED_IMAGES, len(codes)), random_state=seed)
    if not found:
        raise UserError(f"--clusters auto: the teacher gives only {distinct} different codes; name a number")
    return max(found, key=lambda k: found[k])


def bit_masks(
    codes: np.ndarray | torch.Tensor, labels: np.ndarray, n_clusters: int, margin: float, rule: str = MASK_RULES[0]
) -> np.ndarray:
    """Which bits mean something in each cluster.

    Bits are independent, so one whose mean over a cluster is near 0 carries nothing there.

    Args:
        codes: [n, b] in {-1, +1}.
        labels: [n] cluster of each.
        margin: 0..1.
        rule: "decided" keeps bits with |mean| >= margin (the method); "undecided" those below (an ablation).

    Returns:
        uint8 [K, b], 1 where the bit is kept; an empty cluster keeps none.
    """
    if not 0 <= margin <= 1:
        raise UserError(f"--margin {margin}: it must be from 0 to 1")
    if rule not in MASK_RULES:
        raise UserError(f"--mask-rule {rule}: it is one of {', '.join(MASK_RULES)}")
    codes, labels = np.asarray(codes), np.asarray(labels)
    decided = np.abs(cluster_means(codes, labels, n_clusters)) >= margin
    filled = (np.bincount(labels, minlength=n_clusters) > 0)[:, None]
    return ((~decided if rule == "undecided" else decided) & filled).astype(np.uint8)


def cluster_means(codes: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Mean of each bit over each cluster, float64 [K, b]; 0 for an empty cluster."""
    member = np.eye(n_clusters)[labels]  # [n, K]
    return member.T @ codes / np.maximum(member.sum(axis=0), 1)[:, None]


def purity(labels: np.ndarray, classes: np.ndarray) -> float:
    """Share of images whose class is their cluster's most frequent one; classes multi-hot [n, L] or numbers [n]."""
    classes = np.asarray(classes)
    classes = classes if classes.ndim == 2 else np.eye(classes.max() + 1)[classes]
    member = np.eye(labels.max() + 1)[labels]
    return float((member.T @ classes).max(axis=1).sum() / len(labels))
