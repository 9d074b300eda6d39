"""Data sets, one a file, and the transforms that all of them share."""

from pathlib import Path

from data import cifar10, digits, folder
from data.splits import HashingData
from utils.errors import UserError

DATASETS = {
    "cifar10": lambda args, root: cifar10.load(root),
    "digits": lambda args, root: digits.load(limit=args.limit),
    "folder": lambda args, root: folder.load(root, skip_broken=args.skip_broken, seed=args.split_seed),
}


def add_arguments(parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="digits", help=f"one of: {', '.join(DATASETS)}")
    group.add_argument("--data-dir", type=Path, help="folder of the data set (default: data/NAME)")
    group.add_argument("--skip-broken", action="store_true", help="folder: leave out images that do not decode")
    group.add_argument("--split-seed", type=int, default=0, help="folder: seed of its split")
    group.add_argument("--limit", type=int, help="digits: keep only the first N images of each part (for tests)")


def load(args) -> HashingData:
    """The data set that a command line names; prints what it holds.

    Raises:
        UserError: unknown name, or what the data set's own loader refuses.
    """
    if args.dataset not in DATASETS:
        raise UserError(f"unknown data set '{args.dataset}'; there are: {', '.join(DATASETS)}")
    data = DATASETS[args.dataset](args, args.data_dir or Path("data") / args.dataset)
    print(data.describe())
    for note in data.notes:
        print(f"note: {note}")
    return data
