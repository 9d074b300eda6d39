"""Raw image to view to feature on disk, side by side: python benchmarks/features.py

The first row is the plain way: torchvision transforms one image at a time, eager PyTorch in bfloat16. The others are
the project's batched views with each engine and precision; each row says how far its features are from eager float32's.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import digits  # noqa: E402
from data.features import BATCH  # noqa: E402
from data.views import ViewMaker  # noqa: E402
from models.backbones import build_backbone  # noqa: E402
from models.engines import TorchEngine, choose_engine, make_engine  # noqa: E402
from utils.cache import DTYPE  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.machine import cores  # noqa: E402
from utils.pipeline import loaded  # noqa: E402
from utils.runs import environment  # noqa: E402

CPU = torch.device("cpu")
PLAIN = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.7),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], p=0.5),
    ]
)


def plain_views(data, size: int, rows: torch.Tensor) -> torch.Tensor:
    crop = v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True)
    return torch.stack([PLAIN(crop(data.source.stack[i])) for i in data.train[rows.numpy()]])


def plain_batches(data, n: int, size: int):
    return loaded(partial(plain_views, data, size), [(rows,) for rows in torch.arange(n).split(BATCH)], cores())


def our_batches(data, n: int, size: int):
    maker = ViewMaker(data, 0, size, CPU)
    return loaded(maker.crops, [(0, rows) for rows in torch.arange(n).split(BATCH)], cores())


def rate(batches, engine, n: int, folder: Path) -> float:
    """Views a second, features written to disk; the first batch warms up and does not count."""
    with open(folder / "features.bin", "wb") as file:
        done, start = 0, None
        for images in batches:
            file.write(engine(images).numpy().astype(DTYPE).tobytes())
            if start is None:
                start = time.perf_counter()
            else:
                done += len(images)
        return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["efficientnet_lite0", "efficientnet_b0", "vit_b_16"])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "features.json")
    args = parser.parse_args()
    data, results = digits.load(), {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in args.backbones:
            # Published weights are measured where they can be had; speed does not depend on them.
            backbone = build_backbone(name, "pretrained" if "lite" in name else "random")
            n = args.images if "vit" not in name else max(2 * BATCH, args.images // 4)
            some = next(our_batches(data, BATCH, backbone.size))[:16]
            with torch.inference_mode():
                exact = backbone(some)
            plain = plain_batches(data, n, backbone.size), TorchEngine(backbone, CPU, torch.bfloat16)
            rows = {"per image, torch bfloat16": plain}
            for engine, precision in (
                ("torch", "float32"),
                ("torch", "bfloat16"),
                ("openvino", "float32"),
                ("openvino", "bfloat16"),
            ):
                chosen, dtype = choose_engine(engine, precision, CPU)
                rows[f"batched, {engine} {precision}"] = (
                    our_batches(data, n, backbone.size),
                    make_engine(backbone, backbone.size, CPU, chosen, dtype, BATCH),
                )
            print(f"{name}\n{'':32} {'views/s':>8} {'ratio':>6} {'error':>8}")
            results[name] = {}
            for what, (batches, engine) in rows.items():
                error = ((engine(some) - exact).norm() / exact.norm()).item()
                speed = rate(batches, engine, n, folder)
                first = results[name].setdefault("first", speed)
                results[name][what] = {"views_per_second": speed, "ratio": speed / first, "relative_error": error}
                print(f"{what:32} {speed:8.1f} {speed / first:6.1f} {error:8.1e}", flush=True)
            del results[name]["first"]
    write_json(args.out, {"environment": environment(), **results})


if __name__ == "__main__":
    main()
