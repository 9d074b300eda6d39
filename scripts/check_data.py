"""Look at a data set before any work: ``python -m scripts.check_data --dataset mirflickr --data-dir DIR``.

Lists alone: ``python -m scripts.check_data --train F --database F --test F [--labels N] [--no-images]``. Prints counts
and label frequencies, then every problem; the exit status is 1 if there is one.
"""

from utils.errors import guarded  # isort: skip  (first: Ctrl-C while the rest is imported is one line too)

import argparse
from pathlib import Path

import numpy as np

from data.from_lists import read_parts, without_leaks
from data.lists import ImageList, merge, missing_files, read_list
from data.load import add_data_arguments, load_data
from data.protocols import PROTOCOLS, Protocol
from data.sources import FileImages, ImageSource, broken_images
from utils.errors import UserError
from utils.options import Parser, whole

SHOWN = 5


def describe(names: dict[str, int], labels: dict[str, np.ndarray], classes: list[str]) -> str:
    """A table of the parts and, of the first, the labels from most to least frequent."""
    lines = [f"{'part':10} {'images':>9} {'labels/image':>13} {'without label':>14}"]
    for part, count in names.items():
        rows = labels[part]
        lines.append(f"{part:10} {count:>9,} {rows.sum(axis=1).mean():>13.2f} {(~rows.any(axis=1)).sum():>14,}")
    part, rows = next(iter(labels.items()))
    share = rows.mean(axis=0)
    ranked = sorted(range(len(share)), key=lambda c: -share[c])
    shown = ranked if len(ranked) <= 24 else [*ranked[:12], *ranked[-12:]]
    text = ", ".join(f"{classes[c]} {share[c]:.1%}" for c in shown)
    return "\n".join(
        [*lines, f"labels of {part}, most frequent first{' (ends only)' if len(shown) < len(ranked) else ''}: {text}"]
    )


def check_lists(parts: dict[str, ImageList], drop_leaks: bool) -> tuple[dict[str, ImageList], list[str]]:
    """(parts less dropped leaks, problems) of lists that were read without a fault."""
    problems = []
    try:
        parts, notes = without_leaks(parts, drop_leaks) if "database" in parts else (parts, [])
        for note in notes:
            print(f"note: {note}")
    except UserError as error:
        problems.append(str(error))
    try:
        merge(parts)
    except UserError as error:
        problems.append(str(error))
    return parts, problems


def check_images(source: ImageSource, workers: int) -> list[str]:
    broken = list(broken_images(source, workers).values())
    more = [f"and {len(broken) - SHOWN} more broken images"] if len(broken) > SHOWN else []
    return broken[:SHOWN] + more


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


def read_given(args) -> dict[str, ImageList]:
    given = {part: getattr(args, part) for part in ("train", "database", "test", "val") if getattr(args, part)}
    if given:
        return {part: read_list(file, args.labels, args.prefix) for part, file in given.items()}
    protocol: Protocol | None = PROTOCOLS.get(args.dataset)
    if protocol is None:
        return {}
    return read_parts(protocol, args.lists_dir or args.data_dir or Path("data") / args.dataset)


def main() -> None:
    args = parse()
    parts = read_given(args)
    problems: list[str] = []
    if parts:
        parts, problems = check_lists(parts, args.drop_leaks)
        counts, labels = {p: len(one) for p, one in parts.items()}, {p: one.labels for p, one in parts.items()}
        classes = next(iter(parts.values())).classes
        if not args.no_images:
            root = args.data_dir or Path("data") / args.dataset
            problems += missing_files(root, list(parts.values()))
            there = sorted({name for one in parts.values() for name in one.names if (root / name).is_file()})
            problems += check_images(FileImages(root, there), args.workers)
    else:
        images = load_data(args)
        rows = {p: getattr(images, p) for p in ("train", "database", "val", "test")}
        counts, labels = {p: len(r) for p, r in rows.items()}, {p: images.labels[r] for p, r in rows.items()}
        classes = images.classes
        if not (args.no_images or images.decoded):
            problems += check_images(images.source, args.workers)
    print(describe(counts, labels, classes))
    if problems:
        raise UserError(f"{len(problems)} problems: " + "; ".join(problems))
    print("no problem found")


if __name__ == "__main__":
    guarded(main)
