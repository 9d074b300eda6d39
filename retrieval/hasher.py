"""Codes of images by the heads of a run: what evaluation measures, and what an exported file must give."""

import argparse
from pathlib import Path

import numpy as np
import torch

from data.dataset import HashingData
from data.features import extractor
from data.load import add_data_arguments, input_parser
from models.trained import Trained
from utils.devices import pick_device
from utils.errors import UserError
from utils.options import Parser


def _of_data() -> set[str]:
    parser = Parser("")
    add_data_arguments(parser)
    return set(parser.defaults())


# Options of a data set that is not the run's own; the others of data also say where the run's own lies now.
OTHER_DATA = _of_data() - {"dataset", "data_dir", "lists_dir"}


def parse_over_run(parser: Parser) -> argparse.Namespace:
    """The command line of ``parser`` with the options of a run that it may override.

    Raises:
        UserError: options of other images, without their --dataset.
    """
    add_data_arguments(parser)
    parser.set_defaults(dataset=None)  # without it: what the run was trained on, --data-dir and --lists-dir as of now
    parser.add_argument("--cache-dir", type=Path, help="default: the run's")
    parser.add_argument("--device", help="default: the run's")
    args = parser.parse_args()
    alone = sorted(name for name in OTHER_DATA if getattr(args, name) != parser.get_default(name))
    if alone and args.dataset is None:
        raise UserError(
            f"--{alone[0].replace('_', '-')} is of other images than the run's own: name their --dataset too"
        )
    return args


def run_options(args: argparse.Namespace, run: Trained) -> argparse.Namespace:
    """The run's own options, with what a command line overrides: another data set, or where data and features are now.

    Raises:
        UserError: the run's arguments are damaged.
    """
    for one in (run, run.teacher) if run.teacher else (run,):
        try:
            input_parser().check(one.args)
        except UserError as error:
            raise UserError(f"{one.folder}/args.yaml: damaged ({error}); train that run again") from None
    kept = argparse.Namespace(**input_parser().defaults() | run.args)  # an older run may lack a newer option
    if args.dataset:
        for name in ("dataset", "data_dir", "lists_dir", *OTHER_DATA):
            setattr(kept, name, getattr(args, name))
    for name in ("data_dir", "cache_dir", "lists_dir"):
        value = getattr(args, name) or getattr(kept, name)
        setattr(kept, name, Path(value) if value else None)
    kept.device = args.device or kept.device
    return kept


class Hasher:
    """Codes of any images of the data set by the network under a run's heads."""

    def __init__(self, run: Trained, options: argparse.Namespace, images: HashingData):
        self.run, self.backbone, self.device = run, run.backbone(), pick_device(options.device)
        self.features = extractor(options, images, self.backbone, self.device, run.size)

    def codes(self, metric: str, rows: np.ndarray) -> torch.Tensor:
        """int8 [n, bits] of images ``rows`` by the head that ``metric`` chose."""
        return self.run.heads[metric].to(self.device).encode(self.features.evaluation(rows))
