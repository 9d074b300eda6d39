"""Train a teacher: a frozen backbone with a hash head, trained without labels (CIBHash by default).

python train_teacher.py --dataset cifar10 --backbone vit_b_16 --bits 64 --run-dir runs/teacher
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from data.dataset import HashingData
from data.features import Extractor, add_feature_arguments, extractor
from data.load import add_data_arguments, for_selection, load_data
from data.photos import keep_sample
from data.transforms import EVAL_VERSION
from data.views import BankedViews, FreshViews
from losses.cibhash import KL_WEIGHT
from losses.hashing import HASHING
from losses.nt_xent import TEMPERATURE
from models.backbones import BACKBONES, FEATURES, FrozenBackbone, backbone_name, build_backbone, check_size, own_size
from models.heads import HEADS, MOST_BITS, HashHead, load_head, save_head
from models.itq import ITQ, itq_head
from models.trained import best_file
from retrieval.codes import write_training_codes
from retrieval.metrics import mean_average_precision
from retrieval.relevance import measure, relevance
from utils import distributed
from utils.devices import pick_device, to_device
from utils.errors import guarded
from utils.options import COLUMN, Parser, named, notes_of_idle, one_of, real, whole
from utils.runs import Run
from utils.training import Schedule, add_training_arguments, fit, schedule_of


def make_parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    add_data_arguments(parser)
    add_feature_arguments(parser)
    group = parser.add_argument_group("teacher")
    group.add_argument(
        "--backbone", type=backbone_name, default="vit_b_16", help=f"{', '.join(BACKBONES)}, timm:NAME", marks={COLUMN}
    )
    group.add_argument("--weights", type=named, default="pretrained", help="pretrained, a file, or random (tests only)")
    group.add_argument("--features", type=one_of(FEATURES), default="auto", help=", ".join(FEATURES))
    group.add_argument("--head", type=one_of(HEADS), default="linear", help=", ".join(HEADS))
    group.add_argument("--bits", type=whole(1, MOST_BITS), default=64, help="code length", marks={COLUMN})
    group.add_argument(
        "--hashing",
        type=one_of((*HASHING, ITQ)),
        default="cibhash",
        help=f"{', '.join(HASHING)} or itq",
        marks={COLUMN},
    )
    group.add_argument("--temperature", type=real(1e-6), default=TEMPERATURE, help="of CIBHash")
    group.add_argument("--kl-weight", type=real(0), default=KL_WEIGHT, help="of CIBHash's KL term")
    add_training_arguments(group, Schedule(epochs=200, validate_every=5, patience=3), lr=5e-4)
    return parser


def parse() -> argparse.Namespace:
    """The command line; where it says no --size, the network's own."""
    parser = make_parser()
    parser.set_defaults(size=own_size(parser.parse_known_args()[0].backbone))
    return parser.parse_args()


def idle(args: argparse.Namespace) -> list[str]:
    """Options that do nothing beside the others."""
    heeded = {"temperature": args.hashing == "cibhash", "kl_weight": args.hashing == "cibhash", "view_seed": args.views}
    return [name for name, counts in heeded.items() if not counts]


def head_facts(backbone: FrozenBackbone, images: HashingData) -> dict:
    return {"role": "teacher", "backbone": backbone.describe(), "data": images.fingerprint, "transforms": EVAL_VERSION}


def validation(head: HashHead, images: HashingData, features: Extractor) -> Callable[[], dict[str, float]]:
    """A function that measures ``head`` on the validation queries; features and what is relevant are had once."""
    val, database = features.evaluation(images.val), features.evaluation(images.val_database)
    labels = relevance(images, images.val, images.val_database, features)
    return lambda: {"map": mean_average_precision(head.encode(val), head.encode(database), *labels, images.k)}


def fit_itq(
    args: argparse.Namespace, run: Run, images: HashingData, features: Extractor, backbone: FrozenBackbone
) -> None:
    """ITQ has no epochs: one head from the training images' features."""
    rows = features.evaluation(images.train)
    head = itq_head(torch.from_numpy(rows[:].astype(np.float32)), args.bits, args.seed)
    metrics = validation(head, for_selection(args.select_by, images), features)()
    save_head(run.path(best_file("map")), head, **head_facts(backbone, images), epoch=0, metrics=metrics)
    finish(args, run, images, features, {"best": {"map": {"value": metrics["map"], "epoch": 0}}, "epochs": 0})


def finish(args: argparse.Namespace, run: Run, images: HashingData, features: Extractor, summary: dict) -> None:
    """Keep the best head's training codes, for the choice of clusters; then the run is whole."""
    train_features = features.evaluation(images.train)
    if not distributed.is_first():
        return
    best, _ = load_head(run.path(best_file("map")))
    write_training_codes(run.folder, best.encode(train_features))
    run.finish(summary)
    chosen = summary["best"]["map"]
    where = f"at epoch {chosen['epoch']} of {summary['epochs']}"
    print(f"validation {measure(for_selection(args.select_by, images))} {chosen['value']:.4f} {where}; {run.folder}")


def training_views(args: argparse.Namespace, images: HashingData, features: Extractor) -> BankedViews | FreshViews:
    if args.views:
        return BankedViews([features.bank(args.views)], args.seed, device=features.device)
    return FreshViews(images, [(features.engine, args.size)], args.seed, features.device, args.workers)


def main() -> None:
    distributed.start()
    args = parse()
    device = pick_device(args.device)
    for note in notes_of_idle(make_parser(), args, idle(args)):
        print(f"note: {note}")
    check_size(args.backbone, args.size)
    images = load_data(args, args.run_dir)
    backbone = build_backbone(args.backbone, args.weights, args.features)
    head = HashHead(backbone.dim, args.bits, args.head, args.seed).to(device)
    features = extractor(args, images, backbone, device)
    run = Run(args, make_parser(), idle(args))
    if run.finished:
        return print(f"{run.folder}: finished already")

    if args.dataset == "photos" and distributed.is_first():
        keep_sample(images, run.folder)
    with run.preparing():
        if args.hashing == ITQ:
            return fit_itq(args, run, images, features, backbone)
        objective = HASHING[args.hashing](temperature=args.temperature, kl_weight=args.kl_weight)
        views = training_views(args, images, features)
        validate = validation(head, for_selection(args.select_by, images), features)

    def steps(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for batch in views.epoch(epoch, args.batch_size):
            pair = to_device(batch.pairs[0], device)  # [2, B, D]
            yield objective(head(pair), pair)

    def save_best(path: Path, epoch: int, metrics: dict[str, float]) -> None:
        save_head(path, head, **head_facts(backbone, images), epoch=epoch, metrics=metrics)

    optimizer = torch.optim.Adam(head.parameters(), lr=args.lr, fused=True)
    summary = fit(run, head, optimizer, steps, validate, save_best, schedule_of(args))
    finish(args, run, images, features, summary)


if __name__ == "__main__":
    guarded(main)
