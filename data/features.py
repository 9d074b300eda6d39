"""A data set's features by one backbone: from the cache, or extracted into it."""

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data import transforms
from data.dataset import HashingData
from data.views import Bank, Engine, Share, eval_batches, view_batches
from models.backbones import SIZE, FrozenBackbone
from models.engines import ENGINES, PRECISIONS, check_precision, choose_engine, engine_version, make_engine
from utils import distributed
from utils.cache import FeatureCache
from utils.devices import CHOICES
from utils.machine import cores
from utils.options import COLUMN, FREE, NEW_FEATURES, Parser, one_of, parse_size, view_count, whole
from utils.pipeline import one_late

BATCH = 64


class Extractor:
    """Features of one data set by one frozen backbone.

    Args:
        size: height and width of what the backbone sees, in pixels; None: the backbone's own.
        engine, precision: "auto" or a name; see ``choose_engine``.
        view_seed: of the bank of views (and of nothing else), so that runs of all seeds share one bank.
    """

    def __init__(
        self,
        data: HashingData,
        backbone: FrozenBackbone,
        device: torch.device,
        cache: FeatureCache,
        size: int | None = None,
        engine: str = "auto",
        precision: str = "auto",
        view_seed: int = 0,
        workers: int | None = None,
    ):
        self.data, self.backbone, self.device, self.cache = data, backbone, device, cache
        self.size, self.view_seed, self.workers = size or backbone.size, view_seed, workers or cores()
        self.engine_name, self.precision = choose_engine(engine, precision, device)
        self._engine: Engine | None = None

    def engine(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> features [B, dim]; compiled when first used, since a full cache never needs it."""
        if self._engine is None:
            self._engine = make_engine(self.backbone, self.size, self.device, self.engine_name, self.precision, BATCH)
            if self.precision != torch.float32:
                check_precision(self._engine, self.backbone, self.device, images)
        return self._engine(images)

    def _facts(self, rows: np.ndarray, **more: object) -> dict:
        rows_hash = hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).data).hexdigest()
        return {
            "dataset": self.data.name,
            "images": self.data.source.fingerprint,
            "rows": rows_hash,
            "backbone": self.backbone.describe(),
            "name": self.backbone.name,
            "size": self.size,
            "engine": engine_version(self.engine_name),
            "precision": str(self.precision),
            "device": self.device.type,
            **more,
        }

    def _part(self, start: int) -> Share:
        return Share(start, distributed.my_turns(), self.workers)

    def evaluation(self, rows: np.ndarray) -> "RowsOf":
        """Features of images ``rows`` under the evaluation transform; one cache entry for all that the split uses."""
        used = np.unique(np.concatenate([self.data.train, self.data.database, self.data.val, self.data.test]))

        def extract(start: int) -> Iterator[torch.Tensor]:
            batches = eval_batches(self.data, used, self.size, BATCH, self._part(start), self.backbone.crop_pct)
            return distributed.in_turn(one_late(map(self.engine, batches)))

        features = self.cache.get(
            self._facts(used, kind="evaluation", transforms=transforms.EVAL_VERSION, crop=self.data.crop),
            len(used),
            self.backbone.dim,
            extract,
            f"{self.backbone.name} features of {self.data.title}",
        )
        return RowsOf(features, np.searchsorted(used, rows))

    def bank(self, n_views: int, quarters: int = 0) -> np.ndarray:
        """Features of views 0..n_views-1 of the training images, rotated by ``quarters``, [n_views, n, dim]."""
        n, bank = len(self.data.train), Bank(n_views, self.view_seed, quarters)

        def extract(start: int) -> Iterator[torch.Tensor]:
            batches = view_batches(self.data, bank, self.size, BATCH, self.device, self._part(start))
            return distributed.in_turn(one_late(map(self.engine, batches)))

        rotated = {"quarters": quarters} if quarters else {}
        facts = self._facts(
            self.data.train,
            kind="views",
            transforms=transforms.VIEW_VERSION,
            flip=self.data.flip,
            view_seed=self.view_seed,
            **rotated,
        )
        features = self.cache.get(
            facts, n_views * n, self.backbone.dim, extract, f"{self.backbone.name} views of {self.data.title}"
        )
        return features.reshape(n_views, n, self.backbone.dim)


class RowsOf:
    """Some rows of an array, taken when sliced, so that a memory map is never whole in memory."""

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self.array, self.rows = array, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.array[self.rows[part]]


def add_feature_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("features")
    group.add_argument(
        "--views",
        type=view_count,
        default=0,
        help="random views an image, cached; 0: new ones each epoch",
        marks={NEW_FEATURES},
    )
    group.add_argument("--view-seed", type=whole(0), default=0, help="of the cached views; shared by runs of all seeds")
    group.add_argument(
        "--size", type=whole(1, 4096), default=SIZE, help="pixels, height and width of the input; of timm's its own"
    )
    group.add_argument("--device", default="auto", help=CHOICES, marks={COLUMN})
    group.add_argument("--engine", type=one_of(ENGINES), default="auto", help=f"{', '.join(ENGINES)} (CPU)")
    group.add_argument(
        "--precision", type=one_of(PRECISIONS), default="auto", help=f"of the frozen backbones: {', '.join(PRECISIONS)}"
    )
    group.add_argument("--cache-dir", type=Path, default=Path("cache"), help="where features are kept", marks={FREE})
    group.add_argument(
        "--cache-limit", type=parse_size, help="delete longest unused entries above this, such as 20G", marks={FREE}
    )
    group.add_argument(
        "--workers", type=whole(1), default=cores(), help="processes that read and crop images", marks={FREE}
    )


def extractor(
    args: argparse.Namespace, data: HashingData, backbone: FrozenBackbone, device: torch.device, size: int | None = None
) -> Extractor:
    return Extractor(
        data,
        backbone,
        device,
        FeatureCache(args.cache_dir, args.cache_limit),
        size or args.size,
        args.engine,
        args.precision,
        args.view_seed,
        args.workers,
    )
