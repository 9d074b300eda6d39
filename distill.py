"""Distil a teacher's hashing into a small student.

    python distill.py --teacher runs/teacher --student efficientnet_b0 --method brcd --run-dir runs/brcd

Data and feature options default to the teacher's own. Clusters and bit masks are made here, from the teacher's codes of
the training images, and kept with the run.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.features import BATCH, Extractor, add_feature_arguments, extractor
from data.load import add_data_arguments, load_data
from data.views import BankedViews, FreshViews, eval_batches
from losses.hashing import HASHING
from losses.masks import bit_masks, cluster_codes, purity
from losses.methods import METHODS, Batch, Knowledge, Setting
from models.backbones import (
    BACKBONES,
    FrozenBackbone,
    batch_norm_statistics,
    build_backbone,
    recalibrate_batch_norm,
    set_batch_norm_statistics,
)
from models.engines import pick_device
from models.heads import HashHead, load_head, load_teacher, rebuild_backbone, save_head, student_head
from retrieval.codes import write_training_codes
from retrieval.metrics import mean_average_precision
from utils import distributed
from utils.errors import UserError, guarded
from utils.files import file_lock, save_atomically, written_aside
from utils.options import check_ranges
from utils.runs import Run, read_args
from utils.seeds import generator, seed_of, seeded
from utils.training import Schedule, fit

INHERITED = (
    "dataset",
    "data_dir",
    "skip_broken",
    "split_seed",
    "lists_dir",
    "drop_leaks",
    "limit",
    "views",
    "view_seed",
    "size",
    "device",
    "engine",
    "precision",
    "cache_dir",
    "cache_limit",
    "workers",
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    add_feature_arguments(parser)
    group = parser.add_argument_group("student")
    group.add_argument("--teacher", type=Path, required=True, metavar="RUN", help="folder of a finished teacher run")
    group.add_argument("--student", default="efficientnet_b0", help=f"one of: {', '.join(BACKBONES)}")
    group.add_argument("--student-weights", default="pretrained", help="pretrained, a file, or random (tests only)")
    group.add_argument("--student-features", default="auto", help="auto, logits or pooled")
    group.add_argument("--student-size", type=int, help="pixels that the student sees (default: --size)")
    group.add_argument("--head", default="auto", help="auto, linear or mlp")
    group.add_argument(
        "--bn", default="frozen", help="frozen, or recalibrate: BatchNorm statistics of the training images"
    )
    group.add_argument("--bits", type=int, help="must be the teacher's (the default)")
    group = parser.add_argument_group("method")
    group.add_argument("--method", default="brcd", help=f"one of: {', '.join(METHODS)}")
    group.add_argument(
        "--rotated-views", type=int, default=2, help="sskd: of the cached views, how many are also rotated"
    )
    group.add_argument("--kd-weight", type=float, default=1.0, help="of the distillation term")
    group.add_argument("--alpha", type=float, default=0.8, help="brcd: share of the individual space")
    group.add_argument("--margin", type=float, default=0.5, help="brcd: bits with a smaller |cluster mean| are masked")
    group.add_argument("--clusters", type=int, default=10)
    group.add_argument("--mask-rule", default="decided", help="brcd: decided, or undecided (the opposite)")
    group.add_argument("--variant", default="paper", help="brcd: paper, or released (the released code's slips)")
    for part, what in (
        ("mask", "bit masks"),
        ("cluster", "all cluster denoising: both of the next two"),
        ("offset", "the handling of offset augmentations"),
        ("false-negatives", "dropping false negatives"),
        ("individual", "the individual space (alpha 0)"),
        ("structural", "the structural semantics (alpha 1)"),
    ):
        group.add_argument(
            f"--no-{part}", dest=part.replace("-", "_"), action="store_false", help=f"brcd without {what}"
        )
    group.add_argument(
        "--hashing", default="cibhash", help=f"the student's own objective, one of: {', '.join(HASHING)}"
    )
    group.add_argument("--temperature", type=float, default=0.3, help="of CIBHash and BRCD")
    group.add_argument("--kl-weight", type=float, default=0.001)
    group = parser.add_argument_group("training")
    group.add_argument("--lr", type=float, default=1e-3)
    group.add_argument("--batch-size", type=int, default=64)
    group.add_argument("--epochs", type=int, default=400)
    group.add_argument("--validate-every", type=int, default=10)
    group.add_argument("--patience", type=int, default=5)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--run-dir", type=Path, required=True)
    group.add_argument("--resume", action="store_true", help="go on with the run in --run-dir, if there is one")
    teacher = parser.parse_known_args()[0].teacher
    parser.set_defaults(**inherited(teacher))
    args = parser.parse_args()
    for name, value, allowed in (
        ("method", args.method, METHODS),
        ("variant", args.variant, ("paper", "released")),
        ("bn", args.bn, ("frozen", "recalibrate")),
        ("hashing", args.hashing, HASHING),
    ):
        if value not in allowed:
            raise UserError(f"unknown --{name} '{value}'; there are: {', '.join(allowed)}")
    return args


def inherited(teacher: Path) -> dict:
    """What a student takes over from its teacher's run unless its own command line says otherwise."""
    known = read_args(teacher)
    kept = {name: known[name] for name in INHERITED if name in known}
    return {
        name: Path(value) if name in ("data_dir", "cache_dir", "lists_dir") and value else value
        for name, value in kept.items()
    }


