"""What a recipe costs, ours and the released scheme's: python benchmarks/cost.py

Backbone passes and bytes are counted from the recipe; seconds are passes over speeds measured here, head steps
included. The released scheme passes every training view of every epoch and every searched image at every validation
through the backbones. Ours passes evaluation images once a backbone, and views once: all of them (fresh) or N an image
(banked). Digits' features are extracted for real beside their prediction.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from heads import STEPS, training  # noqa: E402
from measure import median_seconds  # noqa: E402

from data import digits  # noqa: E402
from data.features import BATCH, Extractor  # noqa: E402
from data.views import Bank, eval_batches, view_batches  # noqa: E402
from models.backbones import build_backbone  # noqa: E402
from utils.cache import DTYPE, FeatureCache  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recipe:
    """CIFAR-10 as in the paper; epochs run to the end (early stopping cuts all schemes alike)."""

    train: int = 5000
    database: int = 50_000
    queries: int = 5000  # of validation, and as many of the test
    teacher_epochs: int = 200
    teacher_validations: int = 40
    student_epochs: int = 400
    student_validations: int = 40

    @property
    def encoded(self) -> int:
        return self.database + 2 * self.queries


def released(r: Recipe) -> dict[str, dict[str, int]]:
    """Passes of each training by backbone."""
    validated = r.database + r.queries
    teacher = 2 * r.train * r.teacher_epochs + validated * r.teacher_validations
    student = 2 * r.train * r.student_epochs + validated * r.student_validations
    taught = 2 * r.train * r.student_epochs + r.database * r.student_validations
    tested = r.database + r.queries
    return {
        "teacher's training": {"teacher": teacher + tested},
        "student's training": {"student": student + tested, "teacher": taught + r.database},
    }


def fresh(r: Recipe) -> dict[str, dict[str, int]]:
    """--views 0."""
    return {
        "teacher's training": {"teacher": 2 * r.train * r.teacher_epochs + r.encoded},
        "student's training": {
            "student": 2 * r.train * r.student_epochs + r.encoded,
            "teacher": 2 * r.train * r.student_epochs,
        },
    }


def banked(r: Recipe, views: int) -> dict[str, dict[str, int]]:
    """--views N; every further method, code length and seed passes nothing."""
    return {
        "teacher's training": {"teacher": views * r.train + r.encoded},
        "student's training": {"student": views * r.train + r.encoded, "teacher": 0},
    }


def kept_bytes(r: Recipe, views: int, dims: dict[str, int]) -> int:
    return sum((r.encoded + views * r.train) * dim * DTYPE().itemsize for dim in dims.values())


@dataclass(frozen=True)
class Speed:
    """Images/s of a backbone, cropping and augmenting included."""

    evaluation: float
    views: float


def extractor_of(name: str, folder: Path, images) -> Extractor:
    backbone = build_backbone(name, "pretrained" if name.startswith("efficientnet_lite") else "random")
    return Extractor(images, backbone, CPU, FeatureCache(folder))


def speed(extractor: Extractor, images, count: int) -> Speed:
    def rate(batches) -> float:
        done, start = 0, None
        for pixels in batches:
            extractor.engine(pixels)
            if start is None:  # the first batch compiles
                start = time.perf_counter()
            else:
                done += len(pixels)
            if done >= count:
                break
        return done / (time.perf_counter() - start)

    return Speed(
        rate(eval_batches(images, images.train, extractor.size, BATCH)),
        rate(view_batches(images, Bank(1, 0), extractor.size, BATCH, CPU)),
    )


def step_seconds(kind: str, dim: int, method: str) -> float:
    """Of a training step on features that are there."""
    epoch = training(kind, dim, method)
    epoch(0)
    return median_seconds(lambda: epoch(1), 1) / STEPS


def total(passes: dict, r: Recipe, speeds: dict[str, Speed], heads: float) -> tuple[int, float]:
    """(passes, seconds) of a scheme. Every pass counts as one of an evaluation image: a view's crops and colours, which
    the released scheme pays more often, are left out."""
    count = sum(n for by in passes.values() for n in by.values())
    seconds = sum(n / speeds[who].evaluation for by in passes.values() for who, n in by.items())
    return count, seconds + heads


def check_prediction(folder: Path) -> dict:
    """Digits' features and bank of 2 views, extracted for real."""
    images = digits.load()
    extractor = extractor_of("efficientnet_lite0", folder, images)
    measured = speed(extractor, images, 4 * BATCH)
    n = len(images.train) + len(images.val) + len(images.test)
    predicted = n / measured.evaluation + 2 * len(images.train) / measured.views
    start = time.perf_counter()
    extractor.evaluation(images.train)
    extractor.bank(2)
    seconds = time.perf_counter() - start
    return {"passes": n + 2 * len(images.train), "predicted_seconds": predicted, "measured_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="vit_b_16")
    parser.add_argument("--student", default="efficientnet_b0")
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--images", type=int, default=128, help="images timed for each speed")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "cost.json")
    args = parser.parse_args()
    images, recipe = digits.load(), Recipe()
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        check = check_prediction(Path(folder))
        found = {who: extractor_of(getattr(args, who), Path(folder), images) for who in ("teacher", "student")}
        speeds = {who: speed(e, images, args.images) for who, e in found.items()}
    dims = {who: e.backbone.dim for who, e in found.items()}
    heads = STEPS * recipe.teacher_epochs * step_seconds("linear", dims["teacher"], "none")
    heads += STEPS * recipe.student_epochs * step_seconds("mlp", dims["student"], "brcd")
    schemes = {
        "released scheme": (released(recipe), 0),
        "ours, fresh views": (fresh(recipe), 0),
        f"ours, bank of {args.views}": (banked(recipe, args.views), args.views),
        "ours, bank of 8": (banked(recipe, 8), 8),
        "ours, next run": ({}, 0),
    }
    print(
        f"teacher {args.teacher} {speeds['teacher'].evaluation:.1f} images/s, "
        f"student {args.student} {speeds['student'].evaluation:.1f} images/s\n"
        f"{'':20} {'passes':>11} {'hours':>8} {'ratio':>7} {'features MB':>12}"
    )
    results, first = {}, None
    for name, (passes, views) in schemes.items():
        count, seconds = total(passes, recipe, speeds, heads)
        first = first or seconds
        size = 0 if name == "released scheme" else kept_bytes(recipe, views, dims)
        results[name] = {"passes": count, "predicted_seconds": seconds, "by_training": passes, "bytes": size}
        print(f"{name:20} {count:>11,} {seconds / 3600:>8.2f} {first / seconds:>7.1f} {size / 1e6:>12.0f}")
    print(
        f"digits, EfficientNet-Lite0, {check['passes']:,} passes: predicted {check['predicted_seconds']:.1f} s, "
        f"measured {check['measured_seconds']:.1f} s"
    )
    write_json(
        args.out,
        {
            "environment": environment(),
            "recipe": vars(recipe),
            "speeds": {who: vars(s) for who, s in speeds.items()},
            "head_seconds": heads,
            "schemes": results,
            "check": check,
        },
    )


if __name__ == "__main__":
    main()
