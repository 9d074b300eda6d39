"""Look at a data set before any work: ``python -m scripts.check_data --dataset mirflickr --data-dir DIR``.

Lists alone: ``python -m scripts.check_data --train F --database F --test F [--labels N] [--no-images]``. Prints counts
and label frequencies, then every problem; the exit status is 1 if there is one.
"""

import argparse
from pathlib import Path

import numpy as np

from data.dataset import remarks
from data.from_lists import data_of, read_parts, without_leaks
from data.lists import ImageList, aligned, merge, missing_files, read_list
from data.load import add_data_arguments, load_data
from data.protocols import PROTOCOLS, Protocol
from data.sources import FileImages, broken_images
from utils.errors import UserError, guarded, some
from utils.options import Parser, whole


def describe(names: dict[str, int], labels: dict[str, np.ndarray], classes: list[str]) -> str:
    """A table of the parts and, of the first, the labels from most to least frequent."""
    lines = [f"{'part':10} {'images':>9} {'labels/image':>13} {'without label':>14}"]
    for part, count in names.items():
        rows = labels[part]
        lines.append(f"{part:10} {count:>9,} {rows.sum() / max(count, 1):>13.2f} {(~rows.any(axis=1)).sum():>14,}")
    part, rows = next(iter(labels.items()))
    if not classes:
        return "\n".join(lines)
    share = rows.sum(axis=0) / max(len(rows), 1)
    ranked = sorted(range(len(share)), key=lambda c: -share[c])
    shown = ranked if len(ranked) <= 24 else [*ranked[:12], *ranked[-12:]]
    text = ", ".join(f"{classes[c]} {share[c]:.1%}" for c in shown)
    return "\n".join(
        [*lines, f"labels of {part}, most frequent first{' (ends only)' if len(shown) < len(ranked) else ''}: {text}"]
    )


def check_lists(parts: dict[str, ImageList], args: argparse.Namespace) -> tuple[dict[str, ImageList], list[str]]:
    """(parts less dropped leaks, problems) of lists that were read without a fault; prints what is worth a note."""
    problems: list[str] = []
    notes: list[str] = []
    try:
        parts, notes = without_leaks(parts, args.drop_leaks)
    except UserError as error:
        problems.append(str(error))
    try:
        if {"train", "test"} <= parts.keys():  # what training would make of them
            whole_set = {**parts, "database": parts.get("database", parts["train"])}
            data = data_of(protocol_of(args), root_of(args), whole_set, notes, args.split_seed)
            notes = data.notes + remarks(data)
        else:
            merge(parts)
    except UserError as error:
        problems.append(str(error))
    for note in notes:
        print(f"note: {note}")
    return parts, problems


def parse() -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    add_data_arguments(parser)
    group = parser.add_argument_group("lists by themselves")
    for part in ("train", "database", "test", "val"):
        group.add_argument(f"--{part}", type=Path, metavar="LIST")
    group.add_argument("--labels", type=whole(1), help="labels a line")
    group.add_argument("--prefix", default="", help="removed from the front of paths")
    parser.add_argument("--no-images", action="store_true", help="do not open the images")
    parser.add_argument("--workers", type=whole(1), default=4, help="threads that decode")
    return parser.parse_args()


def protocol_of(args: argparse.Namespace) -> Protocol:
    return PROTOCOLS.get(args.dataset, PROTOCOLS["lists"])


def root_of(args: argparse.Namespace) -> Path:
    return args.data_dir or Path("data") / args.dataset


def read_given(args: argparse.Namespace) -> dict[str, ImageList]:
    given = {part: getattr(args, part) for part in ("train", "database", "test", "val") if getattr(args, part)}
    if given:
        return aligned({part: read_list(file, args.labels, args.prefix) for part, file in given.items()})
    if args.dataset not in PROTOCOLS:
        return {}
    return read_parts(protocol_of(args), args.lists_dir or root_of(args))


def main() -> None:
    args = parse()
    parts = read_given(args)
    problems: list[str] = []
    missing: list[str] = []
    broken: list[str] = []
    if parts:
        parts, problems = check_lists(parts, args)
        counts, labels = {p: len(one) for p, one in parts.items()}, {p: one.labels for p, one in parts.items()}
        classes = next(iter(parts.values())).classes
        if not args.no_images and (args.data_dir or args.dataset in PROTOCOLS):  # else lists by themselves
            root = root_of(args)
            missing = missing_files(root, list(parts.values()))
            there = sorted({name for one in parts.values() for name in one.names if (root / name).is_file()})
            broken = list(broken_images(FileImages(root, there), args.workers).values())
    else:
        images = load_data(args)
        rows = {p: getattr(images, p) for p in ("train", "database", "val", "test")}
        counts, labels = {p: len(r) for p, r in rows.items()}, {p: images.labels[r] for p, r in rows.items()}
        classes = images.classes
        if not (args.no_images or images.decoded):
            broken = list(broken_images(images.source, args.workers).values())
    print(describe(counts, labels, classes))
    if count := len(problems) + len(missing) + len(broken):
        kinds = [some(kind, between="; ") for kind in (problems, missing, broken) if kind]
        raise UserError(f"{count} problem{'s' * (count > 1)}: {'; '.join(kinds)}")
    print("no problem found")


if __name__ == "__main__":
    guarded(main)