def check_teacher(args, facts: dict, images) -> None:
    bits = facts["config"]["bits"]
    if args.bits not in (None, bits):
        raise UserError(
            f"{args.teacher}: a teacher of {bits} bits, --bits is {args.bits}; train a teacher of "
            f"{args.bits} bits, or leave --bits out"
        )
    if facts["data"] != images.fingerprint:
        raise UserError(
            f"{args.teacher}: was trained on other images or another split than --dataset {args.dataset} "
            "gives now; use the same data and split options for both"
        )


def build_student(args, images, device: torch.device) -> FrozenBackbone:
    """The student's backbone; recalibrated statistics are kept in the cache, so that every run has the same bits."""
    backbone = build_backbone(args.student, args.student_weights, args.student_features)
    if args.bn == "recalibrate":
        size = args.student_size or args.size
        name = seed_of(backbone.sha256, images.fingerprint, size)
        with file_lock(args.cache_dir / f"batch_norm_{name:x}.lock"):
            kept = args.cache_dir / f"batch_norm_{name:x}.pt"
            if not kept.exists():
                recalibrate_batch_norm(backbone, eval_batches(images, images.train, size, BATCH), device)
                save_atomically(kept, batch_norm_statistics(backbone))
            set_batch_norm_statistics(backbone, torch.load(kept, weights_only=True))
    return backbone


def teacher_knowledge(args, run: Run, train_codes: torch.Tensor, labels: np.ndarray) -> Knowledge:
    """Cluster the training images by the teacher's codes, make the masks, keep both with the run."""
    cluster, centroids = cluster_codes(train_codes, args.clusters, args.seed)
    masks = bit_masks(train_codes, cluster, args.clusters, args.margin, args.mask_rule)
    with written_aside(run.path("clusters.npz")) as file:
        np.savez(file, labels=cluster, centroids=centroids, bit_masks=masks)
    print(f"{args.clusters} clusters, purity {purity(cluster, labels):.3f}; masks keep {masks.mean():.0%} of the bits")
    return Knowledge(torch.from_numpy(cluster), torch.from_numpy(centroids), torch.from_numpy(masks))


def training_views(
    args, images, student: Extractor, teacher: Extractor, teacher_head: HashHead, device: torch.device, rotations: bool
) -> BankedViews | FreshViews:
    """The student's features and the teacher's logits of random views: out of banks, or new ones each epoch."""
    if not args.views:

        def teach(pixels: torch.Tensor) -> torch.Tensor:
            return teacher_head(teacher.engine(pixels).to(device)).detach()

        return FreshViews(
            images, [(student.engine, student.size), (teach, teacher.size)], args.seed, device, args.workers, rotations
        )
    banks = [student.bank(args.views), teacher_views(teacher_head, teacher.bank(args.views), device)]
    rotated = []
    if rotations:
        n = min(args.views, args.rotated_views)
        rotated = [
            [bank[:n] for bank in (banks[0], *(student.bank(n, q) for q in (1, 2, 3)))],
            [
                bank[:n]
                for bank in (banks[1], *(teacher_views(teacher_head, teacher.bank(n, q), device) for q in (1, 2, 3)))
            ],
        ]
    return BankedViews(banks, args.seed, rotated)


