"""Data sets that are lists of image files: what COCO, ImageNet100, NUS-WIDE, MIRFLICKR and anybody's own share."""

from pathlib import Path

import numpy as np

from data.dataset import HashingData, leaked
from data.lists import ImageList, aligned, find_list, merge, missing_files, read_list
from data.protocols import Protocol
from data.sources import FileImages
from utils.errors import UserError, some
from utils.seeds import seed_of


def read_parts(protocol: Protocol, folder: Path) -> dict[str, ImageList]:
    """The lists train, database, test and (if there) val of a folder; database defaults to train.

    Raises:
        UserError: a list is missing, faulty, there twice, not of the published length or of other labels.
    """
    parts = {}
    for part in ("train", "database", "test", "val"):
        file = find_list(Path(folder), part)
        if file is not None:
            parts[part] = read_list(file, protocol.n_labels, protocol.prefix)
    needed = [p for p in ("train", "test") if p not in parts]
    if needed:
        raise UserError(
            f"{folder}: no list {' or '.join(f'{p}.txt' for p in needed)} (also _img.txt, .csv, "
            f".parquet){'; ' + protocol.source if protocol.source else ''}"
        )
    parts.setdefault("database", parts["train"])
    for part, count in (protocol.counts or {}).items():
        if part in parts and len(parts[part]) != count:
            raise UserError(
                f"{parts[part].file}: {len(parts[part])} images; the published {protocol.name} {part} list has "
                f"{count}. Use --dataset lists for a list of your own"
            )
    return aligned(parts)


def without_leaks(parts: dict[str, ImageList], drop: bool) -> tuple[dict[str, ImageList], list[str]]:
    """The parts without images that are queries, by name, and notes of how many went; refused unless ``drop``."""
    kept, notes = dict(parts), []
    for part, shared in leaked({part: np.array(one.names) for part, one in parts.items()}).items():
        if part == "train" and parts["train"] is parts.get("database"):
            kept["train"] = kept["database"]
            continue
        first = shared.argmax()
        what = f"{shared.sum()} {part} images are queries too, the first {parts[part].names[first]}"
        if not drop:
            raise UserError(f"{parts[part].file}:{first + 1}: {what}; drop them from {part} with --drop-leaks")
        kept[part] = parts[part].take(np.flatnonzero(~shared))
        notes.append(f"dropped from {part}: {what}")
    return kept, notes


def load(
    protocol: Protocol,
    data_dir: Path,
    lists_dir: Path | None = None,
    drop_leaks: bool = False,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> HashingData:
    """A data set from lists.

    Raises:
        UserError: a faulty list, an image that is not there, a query in the database or among the training images.
    """
    root = Path(data_dir)
    parts = read_parts(protocol, lists_dir or root)
    parts, notes = without_leaks(parts, drop_leaks)
    if absent := missing_files(root, list(parts.values())):
        raise UserError(f"{some(absent, between='; ')}; the lists' paths are relative to {root} (--data-dir)")
    return data_of(protocol, root, parts, notes, seed, cache_dir)


def data_of(
    protocol: Protocol,
    root: Path,
    parts: dict[str, ImageList],
    notes: list[str] | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> HashingData:
    """A data set of lists that were read and looked through.

    Queries for model selection are the list ``val`` if there is one; else as many as test has, drawn by the seed from
    database images that are not trained on, and not searched while selecting; else half of the test queries.

    Raises:
        UserError: lists that contradict each other, or a part that is empty.
    """
    classes, notes = parts["train"].classes, list(notes or [])
    names, labels, rows = merge(parts)
    draw = np.random.RandomState(seed_of("validation queries", seed) % 2**32)
    test, database = rows["test"], rows["database"]
    val_database = database
    if "val" in rows:
        val = rows["val"]
    else:
        free = np.setdiff1d(database, rows["train"])
        if len(free) >= 2 * len(test):
            val = draw.permutation(free)[: len(test)]
            val_database = np.setdiff1d(database, val)
            notes.append(
                f"validation queries: {len(val)} database images that are not trained on, not searched meanwhile"
            )
        else:
            test = draw.permutation(test)
            val, test = test[: len(test) // 2], test[len(test) // 2 :]
            notes.append("validation queries: half of the test list")
    return HashingData(
        name=protocol.name,
        source=FileImages(root, names, protocol.own, cache_dir),
        labels=labels,
        classes=classes,
        train=rows["train"],
        database=database,
        val=val,
        test=test,
        k=protocol.k,
        val_database=val_database,
        notes=notes,
        title=f"{protocol.name} {root.resolve().name}" if protocol.own else "",
    )
