"""What a data set is to this project: images, labels, and which of them train, are searched and ask."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data.sources import ImageSource
from utils.errors import UserError


@dataclass(frozen=True)
class HashingData:
    """A data set with its split; ``train``, ``database``, ``val`` and ``test`` are positions in ``images``.

    Attributes:
        source: where the pixels come from.
        labels: uint8 [n, L] of 0/1; one 1 a row for single-label sets. Never used in training, only to judge.
        k: the field's cut-off for mAP@k on this set.
        crop: False resizes to size x size for evaluation; True resizes the short side, then crops the centre.
        val_database: what validation queries search; the database, unless they were taken out of it.
        decoded: every image was decoded while loading, or never needs to be.
        flip: whether a mirrored image means the same (photographs yes, digits no).
    """

    name: str
    source: ImageSource
    labels: np.ndarray
    classes: list[str]
    train: np.ndarray
    database: np.ndarray
    val: np.ndarray
    test: np.ndarray
    k: int
    crop: bool = True
    flip: bool = True
    val_database: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    decoded: bool = False

    def __post_init__(self):
        if self.val_database is None:
            object.__setattr__(self, "val_database", self.database)
        for part in ("train", "database", "val", "test"):
            if len(getattr(self, part)) == 0:
                raise UserError(f"data set {self.name}: its {part} part is empty; add images or change the split")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of images, labels and split: two runs may share features and teachers only if it is the same."""
        digest = hashlib.sha256(self.source.fingerprint.encode())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        apart = [] if np.array_equal(self.val_database, self.database) else [self.val_database]
        for part in (self.train, self.database, self.val, self.test, *apart):
            digest.update(np.asarray(part, dtype=np.int64).tobytes() + b"|")
        return digest.hexdigest()

    def describe(self) -> str:
        counts = ", ".join(f"{len(getattr(self, part)):,} {part}" for part in ("train", "database", "val", "test"))
        return f"{self.name}: {counts}; {self.labels.shape[1]} labels"


def one_hot(classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Class numbers [n] as uint8 [n, n_classes]."""
    return np.eye(n_classes, dtype=np.uint8)[classes]
