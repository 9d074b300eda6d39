"""Distil a teacher's hashing into a small student.

    python distill.py --teacher runs/teacher --student efficientnet_b0 --method brcd --run-dir runs/brcd

Data and feature options default to the teacher's own. Clusters and bit masks are made here, from the teacher's codes of
the training images, and kept with the run.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.dataset import HashingData
from data.features import BATCH, Extractor, add_feature_arguments, extractor
from data.load import add_data_arguments, for_selection, input_parser, load_data
from data.transforms import EVAL_VERSION
from data.views import BankArray, BankedViews, FreshViews, ViewBatch, eval_batches
from losses.cibhash import KL_WEIGHT
from losses.hashing import HASHING
from losses.kl import KD_TEMPERATURE
from losses.masks import MASK_RULES, bit_masks, choose_clusters, cluster_codes, purity
from losses.methods import METHODS, VARIANTS, Batch, BRCDOptions, Knowledge, build_method
from models.backbones import (
    BACKBONES,
    FEATURES,
    FrozenBackbone,
    backbone_name,
    batch_norm_statistics,
    build_backbone,
    check_size,
    own_size,
    recalibrate_batch_norm,
    set_batch_norm_statistics,
)
from models.heads import HEADS, MOST_BITS, HashHead, load_head, save_head, student_head
from models.trained import Trained, best_file, read_teacher
from retrieval.codes import write_training_codes
from retrieval.metrics import mean_average_precision
from retrieval.relevance import measure, relevance
from utils import distributed
from utils.checkpoints import read_checkpoint, save_atomically
from utils.devices import pick_device, to_device
from utils.errors import UserError, guarded
from utils.files import file_lock, read_csv, written_aside
from utils.options import COLUMN, NEW_FEATURES, Parser, named, notes_of_idle, one_of, or_auto, real, whole
from utils.runs import Run, read_args
from utils.seeds import generator, seed_of, seeded
from utils.training import Schedule, add_training_arguments, fit, schedule_of

BN, BN_KIND = ("frozen", "recalibrate"), "brcd-batch-norm"
ON_CODES = [name for name, method in METHODS.items() if "both_views" in method.own]
PARTS = {
    "mask": "bit masks",
    "cluster": "all cluster denoising: both of the next two",
    "offset": "the handling of offset augmentations",
    "false_negatives": "dropping false negatives",
    "individual": "the individual space (alpha 0)",
    "structural": "the structural semantics (alpha 1)",
}


def make_parser(method: str = "brcd") -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    add_data_arguments(parser)
    add_feature_arguments(parser)
    group = parser.add_argument_group("student")
    group.add_argument(
        "--teacher", type=Path, required=True, metavar="RUN", help="folder of a finished teacher run", marks={COLUMN}
    )
    group.add_argument(
        "--student",
        type=backbone_name,
        default="efficientnet_b0",
        help=f"{', '.join(BACKBONES)}, timm:NAME",
        marks={COLUMN},
    )
    group.add_argument(
        "--student-weights", type=named, default="pretrained", help="pretrained, a file, or random (tests only)"
    )
    group.add_argument(
        "--student-features", type=one_of(FEATURES), default="auto", help=", ".join(FEATURES), marks={NEW_FEATURES}
    )
    group.add_argument(
        "--student-size",
        type=whole(1, 4096),
        help="pixels that the student sees (default: --size)",
        marks={COLUMN, NEW_FEATURES},
    )
    group.add_argument("--head", type=one_of(("auto", *HEADS)), default="auto", help=f"auto, {', '.join(HEADS)}")
    group.add_argument(
        "--bn",
        type=one_of(BN),
        default="frozen",
        help="recalibrate: BatchNorm of the training images",
        marks={NEW_FEATURES},
    )
    group.add_argument("--bits", type=whole(1, MOST_BITS), help="must be the teacher's (the default)", marks={COLUMN})
    group = parser.add_argument_group("method")
    group.add_argument("--method", type=one_of(METHODS), default=method, help=", ".join(METHODS), marks={COLUMN})
    group.add_argument("--rotated-views", type=whole(1), default=2, help="sskd: cached views that are rotated too")
    weights = ", ".join(f"{name} {m.kd_weight:g}" for name, m in METHODS.items() if name != "none")
    group.add_argument(
        "--kd-weight",
        type=real(0),
        default=METHODS[method].kd_weight,
        help=f"of the distillation term; its default is the method's: {weights}",
    )
    group.add_argument(
        "--both-views", action="store_true", help=f"{', '.join(ON_CODES)}: the mean over both views, not view i alone"
    )
    group.add_argument("--kd-temperature", type=real(1e-6), default=KD_TEMPERATURE, help="kl: of softened outputs")
    group.add_argument(
        "--alpha", type=real(0, 1), default=BRCDOptions.alpha, help="brcd: share of the individual space"
    )
    group.add_argument("--margin", type=real(0, 1), default=BRCDOptions.margin, help="brcd: of |mean|, below it masked")
    group.add_argument(
        "--clusters",
        type=or_auto(whole(1)),
        default=BRCDOptions.clusters,
        help="brcd: of the teacher's codes; auto: the highest silhouette's number",
    )
    group.add_argument(
        "--mask-rule", type=one_of(MASK_RULES), default=BRCDOptions.mask_rule, help=f"brcd: {', '.join(MASK_RULES)}"
    )
    group.add_argument(
        "--variant", type=one_of(VARIANTS), default=BRCDOptions.variant, help=f"brcd: {', '.join(VARIANTS)}"
    )
    group.add_argument(
        "--hardness", type=real(0), default=BRCDOptions.hardness, help="brcd: of hard-negative reweighting"
    )
    for part, what in PARTS.items():
        group.add_argument(
            f"--no-{part.replace('_', '-')}", dest=part, action="store_false", help=f"brcd without {what}"
        )
    group.add_argument(
        "--hashing", type=one_of(HASHING), default="cibhash", help=f"its own objective: {', '.join(HASHING)}"
    )
    group.add_argument("--temperature", type=real(1e-6), default=BRCDOptions.temperature, help="of CIBHash and BRCD")
    group.add_argument("--kl-weight", type=real(0), default=KL_WEIGHT, help="of CIBHash's KL term")
    add_training_arguments(
        parser.add_argument_group("training"), Schedule(epochs=400, validate_every=10, patience=5), lr=1e-3
    )
    return parser


def parse() -> argparse.Namespace:
    """The command line, over what the student takes from its teacher's run."""
    first = make_parser().parse_known_args()[0]
    parser, known = make_parser(first.method), read_args(first.teacher)
    inherited = {name: known[name] for name in input_parser().defaults() if name in known}
    try:
        parser.check(inherited)
    except UserError as error:
        raise UserError(f"the teacher's args.yaml: damaged ({error}); train it again") from None
    parser.set_defaults(**inherited)
    if inherited.get("size") == own_size(str(known.get("backbone"))):  # not chosen: the student has its own too
        parser.set_defaults(size=own_size(first.student))
    return parser.parse_args()


