"""What a data set is to this project: images, labels, and which of them train, are searched and ask."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from data.sources import ImageSource
from utils.errors import UserError

NO_LABELS = (
    "no labels: relevant to a query are the {k} searched images nearest to it by cosine of the teacher's features; mAP "
    "says how well codes find those, and nothing about classes"
)


@dataclass(frozen=True)
class HashingData:
    """A data set with its split; ``train``, ``database``, ``val`` and ``test`` are positions in ``images``.

    Attributes:
        source: where the pixels come from.
        labels: uint8 [n, L] of 0/1; one 1 a row for single-label sets, no column where there are none. Never used in
            training, only to judge.
        k: the field's cut-off for mAP@k on this set, or the size of a smaller database.
        crop: False resizes to size x size for evaluation; True resizes the short side, then crops the centre.
        val_database: what validation queries search; left empty, the database.
        decoded: every image was decoded while loading, or never needs to be.
        flip: whether a mirrored image means the same (photographs yes, digits no).
        title: what tables and figures call it: the name, and of one's own images which.
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
    val_database: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    notes: list[str] = field(default_factory=list)
    decoded: bool = False
    title: str = ""

    def __post_init__(self) -> None:
        if not len(self.val_database):
            object.__setattr__(self, "val_database", self.database)
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "k", min(self.k, len(self.database)))
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

    @property
    def labelled(self) -> bool:
        return self.labels.shape[1] > 0

    def describe(self) -> str:
        counts = ", ".join(f"{len(getattr(self, part)):,} {part}" for part in ("train", "database", "val", "test"))
        return f"{self.name}: {counts}; {self.labels.shape[1] or 'no'} labels"


def one_hot(classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Class numbers [n] as uint8 [n, n_classes]."""
    rows = np.zeros((len(classes), n_classes), dtype=np.uint8)
    rows[np.arange(len(classes)), classes] = 1
    return rows


def remarks(data: HashingData) -> list[str]:
    """What makes a data set's numbers mean little, in words."""
    found, labels = [], data.labels
    if len(data.train) == 1:
        found.append("one training image: nothing to tell apart")
    if not data.labelled:
        return [*found, NO_LABELS.format(k=data.k)]
    if labels.shape[1] == 1 and 0 < labels.sum() < len(labels):
        found.append("one 0/1 column is ONE label, and 0 is no label; two classes are written as rows '1 0' and '0 1'")
    asked, searched = labels[data.test], labels[data.database]
    if not asked[:, searched.any(axis=0)].any():
        found.append("no test query shares a label with any database image: mAP is 0, whatever the codes")
    elif asked[:, searched.all(axis=0)].any(axis=1).all():
        found.append("every test query shares a label with every database image: mAP is 1, whatever the codes")
    return found


def leaked(keys: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By part, which of its images are queries as well, bool [n]; parts without any are left out.

    Test images are looked for among the validation queries, both among the images to search and to train on.

    Args:
        keys: by part, what tells images apart: names, or hashes of their content.
    """
    found = {}
    for part, asking in (("val", ("test",)), ("database", ("test", "val")), ("train", ("test", "val"))):
        queries = [keys[name] for name in asking if name in keys]
        if part in keys and queries and (shared := np.isin(keys[part], np.concatenate(queries))).any():
            found[part] = shared
    return found


def without_shared_content(
    root: Path, source: ImageSource, parts: dict[str, np.ndarray], drop: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parts without images of the same content as a query, and notes of how many went; refused unless ``drop``.

    Raises:
        UserError: there are such images, and ``drop`` is False.
    """
    kept, notes = dict(parts), []
    content = np.ascontiguousarray(source.digests).view("S32")[:, 0]
    for part, shared in leaked({part: content[rows] for part, rows in parts.items()}).items():
        if part == "train" and parts["train"] is parts["database"]:
            kept["train"] = kept["database"]
            continue
        first = parts[part][shared.argmax()]
        queries = np.concatenate([parts["test"], *([parts["val"]] if part != "val" else [])])
        query = queries[(content[queries] == content[first]).argmax()]
        what = (
            f"{shared.sum()} {part} images are queries too, by content: {source.names[first]} is {source.names[query]}"
        )
        if not drop:
            raise UserError(f"{root}: {what}; remove one of each, or drop them from {part} with --drop-leaks")
        kept[part] = parts[part][~shared]
        notes.append(f"dropped from {part}: {what}")
    return kept, notes
