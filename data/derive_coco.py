"""The COCO database of DeepHash-pytorch's protocol, which publishes train and test alone.

It is HashNet's train and database less that test, 117,218 images; ``python -m data.fetch_lists coco`` derives it.
"""

from pathlib import Path

import numpy as np

from data.lists import ImageList
from utils.errors import UserError
from utils.runs import written_aside

DERIVED = 117_218


def derive(hashnet_train: ImageList, hashnet_database: ImageList, test: ImageList) -> ImageList:
    """DeepHash-pytorch's database, in HashNet's order: train, then database, each image once, less the test images.

    Raises:
        UserError: the result has not the known number of images, so a list is not the published one.
    """
    asked, seen, names, rows = set(test.names), set(), [], []
    for one in (hashnet_train, hashnet_database):
        for name, row in zip(one.names, one.labels, strict=True):
            if name not in asked and name not in seen:
                seen.add(name)
                names.append(name)
                rows.append(row)
    if len(names) != DERIVED:
        raise UserError(
            f"the derived COCO database has {len(names)} images, not {DERIVED}: one of {hashnet_train.file}, "
            f"{hashnet_database.file}, {test.file} is not the published list"
        )
    return ImageList(hashnet_database.file, names, np.stack(rows), hashnet_train.classes)


def write_list(file: Path, one: ImageList) -> None:
    """``path l1 ... lL`` a line."""
    with written_aside(file, "w") as out:
        for name, row in zip(one.names, one.labels, strict=True):
            out.write(f"{name} {' '.join(map(str, row))}\n")
