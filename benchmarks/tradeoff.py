"""Accuracy against cost, the picture a student exists for: python benchmarks/tradeoff.py --runs RUN RUN ...

Runs of one data set and code length, evaluated: students, teachers, ITQ. Each is exported, and all files hash the same
test images in turn, one at a time on one core. Beside them each network's features themselves, compared by cosine.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.dataset import HashingData  # noqa: E402
from data.load import load_data  # noqa: E402
from export import spread  # noqa: E402
from models.exported import Exported  # noqa: E402
from models.trained import Trained, read_run  # noqa: E402
from retrieval.hasher import Hasher, run_options  # noqa: E402
from retrieval.metrics import relevant_among, stable_ap  # noqa: E402
from retrieval.relevance import nearest_by_cosine  # noqa: E402
from utils.errors import UserError, guarded  # noqa: E402
from utils.figures import COLOURS, PLAIN, plt  # noqa: E402
from utils.files import read_json, write_json, written_aside  # noqa: E402
from utils.runs import environment  # noqa: E402

WARM, QUERIES = 5, 250  # calls that are not counted; queries ranked by features at once


def map_by_features(hasher: Hasher, images: HashingData) -> float:
    """mAP@k of the test queries, where the nearest by cosine of the network's features are retrieved."""
    queries, database = (np.float32(hasher.features.evaluation(rows)[:]) for rows in (images.test, images.database))
    labels, searched, total = images.labels[images.test], images.labels[images.database], 0.0
    for first in tqdm(range(0, len(queries), QUERIES), f"{hasher.backbone.name}, features", unit="part"):
        part = slice(first, first + QUERIES)
        relevant = relevant_among(nearest_by_cosine(queries[part], database, images.k), labels[part], searched)
        total += stable_ap(relevant, np.zeros(len(relevant)))["retrieved"].sum()
    return float(total / len(queries))


def describe(run: Trained, exported: Exported, images: HashingData) -> dict:
    result = read_json(run.folder / "test.json")
    if result["data"] != images.fingerprint or run.bits != result["bits"]:
        raise UserError(f"{run.folder}: of another data set or code length than the first of --runs")
    maps = {name: result[name]["map"]["stable/retrieved"] for name in ("sshp", "ashp", "teacher") if name in result}
    if not run.teacher:
        maps = {"sshp": maps["teacher"]}  # it searches its own codes
    name = "ITQ" if run.args["hashing"] == "itq" else run.args.get("method", "teacher")
    return {
        "network": exported.card["backbone"],
        "pixels": exported.card["size"],
        "method": name,
        "map": {k: v for k, v in maps.items() if k != "teacher"},
        "megabytes": (exported.folder / "model.onnx").stat().st_size / 1e6,
        "bytes_a_picture": {"code": exported.width, "features": run.backbone().dim * 4},
    }


def milliseconds(files: list[Exported], pictures: list[np.ndarray]) -> list[float]:
    """Median of each file; every picture is hashed by all of them, one after the other."""
    times: list[list[float]] = [[] for _ in files]
    for picture in tqdm(pictures, "hashing", unit="img"):
        for exported, taken in zip(files, times, strict=True):
            started = time.perf_counter()
            exported.code(picture)
            taken.append(1e3 * (time.perf_counter() - started))
    return [float(np.median(taken[WARM:])) for taken in times]


def apart(wanted: list[float], gap: float) -> list[float]:
    """Heights of labels, none nearer to another than ``gap``, in the order of the wanted ones."""
    heights = np.array(wanted)
    for below, above in itertools.pairwise(np.argsort(heights, kind="stable")):
        heights[above] = max(heights[above], heights[below] + gap)
    return list(heights)


def draw(rows: list[dict], title: str, k: int, path: Path) -> None:
    said = "filled: SSHP, ring: ASHP, x: features; area: MB of the file"
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
        for row in rows:
            x, colour = row["milliseconds"], COLOURS.get(row["method"], "tab:olive")
            axes.scatter(x, row["map"]["sshp"], 4 * row["megabytes"], colour, alpha=0.8)
            if "ashp" in row["map"]:
                axes.scatter(x, row["map"]["ashp"], 4 * row["megabytes"], "none", edgecolors=colour)
            axes.scatter(x, row["map_by_features"], 30, "0.5", marker="x")
        low, high = axes.get_ylim()
        right = 1.08 * max(row["milliseconds"] for row in rows)
        heights = apart([row["map"]["sshp"] for row in rows], (high - low) / 25)
        for row, height in zip(rows, heights, strict=True):
            name = f"{row['method']}, {row['network'].replace('efficientnet_l', 'L')}, {row['pixels']} px"
            line = {"arrowstyle": "-", "color": "0.7", "lw": 0.5}
            at = (row["milliseconds"], row["map"]["sshp"])
            axes.annotate(name, at, (right, height), size=7, va="center", arrowprops=line, annotation_clip=False)
        axes.set(xlabel="ms a picture, one core", ylabel=f"mAP@{k}", title=title, xlim=(0, right))
        axes.text(0.99, 0.01, said, size=7, ha="right", transform=axes.transAxes)
        with written_aside(path) as file:
            figure.savefig(file, format="png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="each with its test.json")
    parser.add_argument("--pictures", type=int, default=200, help="that are hashed")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "tradeoff.json")
    parser.set_defaults(dataset=None, lists_dir=None, device=None)
    args = parser.parse_args()
    runs, files, rows = [read_run(folder) for folder in args.runs], [], []
    by_features: dict[tuple, float] = {}  # once a network and size
    images = load_data(run_options(args, runs[0]), (runs[0].teacher or runs[0]).folder)
    where = [
        word
        for name in ("data_dir", "cache_dir")
        if (value := getattr(args, name))
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(runs):
            out = Path(folder) / str(number)
            words = [sys.executable, ROOT / "export.py", "--run", run.folder, "--out", out, *where]
            subprocess.run(list(map(str, words)), check=True)
            files.append(Exported(out))
            row = describe(run, files[-1], images)
            if (network := (row["network"], row["pixels"])) not in by_features:
                by_features[network] = map_by_features(Hasher(run, run_options(args, run), images), images)
            rows.append(row | {"map_by_features": by_features[network]})
        pictures = [images.source[row].permute(1, 2, 0).numpy() for row in spread(images.test, args.pictures)]
        for row, taken in zip(rows, milliseconds(files, pictures), strict=True):
            row["milliseconds"] = taken
    for row in sorted(rows, key=lambda row: row["milliseconds"]):
        maps = ", ".join(f"{name.upper()} {value:.4f}" for name, value in row["map"].items())
        print(
            f"{row['method']:8} {row['network']:20} {row['pixels']:4} px {row['milliseconds']:7.2f} ms "
            f"{row['megabytes']:6.1f} MB  {maps}, features {row['map_by_features']:.4f}"
        )
    write_json(
        args.out,
        {"environment": environment(), "data": images.title, "k": images.k, "bits": runs[0].bits, "rows": rows},
    )
    draw(rows, f"{images.title}, {runs[0].bits} bits", images.k, args.out.with_suffix(".png"))


if __name__ == "__main__":
    guarded(main)