def idle(args: argparse.Namespace) -> list[str]:
    """Options that do nothing beside the others."""
    heeded = {name: name in METHODS[args.method].own for method in METHODS.values() for name in method.own}
    cibhash = args.hashing == "cibhash"
    heeded |= {"temperature": cibhash or args.method == "brcd", "kl_weight": cibhash}
    heeded |= {"kd_weight": args.method != "none", "view_seed": args.views}
    return [name for name, counts in heeded.items() if not counts]


def notes(args: argparse.Namespace) -> Iterator[str]:
    """What is allowed and hardly meant."""
    yield from notes_of_idle(make_parser(args.method), args, idle(args))
    if args.batch_size == 1:
        yield "--batch-size 1: a batch of one has nothing to contrast, and several methods become one"
    if METHODS[args.method].clusters and args.clusters == 1:
        yield "--clusters 1: all images are of one cluster, which leaves BRCD no negatives"
    tried = args.teacher / "cluster_numbers.csv"
    if METHODS[args.method].clusters and tried.exists():
        best = int(max(read_csv(tried), key=lambda row: float(row["silhouette"]))["clusters"])
        if args.clusters not in (best, "auto"):
            yield f"--clusters is {args.clusters}; {tried} has its highest silhouette at {best}"


def brcd_options(args: argparse.Namespace) -> BRCDOptions:
    return BRCDOptions(**{f.name: getattr(args, f.name) for f in fields(BRCDOptions)})


