"""Everything that a GPU changes, in one run that downloads nothing: python benchmarks/gpu.py

Device tests, the paper's recipe in small by its own scripts, features a second beside the bare network on ready pixels,
a head's training from a bank and from fresh views, codes against the CPU's, evaluation and export. Without a GPU the
same on the CPU, in small, so that it never rots. Weights are random: speed and correctness, no result.
"""

import argparse
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

from data.dataset import HashingData, one_hot  # noqa: E402
from data.features import BATCH  # noqa: E402
from data.sources import ArrayImages, FileImages  # noqa: E402
from data.views import BankedViews, FreshViews  # noqa: E402
from losses.hashing import HASHING  # noqa: E402
from models.backbones import SIZE, build_backbone  # noqa: E402
from models.engines import choose_engine, make_engine  # noqa: E402
from models.heads import HashHead  # noqa: E402
from retrieval.metrics import mean_average_precision  # noqa: E402
from utils.devices import pick_device  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.machine import cores  # noqa: E402
from utils.runs import environment  # noqa: E402
from utils.training import train_epoch  # noqa: E402

NETWORKS = ("vit_b_16", "efficientnet_b0", "efficientnet_lite0")
TESTS = ("test_training.py", "test_losses.py", "test_brcd.py", "test_baselines.py", "test_hashing.py")
BITS, EPOCHS, TRAINING = 64, 400, 5000  # of the paper's recipe


def ran(words: list, **variables) -> float:
    """Seconds of a command; what it says is shown where it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, words)), cwd=ROOT, capture_output=True, text=True, env={**os.environ, **variables}
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return time.perf_counter() - start


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(batches, device: torch.device) -> float:
    """Rows a second of an iterator of [n, ...] tensors, its first batch, which warms up, apart."""
    batches = iter(batches)
    next(batches)
    waited(device)
    start, rows = time.perf_counter(), 0
    for batch in batches:
        rows += len(batch)
    waited(device)
    return rows / (time.perf_counter() - start)


def data_of(source, n: int) -> HashingData:
    rows = np.arange(n)
    return HashingData("benchmark", source, one_hot(rows % 10, 10), list("0123456789"), rows, rows, rows, rows, 10)


def pictures(folder: Path, n: int) -> FileImages:
    """JPEG files of 500 x 375 pixels, smooth with some noise, as photographs are."""
    draw, names = np.random.RandomState(0), []
    for i in range(n):
        small = Image.fromarray(draw.randint(0, 256, (12, 16, 3)).astype(np.uint8)).resize((500, 375), Image.BICUBIC)
        noisy = np.asarray(small, dtype=np.int16) + draw.randint(-8, 9, (375, 500, 3))
        names.append(f"{i:05}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / names[-1], quality=90)
    return FileImages(folder, names)


def fresh(data: HashingData, engine, device: torch.device) -> float:
    """Views a second, from images to features on the device."""
    views = FreshViews(data, [(engine, SIZE)], 0, device, cores())
    return rate((batch.pairs[0].flatten(0, 1) for batch in views.epoch(1, BATCH)), device)


def features(device: torch.device, folder: Path, batches: int) -> dict:
    n, results = BATCH * batches, {}
    draw = np.random.RandomState(0)
    names = [str(i) for i in range(n)]
    arrays = data_of(ArrayImages(draw.randint(0, 256, (n, 32, 32, 3)).astype(np.uint8), names), n)
    files = data_of(pictures(folder, n), n)
    pixels = torch.randint(0, 256, (2 * BATCH, 3, SIZE, SIZE), dtype=torch.uint8).to(device)
    name, precision = choose_engine("auto", "auto", device)
    print(f"{'features/s':20} {'bare':>8} {'arrays':>8} {'ratio':>6} {'files':>8} {'ratio':>6}")
    for network in NETWORKS:
        engine = make_engine(build_backbone(network, "random"), SIZE, device, name, precision, BATCH)
        bare = rate((engine(pixels) for _ in range(batches)), device)
        row = {"bare": bare, "arrays": fresh(arrays, engine, device), "files": fresh(files, engine, device)}
        row |= {f"{kind}_ratio": row[kind] / bare for kind in ("arrays", "files")}
        results[network] = row
        print(
            f"{network:20} {bare:8.1f} {row['arrays']:8.1f} {row['arrays_ratio']:6.2f} {row['files']:8.1f} "
            f"{row['files_ratio']:6.2f}",
            flush=True,
        )
    return {"engine": name, "precision": str(precision), "images": n, **results}


def heads(device: torch.device, features_a_second: float, epochs: int) -> dict:
    """Seconds of ``EPOCHS`` epochs of ``TRAINING`` images: a bank's measured, fresh views' by the speed of features."""
    bank = torch.randn(8, TRAINING, 768).half().numpy()
    views, head = BankedViews([bank], 0, device=device), HashHead(768, BITS).to(device)
    objective = HASHING["cibhash"](temperature=0.3, kl_weight=0.001)
    optimizer = torch.optim.Adam(head.parameters(), fused=True)

    def epoch(number: int) -> None:
        batches = views.epoch(number, BATCH)
        train_epoch(head, optimizer, (objective(head(b.pairs[0]), b.pairs[0]) for b in batches))

    epoch(0)
    start = time.perf_counter()
    for number in range(1, epochs + 1):
        epoch(number)
    banked = (time.perf_counter() - start) / epochs * EPOCHS
    result = {"banked_seconds": banked, "fresh_seconds_predicted": 2 * TRAINING * EPOCHS / features_a_second + banked}
    print(f"{EPOCHS} epochs of a head: {banked:.0f} s from a bank, {result['fresh_seconds_predicted']:.0f} s fresh")
    return result


def codes(device: torch.device, n: int) -> dict:
    """Share of bits that differ between this device and PyTorch on the CPU in float32."""
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8)
    found = {}
    for network in NETWORKS:
        backbone = build_backbone(network, "random")
        head = HashHead(backbone.dim, BITS)
        known = head.encode(make_engine(backbone, SIZE, torch.device("cpu"), "torch", torch.float32, BATCH)(pixels))
        for precision in ("float32", "auto"):
            name, kind = choose_engine("auto", precision, device)
            there = make_engine(build_backbone(network, "random"), SIZE, device, name, kind, BATCH)(pixels)
            found[f"{network} {name} {kind}"] = (head.encode(there.cpu()) != known).float().mean().item()
    for what, share in found.items():
        print(f"bits other than on the CPU: {share:.3%}  {what}")
    return found


def recipe(device: torch.device, folder: Path, images: int) -> dict:
    """The README's two commands by ViT-B/16 and EfficientNet-B0, fresh views, then evaluation and export."""
    env = {"PYTHON": sys.executable, "DATASET": "digits", "WEIGHTS": "random", "STUDENT_WEIGHTS": "random"}
    env |= {
        "EPOCHS": "2",
        "VALIDATE_EVERY": "1",
        "VIEWS": "0",
        "DEVICE": device.type,
        "CACHE_DIR": str(folder / "cache"),
    }
    teacher, student = folder / "teacher", folder / "student"
    few = ["--limit", images]
    return {
        "run_seconds": ran(["sh", "scripts/run.sh", *few], RUN_DIR=str(teacher), **env),
        "distill_seconds": ran(
            ["sh", "scripts/ours_distill_run.sh"], RUN_DIR=str(student), TEACHER=str(teacher), CLUSTERS="1", **env
        ),
        "evaluate_seconds": ran(["sh", "scripts/evaluate.sh"], RUN=str(student), PYTHON=sys.executable),
        "export_seconds": ran([sys.executable, "export.py", "--run", student, "--out", folder / "exported"]),
    }


