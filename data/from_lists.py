"""Data sets that are lists of image files: what COCO, ImageNet100, NUS-WIDE, MIRFLICKR and anybody's own share."""

from pathlib import Path

import numpy as np

from data.dataset import HashingData
from data.lists import ImageList, find_list, leaks, merge, missing_files, read_list
from data.protocols import Protocol
from data.sources import FileImages
from utils.errors import UserError
from utils.seeds import seed_of


def read_parts(protocol: Protocol, folder: Path) -> dict[str, ImageList]:
    """The lists train, database, test and (if there) val of a folder; database defaults to train.

    Raises:
        UserError: a list is missing, faulty or not of the published length.
    """
    parts = {}
    for part in ("train", "database", "test", "val"):
        file = find_list(Path(folder), part)
        if file is not None:
            parts[part] = read_list(file, protocol.n_labels, protocol.prefix)
    needed = [p for p in ("train", "test") if p not in parts]
    if needed:
        raise UserError(
            f"{folder}: no list {' or '.join(f'{p}.txt' for p in needed)} (also .txt.xz, _img.txt, .csv, "
            f".parquet){'; ' + protocol.source if protocol.source else ''}"
        )
    parts.setdefault("database", parts["train"])
    for part, count in (protocol.counts or {}).items():
        if part in parts and len(parts[part]) != count:
            raise UserError(
                f"{parts[part].file}: {len(parts[part])} images; the published {protocol.name} {part} list has "
                f"{count}. Use --dataset lists for a list of your own"
            )
    return parts


def without_leaks(parts: dict[str, ImageList], drop: bool) -> tuple[dict[str, ImageList], list[str]]:
    """The database without queries, and a note of how many went; refused unless ``drop``."""
    notes, parts = [], dict(parts)
    for asked in ("test", "val"):
        if asked not in parts:
            continue
        leaked = leaks(parts[asked], parts["database"])
        if not len(leaked):
            continue
        first = parts["database"].names[leaked[0]]
        what = f"{len(leaked)} of the {len(parts[asked])} {asked} images are in the database too, the first {first}"
        if not drop:
            raise UserError(
                f"{parts['database'].file}:{leaked[0] + 1}: {what}; drop them from the database with --drop-leaks"
            )
        parts["database"] = parts["database"].take(np.setdiff1d(np.arange(len(parts["database"])), leaked))
        notes.append(f"dropped from the database: {what}")
    return parts, notes


def load(
    protocol: Protocol, data_dir: Path, lists_dir: Path | None = None, drop_leaks: bool = False, seed: int = 0
) -> HashingData:
    """A data set from lists.

    Queries for model selection are the list ``val`` if there is one; else as many as test has, drawn by the seed from
    database images that are not trained on, and not searched while selecting; else half of the test queries.

    Raises:
        UserError: a faulty list, an image that is not there, a query in the database.
    """
    root = Path(data_dir)
    parts = read_parts(protocol, lists_dir or root)
    parts, notes = without_leaks(parts, drop_leaks)
    if absent := missing_files(root, list({id(p): p for p in parts.values()}.values())):
        raise UserError(f"images of the lists are not in {root}: {'; '.join(absent)}")
    classes = parts["train"].classes
    names, labels, rows = merge(parts)
    del parts
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
        source=FileImages(root, names),
        labels=labels,
        classes=classes,
        train=rows["train"],
        database=database,
        val=val,
        test=test,
        k=protocol.k,
        val_database=val_database,
        notes=notes,
    )