def check_teacher(args: argparse.Namespace, teacher: Trained, images: HashingData) -> None:
    if args.bits not in (None, teacher.bits):
        raise UserError(
            f"{args.teacher}: a teacher of {teacher.bits} bits, --bits is {args.bits}; train a teacher of "
            f"{args.bits} bits, or leave --bits out"
        )
    teacher.check_data(images.fingerprint, EVAL_VERSION)


def build_student(args: argparse.Namespace, images: HashingData, device: torch.device) -> FrozenBackbone:
    """The student's backbone; recalibrated statistics are kept in the cache, so that every run has the same bits."""
    backbone = build_backbone(args.student, args.student_weights, args.student_features)
    if args.bn == "recalibrate":
        size = args.student_size or args.size
        name = seed_of(BN_KIND, backbone.sha256, images.fingerprint, size, *backbone.prepared().values())
        with file_lock(args.cache_dir / f"batch_norm_{name:x}.lock"):
            kept = args.cache_dir / f"batch_norm_{name:x}.pt"
            if not kept.exists():
                batches = eval_batches(images, images.train, size, BATCH, crop_pct=backbone.crop_pct)
                recalibrate_batch_norm(backbone, batches, device)
                save_atomically(kept, {"kind": BN_KIND, "statistics": batch_norm_statistics(backbone)})
            set_batch_norm_statistics(backbone, read_checkpoint(kept, BN_KIND)["statistics"])
    return backbone


def teacher_knowledge(args: argparse.Namespace, run: Run, train_codes: torch.Tensor, labels: np.ndarray) -> Knowledge:
    """Cluster the training images by the teacher's codes, make the masks, keep both with the run."""
    n_clusters = choose_clusters(train_codes, args.seed) if args.clusters == "auto" else args.clusters
    cluster, centroids = cluster_codes(train_codes, n_clusters, args.seed)
    masks = bit_masks(train_codes, cluster, n_clusters, args.margin, args.mask_rule)
    with written_aside(run.path("clusters.npz")) as file:
        np.savez(file, labels=cluster, centroids=centroids, bit_masks=masks)
    pure = f", purity {purity(cluster, labels):.3f}" if labels.shape[1] else ""
    print(f"{n_clusters} clusters{pure}; masks keep {masks.mean():.0%} of the bits")
    return Knowledge(torch.from_numpy(cluster), torch.from_numpy(centroids), torch.from_numpy(masks))


def training_views(
    args: argparse.Namespace,
    images: HashingData,
    student: Extractor,
    teacher: Extractor,
    teacher_head: HashHead,
    device: torch.device,
    rotations: bool,
) -> BankedViews | FreshViews:
    """The student's features and the teacher's logits of random views: out of banks, or new ones each epoch."""
    if not args.views:

        def teach(pixels: torch.Tensor) -> torch.Tensor:
            return teacher_head(teacher.engine(pixels).to(device)).detach()

        return FreshViews(
            images, [(student.engine, student.size), (teach, teacher.size)], args.seed, device, args.workers, rotations
        )
    banks: list[BankArray] = [student.bank(args.views), teacher_views(teacher_head, teacher.bank(args.views), device)]
    rotated: list[list[BankArray]] = []
    if rotations:
        n = min(args.views, args.rotated_views)
        rotated = [
            [bank[:n] for bank in (banks[0], *(student.bank(n, q) for q in (1, 2, 3)))],
            [
                bank[:n]
                for bank in (banks[1], *(teacher_views(teacher_head, teacher.bank(n, q), device) for q in (1, 2, 3)))
            ],
        ]
    return BankedViews(banks, args.seed, rotated, device)


def teacher_views(head: HashHead, bank: np.ndarray, device: torch.device) -> torch.Tensor:
    """The teacher's logits of a bank of views, once: [N, n, dim] -> [N, n, b]."""
    with torch.no_grad():
        return torch.stack([head(torch.tensor(view).to(device).float()).cpu() for view in bank])


class Step:
    """What the student learns from one batch: its own objective and the method's terms."""

    def __init__(self, head: HashHead, hashing: nn.Module, method: nn.Module, kd_weight: float, device: torch.device):
        self.head, self.hashing, self.method = head, hashing, method
        self.kd_weight, self.device = kd_weight, device

    def __call__(self, views: ViewBatch, draw: torch.Generator) -> dict[str, torch.Tensor]:
        """The batch's terms, "loss" among them."""
        student_features, teacher_logits = (to_device(rows, self.device) for rows in views.pairs)
        logits = self.head(student_features)  # [2, B, D] -> [2, B, b]
        student_rotated = teacher_rotated = None
        if views.rotated:
            turned, teacher_rotated = (to_device(rows, self.device) for rows in views.rotated)
            student_rotated = self.head(turned)  # [4, B, b]
        index = to_device(views.index, self.device)
        terms = self.hashing(logits, student_features)
        extra = self.method(Batch(index, logits, teacher_logits, draw, student_rotated, teacher_rotated))
        return {**terms, **extra, "loss": terms["loss"] + self.kd_weight * sum(extra.values())}