def teacher_views(head: HashHead, bank: np.ndarray, device: torch.device) -> torch.Tensor:
    """The teacher's logits of a bank of views, once: [N, n, dim] -> [N, n, b]."""
    with torch.no_grad():
        return torch.stack([head(torch.tensor(view).to(device).float()).cpu() for view in bank])


def main() -> None:
    distributed.start()
    args = parse()
    check_ranges(args)
    device = pick_device(args.device)
    schedule = Schedule(args.epochs, args.validate_every, args.patience)
    teacher_head, facts = load_teacher(args.teacher)
    images = load_data(args)
    check_teacher(args, facts, images)
    bits = facts["config"]["bits"]
    teacher_args = read_args(args.teacher)
    teacher_backbone = rebuild_backbone(facts, teacher_args["weights"])
    student_backbone = build_student(args, images, device)
    run = Run(args.run_dir, vars(args), args.resume)
    if run.finished:
        return print(f"{run.folder}: finished already")

    teacher_head.to(device)
    kind = student_head(student_backbone) if args.head == "auto" else args.head
    head = HashHead(student_backbone.dim, bits, kind, args.seed).to(device)
    teacher = extractor(args, images, teacher_backbone, device, teacher_args["size"])
    student = extractor(args, images, student_backbone, device, args.student_size)
    method_entry = METHODS[args.method]
    views = training_views(args, images, student, teacher, teacher_head, device, method_entry.rotations)
    knowledge = None
    if method_entry.clusters:
        train_codes = teacher_head.encode(teacher.evaluation(images.train))
        knowledge = teacher_knowledge(args, run, train_codes, images.labels[images.train])
    with seeded("method", args.seed):  # embeddings and memories of the methods that have them
        method = method_entry.build(args, Setting(bits, len(images.train), knowledge)).to(device)
    hashing = HASHING[args.hashing](args)
    modules = nn.ModuleDict({"head": head, "method": method})

    def steps(epoch: int):
        draw = generator("negatives", args.seed, epoch)
        for batch in views.epoch(epoch, args.batch_size):
            (student_features, teacher_logits), rotated = batch.pairs, batch.rotated
            student_features = student_features.to(device, non_blocking=True)  # [2, B, D]
            logits = head(student_features)  # [2, B, b]
            student_rotated, teacher_rotated = (
                (head(rotated[0].to(device)), rotated[1].to(device)) if rotated else (None, None)
            )
            terms = hashing(logits, student_features)
            extra = method(
                Batch(
                    batch.index.to(device),
                    logits,
                    teacher_logits.to(device, non_blocking=True),
                    draw,
                    student_rotated,
                    teacher_rotated,
                )
            )
            yield {**terms, **extra, "loss": terms["loss"] + args.kd_weight * sum(extra.values())}

    val, database = student.evaluation(images.val), student.evaluation(images.val_database)
    teacher_database = teacher_head.encode(teacher.evaluation(images.val_database))
    val_labels, database_labels = images.labels[images.val], images.labels[images.val_database]

    def validate() -> dict[str, float]:
        queries = head.encode(val)
        return {
            name: mean_average_precision(queries, codes, val_labels, database_labels, images.k)
            for name, codes in (("sshp", head.encode(database)), ("ashp", teacher_database))
        }

    def save_best(path: Path, epoch: int, metrics: dict[str, float]) -> None:
        save_head(
            path,
            head,
            role="student",
            backbone=student_backbone.describe(),
            data=images.fingerprint,
            epoch=epoch,
            metrics=metrics,
            batch_norm=statistics,
        )

    statistics = batch_norm_statistics(student_backbone) if args.bn == "recalibrate" else None
    optimizer = torch.optim.Adam(modules.parameters(), lr=args.lr, fused=True)
    summary = fit(run, modules, optimizer, steps, validate, save_best, schedule)
    train_features = student.evaluation(images.train)
    if not distributed.is_first():
        return
    best, _ = load_head(run.path("best_sshp.pt"))
    write_training_codes(run.folder, best.encode(train_features))
    run.finish(summary)
    for name, found in summary["best"].items():
        where = f"epoch {found['epoch']} of {summary['epochs']}"
        print(f"validation {name.upper()} mAP@{images.k} {found['value']:.4f}, {where}")
    print(f"in {run.folder}")


if __name__ == "__main__":
    guarded(main)
