"""Train a teacher: a frozen backbone with a hash head, trained without labels (CIBHash by default).

python train_teacher.py --dataset cifar10 --backbone vit_b_16 --bits 64 --run-dir runs/teacher
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from data.dataset import HashingData
from data.features import Extractor, add_feature_arguments, extractor
from data.load import add_data_arguments, load_data
from data.views import BankedViews, FreshViews
from losses.hashing import HASHING
from models.backbones import BACKBONES, build_backbone
from models.engines import pick_device
from models.heads import TEACHER_FILE, HashHead, load_head, save_head
from models.itq import itq_head
from retrieval.codes import write_training_codes
from retrieval.metrics import mean_average_precision
from utils import distributed
from utils.errors import UserError, guarded
from utils.options import check_ranges
from utils.runs import Run
from utils.training import Schedule, fit

ITQ = "itq"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser)
    add_feature_arguments(parser)
    group = parser.add_argument_group("teacher")
    group.add_argument("--backbone", default="vit_b_16", help=f"one of: {', '.join(BACKBONES)}")
    group.add_argument(
        "--weights", default="pretrained", help="pretrained, a state dict's file, or random (tests only)"
    )
    group.add_argument("--features", default="auto", help="auto, logits or pooled")
    group.add_argument("--head", default="linear", help="linear or mlp")
    group.add_argument("--bits", type=int, default=64)
    group.add_argument("--hashing", default="cibhash", help=f"one of: {', '.join([*HASHING, ITQ])} (training-free)")
    group.add_argument("--temperature", type=float, default=0.3)
    group.add_argument("--kl-weight", type=float, default=0.001)
    group.add_argument("--lr", type=float, default=5e-4)
    group.add_argument("--batch-size", type=int, default=64)
    group.add_argument("--epochs", type=int, default=200)
    group.add_argument("--validate-every", type=int, default=5)
    group.add_argument("--patience", type=int, default=3)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--run-dir", type=Path, required=True)
    group.add_argument("--resume", action="store_true", help="go on with the run in --run-dir, if there is one")
    args = parser.parse_args()
    if args.hashing not in (*HASHING, ITQ):
        raise UserError(f"unknown --hashing '{args.hashing}'; there are: {', '.join([*HASHING, ITQ])}")
    return args


def head_facts(backbone, images: HashingData) -> dict:
    return {"role": "teacher", "backbone": backbone.describe(), "data": images.fingerprint}


def validation_map(head: HashHead, images: HashingData, features: Extractor) -> float:
    queries, database = (head.encode(features.evaluation(rows)) for rows in (images.val, images.val_database))
    return mean_average_precision(
        queries, database, images.labels[images.val], images.labels[images.val_database], images.k
    )


def fit_itq(args, run: Run, images: HashingData, features: Extractor, backbone) -> None:
    """ITQ has no epochs: one head from the training images' features."""
    rows = features.evaluation(images.train)
    head = itq_head(torch.from_numpy(rows[:].astype(np.float32)), args.bits, args.seed)
    found = validation_map(head, images, features)
    save_head(run.path(TEACHER_FILE), head, **head_facts(backbone, images), epoch=0, metrics={"map": found})
    finish(run, images, features, {"best": {"map": {"value": found, "epoch": 0}}, "epochs": 0})


def finish(run: Run, images: HashingData, features: Extractor, summary: dict) -> None:
    """Keep the best head's training codes, for the choice of clusters; then the run is whole."""
    train_features = features.evaluation(images.train)
    if not distributed.is_first():
        return
    best, _ = load_head(run.path(TEACHER_FILE))
    write_training_codes(run.folder, best.encode(train_features))
    run.finish(summary)
    found = summary["best"]["map"]
    print(
        f"validation mAP@{images.k} {found['value']:.4f} at epoch {found['epoch']} of {summary['epochs']}; {run.folder}"
    )


def main() -> None:
    distributed.start()
    args = parse()
    check_ranges(args)
    device = pick_device(args.device)
    schedule = Schedule(args.epochs, args.validate_every, args.patience)
    images = load_data(args)
    backbone = build_backbone(args.backbone, args.weights, args.features)
    head = HashHead(backbone.dim, args.bits, args.head, args.seed).to(device)
    run = Run(args.run_dir, vars(args), args.resume)
    if run.finished:
        return print(f"{run.folder}: finished already")

    features = extractor(args, images, backbone, device)
    if args.hashing == ITQ:
        return fit_itq(args, run, images, features, backbone)
    objective = HASHING[args.hashing](args)
    if args.views:
        views = BankedViews([features.bank(args.views)], args.seed)
    else:
        views = FreshViews(images, [(features.engine, args.size)], args.seed, device, args.workers)

    def steps(epoch: int):
        for batch in views.epoch(epoch, args.batch_size):
            pair = batch.pairs[0].to(device, non_blocking=True)  # [2, B, D]
            yield objective(head(pair), pair)

    features.evaluation(images.val)  # extracted now, not in the middle of training

    def validate() -> dict[str, float]:
        return {"map": validation_map(head, images, features)}

    def save_best(path: Path, epoch: int, metrics: dict[str, float]) -> None:
        save_head(path, head, **head_facts(backbone, images), epoch=epoch, metrics=metrics)

    optimizer = torch.optim.Adam(head.parameters(), lr=args.lr, fused=True)
    summary = fit(run, head, optimizer, steps, validate, save_best, schedule)
    finish(run, images, features, summary)


if __name__ == "__main__":
    guarded(main)
