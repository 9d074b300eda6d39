"""Clusters of the teacher's codes and the bit masks made of them.

``python -m utils.clusters --teacher RUN`` draws elbow and silhouette curves over the number of clusters, from training
codes alone, and prints how dense each cluster's mask is.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from tqdm import tqdm

from utils.codes import pack, to_array, unpack
from utils.errors import UserError, guarded
from utils.figures import draw_cluster_numbers
from utils.runs import write_csv, written_aside

N_STARTS = 30
TRAINING_CODES = "train_codes.npz"  # in a run folder
RULES = ("decided", "undecided")


def cluster_codes(codes, n_clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """K-means (k-means++, 30 starts) on codes.

    Args:
        codes: [n, b] in {-1, +1}.

    Returns:
        (labels int64 [n], centroids float32 [K, b]).

    Raises:
        UserError: fewer images than clusters, or n_clusters < 1.
    """
    codes = to_array(codes).astype(np.float32)
    if not 1 <= n_clusters <= len(codes):
        raise UserError(f"--clusters {n_clusters}: it must be from 1 to the number of training images, {len(codes)}")
    distinct = len(np.unique(codes, axis=0))
    if n_clusters > distinct:
        raise UserError(
            f"--clusters {n_clusters}: the teacher gives the training images only {distinct} different "
            "codes; use fewer clusters"
        )
    found = KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit(codes)
    return found.labels_.astype(np.int64), found.cluster_centers_.astype(np.float32)


def bit_masks(codes, labels, n_clusters: int, margin: float = 0.5, rule: str = "decided") -> np.ndarray:
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
    if rule not in RULES:
        raise UserError(f"--mask-rule {rule}: it is one of {', '.join(RULES)}")
    codes, labels = to_array(codes), to_array(labels)
    decided = np.abs(cluster_means(codes, labels, n_clusters)) >= margin
    filled = (np.bincount(labels, minlength=n_clusters) > 0)[:, None]
    return ((decided if rule == "decided" else ~decided) & filled).astype(np.uint8)


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


def elbow_and_silhouette(codes: np.ndarray, numbers: list[int], seed: int = 0) -> list[dict]:
    """For each number of clusters: k-means inertia and mean silhouette over the codes (Euclidean)."""
    rows = []
    for k in numbers:
        labels, centroids = cluster_codes(codes, k, seed)
        inertia = float(((codes - centroids[labels]) ** 2).sum())
        rows.append({"clusters": k, "inertia": inertia, "silhouette": float(silhouette_score(codes, labels))})
    return rows


def write_training_codes(run: Path, codes) -> None:
    """Keep a network's codes of the training images, [n, b], with its run."""
    with written_aside(run / TRAINING_CODES) as file:
        np.savez(file, codes=pack(codes), bits=codes.shape[1])


def read_training_codes(run: Path) -> np.ndarray:
    """The codes that a finished run wrote of its training images, int8 [n, b]."""
    try:
        with np.load(run / TRAINING_CODES, allow_pickle=False) as kept:
            return unpack(kept["codes"], int(kept["bits"]))
    except FileNotFoundError:
        raise UserError(f"{run}: no {TRAINING_CODES}; is it a finished run?") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the number of clusters by a teacher's training codes.")
    parser.add_argument("--teacher", type=Path, required=True, metavar="RUN", help="folder of a finished teacher run")
    parser.add_argument(
        "--numbers", type=int, nargs="+", default=[2, 5, 10, 15, 20, 30, 50], help="cluster numbers to try"
    )
    parser.add_argument("--clusters", type=int, default=10, help="number whose masks are printed")
    parser.add_argument("--margin", type=float, default=0.5)
    parser.add_argument("--mask-rule", default="decided", help="decided or undecided")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    codes = read_training_codes(args.teacher)
    labels, _ = cluster_codes(codes, args.clusters, args.seed)
    masks = bit_masks(codes, labels, args.clusters, args.margin, args.mask_rule)
    print(f"{args.clusters} clusters of {len(codes)} training codes, margin {args.margin}, rule {args.mask_rule}")
    print("cluster  images  bits kept")
    for c, size in enumerate(np.bincount(labels, minlength=args.clusters)):
        print(f"{c:7}  {size:6}  {masks[c].sum():4} of {masks.shape[1]} ({masks[c].mean():.0%})")
    rows = []
    for k in tqdm([k for k in args.numbers if 1 < k < len(codes)], "cluster numbers"):
        rows += elbow_and_silhouette(codes, [k], args.seed)
    write_csv(args.teacher / "cluster_numbers.csv", rows)
    draw_cluster_numbers(rows, args.teacher / "cluster_numbers.png")
    best = max(rows, key=lambda r: r["silhouette"])
    print("\nclusters     inertia  silhouette")
    for r in rows:
        print(f"{r['clusters']:8}  {r['inertia']:10.0f}  {r['silhouette']:10.3f}{'  <- highest' if r is best else ''}")
    print(f"\nwrote {args.teacher / 'cluster_numbers.csv'} and cluster_numbers.png")


if __name__ == "__main__":
    guarded(main)
