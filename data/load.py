"""Data sets, one a file, and the transforms that all of them share."""

import argparse
from collections.abc import Callable
from pathlib import Path

from data import cifar10, digits, folder, from_lists, photos, shards
from data.dataset import HashingData, remarks
from data.features import add_feature_arguments
from data.protocols import PROTOCOLS, Protocol
from utils.options import COLUMN, FREE, Parser, one_of, whole

# From options, the folder of the data set, and a teacher's sample of photos.
Loader = Callable[[argparse.Namespace, Path, Path | None], HashingData]


def _from_lists(protocol: Protocol) -> Loader:
    return lambda args, root, _: from_lists.load(
        protocol, root, args.lists_dir, args.drop_leaks, args.split_seed, _cache_dir(args)
    )


def _cache_dir(args: argparse.Namespace) -> Path | None:
    return getattr(args, "cache_dir", None)  # commands that extract no features have none


DATASETS: dict[str, Loader] = {
    "cifar10": lambda args, root, _: cifar10.load(root),
    "digits": lambda args, root, _: digits.load(limit=args.limit),
    "folder": lambda args, root, _: folder.load(
        root, args.skip_broken, args.split_seed, args.drop_leaks, _cache_dir(args)
    ),
    "photos": lambda args, root, sample: photos.load(
        root, args.train_images, args.split_seed, _cache_dir(args), sample
    ),
    "shards": lambda args, root, _: shards.load(root, args.split_seed, args.drop_leaks, _cache_dir(args)),
    **{name: _from_lists(protocol) for name, protocol in PROTOCOLS.items()},
}


def add_data_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", type=one_of(DATASETS), default="digits", help=f"one of: {', '.join(DATASETS)}", marks={COLUMN}
    )
    group.add_argument("--data-dir", type=Path, help="folder of the data set (default: data/NAME)", marks={FREE})
    group.add_argument(
        "--lists-dir", type=Path, help="lists: where train, database and test are (default: --data-dir)", marks={COLUMN}
    )
    group.add_argument(
        "--drop-leaks",
        action="store_true",
        help="lists, folder, shards: drop queries from the database and training images instead of refusing",
    )
    group.add_argument("--skip-broken", action="store_true", help="folder: leave out images that do not decode")
    group.add_argument(
        "--split-seed", type=whole(0), default=0, help="folder, lists, photos, shards: seed of the split"
    )
    group.add_argument(
        "--train-images", type=whole(2), help=f"photos: how many train, at most (default: {photos.TRAIN_IMAGES})"
    )
    group.add_argument("--limit", type=whole(2), help="digits: keep only the first N images of each part (for tests)")


def input_parser() -> Parser:
    """The options of data and features: what a student takes over from its teacher's run, and a result from its run."""
    parser = Parser("")
    add_data_arguments(parser)
    add_feature_arguments(parser)
    return parser


def load_data(args: argparse.Namespace, teacher: Path | None = None) -> HashingData:
    """The data set that a command line names; prints what it holds.

    Args:
        teacher: its run's folder, which keeps what was drawn out of a folder of photos.

    Raises:
        UserError: what the data set's own loader refuses.
    """
    data = DATASETS[args.dataset](
        args, args.data_dir or Path("data") / args.dataset, teacher and teacher / photos.SAMPLE
    )
    data.notes.extend(remarks(data))
    print(data.describe())
    for note in data.notes:
        print(f"note: {note}")
    return data


def for_selection(select_by: str | None, data: HashingData) -> HashingData:
    """The same images as checkpoints are selected on them; None: of a run that is older than --select-by."""
    return photos.unlabelled(data) if select_by == "features" else data
