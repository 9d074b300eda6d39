"""Memory for a million listed images: python benchmarks/lists.py

Makes a list of 1,000,000 images with 80 labels and the files it names (hard links to a few), then, in a process of its
own, loads it as training would, hashes all images (random features stand in for a backbone's), and searches. Reports
the peak memory of that process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from measure import peak_gib  # noqa: E402

from data.from_lists import load  # noqa: E402
from data.protocols import Protocol  # noqa: E402
from models.heads import HashHead  # noqa: E402
from retrieval.metrics import retrieval_report  # noqa: E402
from utils.cache import FeatureCache  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

LABELS, DIM, BITS, QUERIES, TRAIN, LINKS = 80, 256, 64, 1000, 10_000, 50_000


def make(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    names = [f"images/{i // 1000:05d}/photograph_{i:09d}.png" for i in range(count + QUERIES)]
    for first in range(0, len(names), 1000):
        (folder / names[first]).parent.mkdir(parents=True)
    for first in range(0, len(names), LINKS):  # a file system allows only so many links to one file
        Image.new("RGB", (8, 8)).save(folder / names[first])
        for name in names[first + 1 : first + LINKS]:
            os.link(folder / names[first], folder / name)
    rows = (draw.random((len(names), LABELS)) < 0.04).astype(np.uint8)
    rows[np.arange(len(names)), draw.integers(LABELS, size=len(names))] = 1
    lines = [f"{name} {' '.join(map(str, row))}\n" for name, row in zip(names, rows, strict=True)]
    (folder / "database.txt").write_text("".join(lines[:count]))
    (folder / "train.txt").write_text("".join(lines[:TRAIN]))
    (folder / "test.txt").write_text("".join(lines[count:]))


def use(folder: Path) -> dict:
    start, imported = time.perf_counter(), peak_gib()
    images = load(Protocol("lists"), folder)
    found = {"load_seconds": time.perf_counter() - start, "imports_gib": imported, "lists_gib": peak_gib()}
    _ = images.fingerprint
    draw = torch.Generator().manual_seed(0)

    def extract(start: int):
        for first in range(start, len(images.source), 4096):
            yield torch.randn(min(4096, len(images.source) - first), DIM, generator=draw)

    features = FeatureCache(folder / "cache").get({}, len(images.source), DIM, extract, "features")
    head = HashHead(DIM, BITS)
    codes = {part: head.encode(features[getattr(images, part)]) for part in ("test",)}
    codes["database"] = torch.cat([head.encode(features[part]) for part in np.array_split(images.database, 100)])
    labels = (images.labels[images.test], images.labels[images.database])
    report = retrieval_report(codes["test"], codes["database"], *labels, images.k)
    return found | {"all_gib": peak_gib(), "seconds": time.perf_counter() - start, "k": report["k"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "lists.json")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.use:
        return print(json.dumps(use(args.use)))
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        make(Path(folder), args.images)
        done = subprocess.run(
            [sys.executable, __file__, "--use", folder], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{args.images:,} images: lists read and checked in {found['load_seconds']:.0f} s; peak memory "
        f"{found['lists_gib']:.2f} GiB, with codes and a search {found['all_gib']:.2f} GiB, "
        f"of which imports take {found['imports_gib']:.2f} GiB"
    )
    write_json(args.out, {"environment": environment(), "images": args.images, **found})


if __name__ == "__main__":
    main()
