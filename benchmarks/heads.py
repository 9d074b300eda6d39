"""A training step on banked features against its matrix products alone, and a big bank: python benchmarks/heads.py

One core. "linear" is the head of a ViT or a ResNet (768 features), "mlp" that of EfficientNet (1000 logits).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from measure import anonymous_mib, median_seconds  # noqa: E402

from data.views import BankedViews  # noqa: E402
from losses.cibhash import KL_WEIGHT  # noqa: E402
from losses.hashing import HASHING  # noqa: E402
from losses.methods import METHODS, Batch, BRCDOptions, Knowledge, build_method  # noqa: E402
from losses.nt_xent import TEMPERATURE  # noqa: E402
from models.heads import HashHead  # noqa: E402
from utils.cache import DTYPE, FeatureCache  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402
from utils.training import train_epoch  # noqa: E402

N, BITS, BATCH, EPOCHS = 5000, 64, 64, 400
STEPS = -(-N // BATCH)  # an epoch's


def matmuls(kind: str, dim: int):
    """The products of a step's forward and backward pass through the head, 2 x 64 rows."""
    x, g = torch.randn(2 * BATCH, dim), torch.randn(2 * BATCH, BITS)
    last = torch.randn(BITS, dim)
    hidden, h = torch.randn(dim, dim), torch.randn(2 * BATCH, dim)

    def step():
        x @ last.T
        g.T @ x
        if kind == "mlp":
            x @ hidden.T
            g @ last
            h.T @ x

    return step


def training(kind: str, dim: int, method: str):
    """A function that trains a student on random banked features for one epoch."""
    draw = torch.Generator().manual_seed(0)
    bank = torch.randn(8, N, dim, generator=draw).to(torch.float16).numpy()
    views = BankedViews([bank, torch.randn(8, N, BITS, generator=draw)], 0)
    centroids = torch.randn(BRCDOptions.clusters, BITS, generator=draw).sign()
    masks = torch.rand(BRCDOptions.clusters, BITS, generator=draw) > 0.5
    knowledge = Knowledge(torch.randint(BRCDOptions.clusters, (N,), generator=draw), centroids, masks)
    head = HashHead(dim, BITS, kind)
    extra = build_method(method, BITS, N, knowledge)
    own = HASHING["cibhash"](TEMPERATURE, KL_WEIGHT)
    modules = torch.nn.ModuleDict({"head": head, "method": extra})
    optimizer = torch.optim.Adam(modules.parameters(), lr=1e-3, fused=True)

    def steps(epoch: int):
        negatives = torch.Generator().manual_seed(epoch)
        for batch in views.epoch(epoch, BATCH):
            features, teacher = batch.pairs
            logits = head(features)
            terms = own(logits, features)
            more = extra(Batch(batch.index, logits, teacher, negatives))
            yield {**terms, **more, "loss": terms["loss"] + sum(more.values())}

    return lambda epoch: train_epoch(modules, optimizer, steps(epoch))


def heads(epochs: int) -> dict:
    results = {}
    print(f"{'head':22} {'step ms':>8} {'matmuls ms':>11} {'ratio':>6} {f'{EPOCHS} epochs s':>13}")
    for kind, dim in (("linear", 768), ("mlp", 1000)):
        epoch = training(kind, dim, "brcd")
        epoch(0)
        step = median_seconds(lambda epoch=epoch: epoch(1), epochs) / STEPS
        alone = median_seconds(matmuls(kind, dim), 300)
        row = {
            "step_ms": step * 1e3,
            "matmuls_ms": alone * 1e3,
            "ratio": step / alone,
            "seconds": step * STEPS * EPOCHS,
        }
        results[f"{kind} {dim}"] = row
        print(
            f"{f'{kind}, {dim} features':22} {step * 1e3:8.2f} {alone * 1e3:11.2f} {step / alone:6.2f} "
            f"{row['seconds']:13.0f}",
            flush=True,
        )
    print("every method, linear head, ms a step:", end=" ")
    results["methods_ms"] = {}
    for method in METHODS:
        if not METHODS[method].rotations:
            epoch = training("linear", 768, method)
            epoch(0)
            results["methods_ms"][method] = median_seconds(lambda epoch=epoch: epoch(1), 2) / STEPS * 1e3
            print(f"{method} {results['methods_ms'][method]:.1f}", end="  ", flush=True)
    print()
    return results


def bank() -> dict:
    """5,000 x 64 views x 1,000 features in a cache: its size, its opening, and what an epoch keeps in memory."""
    views, dim = 64, 1000
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        cache = FeatureCache(Path(folder))
        rows = torch.randn(N, dim, dtype=torch.float16)

        def extract(start: int):
            for _ in range(start, views * N, N):
                yield rows

        def get(extract):
            return cache.get({"benchmark": 1}, views * N, dim, extract, "bank").reshape(views, N, dim)

        get(extract)
        opening = median_seconds(lambda: get(None), 20)
        before = anonymous_mib()
        for batch in BankedViews([get(None)], 0).epoch(0, BATCH):
            assert batch.pairs[0].dtype == torch.float32
        result = {
            "bytes": views * N * dim * DTYPE().itemsize,
            "open_ms": opening * 1e3,
            "epoch_memory_mib": anonymous_mib() - before,
        }
    print(
        f"bank of {result['bytes'] / 1e6:.0f} MB: opened in {result['open_ms']:.1f} ms; an epoch out of it adds "
        f"{result['epoch_memory_mib']:.0f} MiB of memory"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5, help="epochs timed")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "heads.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_json(args.out, {"environment": environment(), "heads": heads(args.epochs), "bank": bank()})


if __name__ == "__main__":
    main()