def validation(
    head: HashHead, student: Extractor, teacher: Extractor, teacher_head: HashHead, images: HashingData
) -> Callable[[], dict[str, float]]:
    """A function that measures ``head`` on the validation queries, in both settings; all else is had once."""
    val, database = student.evaluation(images.val), student.evaluation(images.val_database)
    teacher_database = teacher_head.encode(teacher.evaluation(images.val_database))
    labels = relevance(images, images.val, images.val_database, teacher)

    def validate() -> dict[str, float]:
        queries = head.encode(val)
        return {
            name: mean_average_precision(queries, codes, *labels, images.k)
            for name, codes in (("sshp", head.encode(database)), ("ashp", teacher_database))
        }

    return validate


def main() -> None:
    distributed.start()
    args = parse()
    device = pick_device(args.device)
    check_size(args.student, args.student_size or args.size)
    trained = read_teacher(args.teacher)
    teacher_head = trained.heads["map"]
    images = load_data(args, args.teacher)
    check_teacher(args, trained, images)
    judged = for_selection(args.select_by, images)
    student_backbone, teacher_backbone = build_student(args, images, device), trained.backbone()
    kind = student_head(student_backbone) if args.head == "auto" else args.head
    head = HashHead(student_backbone.dim, trained.bits, kind, args.seed).to(device)
    teacher = extractor(args, images, teacher_backbone, device, trained.size)
    student = extractor(args, images, student_backbone, device, args.student_size)
    for note in notes(args):
        print(f"note: {note}")
    run = Run(args, make_parser(args.method), idle(args))
    if run.finished:
        return print(f"{run.folder}: finished already")

    teacher_head.to(device)
    needs, knowledge = METHODS[args.method], None
    with run.preparing():
        views = training_views(args, images, student, teacher, teacher_head, device, needs.rotations)
        if needs.clusters:
            train_codes = teacher_head.encode(teacher.evaluation(images.train))
            knowledge = teacher_knowledge(args, run, train_codes, images.labels[images.train])
        validate = validation(head, student, teacher, teacher_head, judged)
    with seeded("method", args.seed):  # embeddings and memories of the methods that have them
        of = args.method, trained.bits, len(images.train), knowledge, brcd_options(args)
        method = build_method(*of, args.both_views, args.kd_temperature).to(device)
    hashing = HASHING[args.hashing](temperature=args.temperature, kl_weight=args.kl_weight)
    step = Step(head, hashing, method, args.kd_weight, device)

    def steps(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        draw = generator("negatives", args.seed, epoch)
        return (step(batch, draw) for batch in views.epoch(epoch, args.batch_size))

    described = {
        "role": "student",
        "backbone": student_backbone.describe(),
        "batch_norm": batch_norm_statistics(student_backbone) if args.bn == "recalibrate" else None,
        "data": images.fingerprint,
        "teacher": trained.head_hash,
        "transforms": EVAL_VERSION,
    }

    def save_best(path: Path, epoch: int, metrics: dict[str, float]) -> None:
        save_head(path, head, **described, epoch=epoch, metrics=metrics)

    modules = nn.ModuleDict({"head": head, "method": method})
    optimizer = torch.optim.Adam(modules.parameters(), lr=args.lr, fused=True)
    summary = fit(run, modules, optimizer, steps, validate, save_best, schedule_of(args))
    train_features = student.evaluation(images.train)
    if not distributed.is_first():
        return
    best, _ = load_head(run.path(best_file("sshp")))
    write_training_codes(run.folder, best.encode(train_features))
    run.finish(summary)
    for name, chosen in summary["best"].items():
        where = f"epoch {chosen['epoch']} of {summary['epochs']}"
        print(f"validation {name.upper()} {measure(judged)} {chosen['value']:.4f}, {where}")
    print(f"in {run.folder}")


if __name__ == "__main__":
    guarded(main)
