"""How redundant bits are: ``python -m scripts.redundancy --run RUN`` for a finished BRCD run.

A bit whose mean over a cluster is near 0 tells nothing about membership. Draws |bit mean| per cluster for the teacher's
and the student's codes of the training images, and prints the share below the margin.
"""

from pathlib import Path

import numpy as np

from losses.masks import cluster_means
from retrieval.codes import read_training_codes
from utils.errors import UserError, guarded
from utils.figures import draw_redundancy
from utils.files import read_arrays, write_json
from utils.options import Parser
from utils.runs import read_args


def redundancy(codes: np.ndarray, labels: np.ndarray, n_clusters: int, margin: float) -> dict:
    """|mean| of each bit over each cluster [K, b], its mean, and the share of (cluster, bit) pairs below the margin."""
    means = np.abs(cluster_means(codes, labels, n_clusters))
    return {"means": means, "mean": float(means.mean()), "below_margin": float((means < margin).mean())}


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished distill.py run with clusters")
    args = parser.parse_args()
    run_args = read_args(args.run)
    if not (args.run / "clusters.npz").exists():
        raise UserError(f"{args.run}: no clusters.npz; only runs of --method brcd make clusters")
    file = args.run / "clusters.npz"
    kept = read_arrays(file, labels=("iu", 1), centroids=("f", 2))
    labels, n_clusters = kept["labels"], len(kept["centroids"])
    codes = {"teacher": read_training_codes(Path(run_args["teacher"])), "student": read_training_codes(args.run)}
    if {len(c) for c in codes.values()} != {len(labels)} or not ((labels >= 0) & (labels < n_clusters)).all():
        raise UserError(f"{file}: its clusters are not those of the training codes; train that run again")
    networks = {name: redundancy(c, labels, n_clusters, run_args["margin"]) for name, c in codes.items()}
    print(f"{n_clusters} clusters, margin {run_args['margin']}\ncodes     mean |bit mean|  below the margin")
    for name, f in networks.items():
        print(f"{name:8}  {f['mean']:15.3f}  {f['below_margin']:16.1%}")
    draw_redundancy({name: f["means"] for name, f in networks.items()}, run_args["margin"], args.run / "redundancy.png")
    write_json(
        args.run / "redundancy.json",
        {name: {k: v for k, v in f.items() if k != "means"} for name, f in networks.items()},
    )
    print(f"wrote {args.run / 'redundancy.png'} and redundancy.json")


if __name__ == "__main__":
    guarded(main)
