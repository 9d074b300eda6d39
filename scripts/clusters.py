"""How many clusters? ``python -m scripts.clusters --teacher RUN`` draws elbow and silhouette curves over their number,
from a teacher's training codes alone, and prints how dense each cluster's mask is.
"""

from pathlib import Path

import numpy as np
from sklearn.metrics import silhouette_score
from tqdm import tqdm

from losses.masks import MASK_RULES, bit_masks, cluster_codes
from losses.methods import BRCDOptions
from retrieval.codes import read_training_codes
from utils.errors import UserError, guarded
from utils.figures import draw_cluster_numbers
from utils.files import write_csv
from utils.options import Parser, one_of, real, whole


def elbow_and_silhouette(codes: np.ndarray, k: int, seed: int = 0) -> dict:
    """Of k clusters: k-means inertia and mean silhouette over the codes (Euclidean)."""
    labels, centroids = cluster_codes(codes, k, seed)
    inertia = float(((codes - centroids[labels]) ** 2).sum())
    return {"clusters": k, "inertia": inertia, "silhouette": float(silhouette_score(codes, labels))}


def main() -> None:
    parser = Parser("Choose the number of clusters by a teacher's training codes.")
    parser.add_argument("--teacher", type=Path, required=True, metavar="RUN", help="folder of a finished teacher run")
    parser.add_argument(
        "--numbers", type=whole(2), nargs="+", default=[2, 5, 10, 15, 20, 30, 50], help="cluster numbers to try"
    )
    parser.add_argument(
        "--clusters", type=whole(1), default=BRCDOptions.clusters, help="number whose masks are printed"
    )
    parser.add_argument(
        "--margin", type=real(0, 1), default=BRCDOptions.margin, help="bits with a smaller |cluster mean| are masked"
    )
    parser.add_argument(
        "--mask-rule", type=one_of(MASK_RULES), default=BRCDOptions.mask_rule, help=f"one of: {', '.join(MASK_RULES)}"
    )
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of k-means")
    args = parser.parse_args()
    codes = read_training_codes(args.teacher)
    labels, _ = cluster_codes(codes, args.clusters, args.seed)
    masks = bit_masks(codes, labels, args.clusters, args.margin, args.mask_rule)
    print(f"{args.clusters} clusters of {len(codes)} training codes, margin {args.margin}, rule {args.mask_rule}")
    print("cluster  images  bits kept")
    for c, size in enumerate(np.bincount(labels, minlength=args.clusters)):
        print(f"{c:7}  {size:6}  {masks[c].sum():4} of {masks.shape[1]} ({masks[c].mean():.0%})")
    most = min(len(np.unique(codes, axis=0)), len(codes) - 1)
    numbers = [k for k in args.numbers if k <= most]
    if not numbers:
        raise UserError(f"--numbers: of {len(codes)} training images' codes at most {most} clusters can be tried")
    rows = [elbow_and_silhouette(codes, k, args.seed) for k in tqdm(numbers, "cluster numbers")]
    write_csv(args.teacher / "cluster_numbers.csv", rows)
    draw_cluster_numbers(rows, args.teacher / "cluster_numbers.png")
    best = max(rows, key=lambda r: r["silhouette"])
    print("\nclusters     inertia  silhouette")
    for r in rows:
        print(f"{r['clusters']:8}  {r['inertia']:10.0f}  {r['silhouette']:10.3f}{'  <- highest' if r is best else ''}")
    if best["clusters"] == max(args.numbers):
        print(f"note: the highest silhouette is at the largest number tried, {best['clusters']}; try larger --numbers")
    print(f"\nwrote {args.teacher / 'cluster_numbers.csv'} and cluster_numbers.png")


if __name__ == "__main__":
    guarded(main)
