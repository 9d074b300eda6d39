"""What the method is for: a quick student at search time. python benchmarks/inference.py

For teacher and student: milliseconds an image at batch 1 and images/s at batch 64, in eager PyTorch and by OpenVINO in
float32, bfloat16 and int8 (NNCF's post-training quantisation, calibrated on training images). Every precision says what
it does to the search: mAP of the digits' test queries by ITQ codes of the float32 features, so that nothing is trained.
Then the whole way of a query: encode one image and search a million codes.
"""

import argparse
import functools
import logging
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import digits  # noqa: E402
from data.features import BATCH  # noqa: E402
from data.views import eval_batches  # noqa: E402
from models.backbones import build_backbone  # noqa: E402
from models.engines import OpenVINOEngine, TorchEngine  # noqa: E402
from models.itq import itq_head  # noqa: E402
from retrieval.codes import hamming_topk, pack  # noqa: E402
from retrieval.metrics import mean_average_precision  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

CPU, BITS, CALIBRATION = torch.device("cpu"), 64, 256


def median_ms(function, seconds: float = 1.0) -> float:
    """Of as many calls as fit."""
    function()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


@functools.cache
def quantised(backbone) -> openvino.Model:
    """The backbone with weights and activations in int8, calibrated on training images of the digits."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    data = digits.load()
    batches = eval_batches(data, data.train[:CALIBRATION], backbone.size, BATCH)
    model = OpenVINOEngine(backbone, backbone.size, torch.float32, BATCH).model
    return nncf.quantize(model, nncf.Dataset([b.numpy() for b in batches]), subset_size=CALIBRATION // BATCH)


def int8_engine(backbone, batch_size: int) -> OpenVINOEngine:
    engine = OpenVINOEngine(backbone, backbone.size, torch.float32, batch_size)
    model = quantised(backbone).clone()
    model.reshape([batch_size, 3, backbone.size, backbone.size])
    engine.compiled = openvino.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return engine


def engines(backbone, batch_size: int) -> dict:
    return {
        "torch float32": lambda: TorchEngine(backbone, CPU, torch.float32),
        "torch bfloat16": lambda: TorchEngine(backbone, CPU, torch.bfloat16),
        "openvino float32": lambda: OpenVINOEngine(backbone, backbone.size, torch.float32, batch_size),
        "openvino bfloat16": lambda: OpenVINOEngine(backbone, backbone.size, torch.bfloat16, batch_size),
        "openvino int8": lambda: int8_engine(backbone, batch_size),
    }


def features_of(engine, batches: dict[str, list]) -> dict[str, torch.Tensor]:
    return {part: torch.cat([engine(b) for b in batches[part]]) for part in batches}


def measure(name: str, data) -> dict:
    """Every precision of one backbone."""
    trained = name.startswith("efficientnet_lite")
    backbone = build_backbone(name, "pretrained" if trained else "random")
    size, parts = backbone.size, ("database", "test")
    batches = {part: list(eval_batches(data, getattr(data, part), size, BATCH)) for part in parts}
    some = batches["database"][0]  # [64, 3, S, S]
    one = some[:1]
    head, results = None, {}
    print(f"{name}\n{'':18} {'ms, batch 1':>12} {'images/s':>9} {'mAP@100':>8}")
    for what, make in engines(backbone, BATCH).items():
        if what == "openvino int8" and not trained:
            continue  # random weights say nothing of what quantisation keeps
        engine = make()
        row = {"images_per_second": BATCH / median_ms(lambda e=engine: e(some)) * 1e3}
        if trained and what.startswith("openvino"):
            features = features_of(engine, batches)
            head = head or itq_head(features["database"], BITS)
            codes = {part: head.encode(f) for part, f in features.items()}
            labels = (data.labels[data.test], data.labels[data.database])
            row["map"] = mean_average_precision(codes["test"], codes["database"], *labels, data.k)
        single = engines(backbone, 1)[what]()
        row["milliseconds"] = median_ms(lambda e=single: e(one))
        results[what] = row
        quality = f"{row['map']:8.4f}" if "map" in row else ""
        print(f"{what:18} {row['milliseconds']:12.1f} {row['images_per_second']:9.0f} {quality}", flush=True)
    return results


def search_a_million(name: str) -> dict:
    """A query's whole way: pixels to code by the fastest plain engine, then the ten nearest of 1,000,000 codes."""
    backbone = build_backbone(name, "pretrained")
    engine = OpenVINOEngine(backbone, backbone.size, torch.float32, 1)
    head = itq_head(torch.randn(256, backbone.dim), BITS)
    image = torch.randint(256, (1, 3, backbone.size, backbone.size), dtype=torch.uint8)
    database = np.random.default_rng(0).integers(0, 256, (10**6, BITS // 8), dtype=np.uint8)
    code = pack(head.encode(engine(image)))
    many = np.repeat(code, 1000, axis=0)
    result = {
        "encode_ms": median_ms(lambda: pack(head.encode(engine(image)))),
        "search_ms": median_ms(lambda: hamming_topk(code, database, 10)),
        "search_1000_queries_ms": median_ms(lambda: hamming_topk(many, database, 10)),
    }
    print(
        f"{name}: encode {result['encode_ms']:.1f} ms, search of 1,000,000 codes {result['search_ms']:.1f} ms "
        f"({result['search_1000_queries_ms'] / 1000:.2f} ms a query in a batch of 1,000)"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbones", nargs="+", default=["efficientnet_lite2", "efficientnet_lite0", "vit_b_16", "efficientnet_b0"]
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "inference.json")
    args = parser.parse_args()
    data = digits.load()
    results = {name: measure(name, data) for name in args.backbones}
    results["search"] = {n: search_a_million(n) for n in args.backbones if n.startswith("efficientnet_lite")}
    write_json(args.out, {"environment": environment(), **results})


if __name__ == "__main__":
    main()