def evaluation() -> dict:
    draw = torch.Generator().manual_seed(0)
    query, database = (torch.randint(2, (n, BITS), generator=draw, dtype=torch.int8) * 2 - 1 for n in (5000, 50_000))
    labels = [one_hot(np.arange(len(part)) % 10, 10) for part in (query, database)]
    mean_average_precision(query[:64], database, labels[0][:64], labels[1], 1000)
    start = time.perf_counter()
    mean_average_precision(query, database, *labels, 1000)
    return {"map_seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "gpu.json")
    args = parser.parse_args()
    device = pick_device(args.device)
    gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        result = {"environment": environment(), "device": str(device), "cores": cores()}
        tests = [sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS)]
        result["tests_seconds"] = ran([*tests, *([] if gpu else ["-k", "cibhash or golden"])])
        print(f"tests on the device: all passed, {result['tests_seconds']:.0f} s", flush=True)
        result["recipe"] = recipe(device, folder, 200 if gpu else 10)
        print(
            "recipe: " + ", ".join(f"{k.partition('_')[0]} {v:.0f} s" for k, v in result["recipe"].items()), flush=True
        )
        (folder / "jpegs").mkdir()
        result["features"] = features(device, folder / "jpegs", 40 if gpu else 3)
        speed = result["features"]["vit_b_16"]["arrays"]
        result["heads"] = heads(device, speed, 20 if gpu else 2)
        result["codes"] = codes(device, 256 if gpu else 16)
        result["evaluation"] = evaluation()
        print(f"mAP@1000 of 5,000 queries in 50,000 codes: {result['evaluation']['map_seconds']:.2f} s")
    write_json(args.out, result)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
