"""MS-COCO, 80 labels: HashNet's lists, or DeepHash-pytorch's with the database derived from HashNet's.

HashNet's own database list holds all of its 5,000 test images (drop them: --drop-leaks). DeepHash-pytorch publishes
train and test; its database is HashNet's train and database less that test, 117,218 images:

    python -m data.coco --hashnet-train F --hashnet-database F --test F --out database.txt
"""

import argparse
from pathlib import Path

import numpy as np

from data.from_lists import Protocol
from data.lists import ImageList, read_list
from utils.errors import UserError, guarded
from utils.runs import written_aside

COCO = Protocol(
    "coco",
    n_labels=80,
    k=5000,
    prefix="./data/coco/",
    source="HashNet (thuml) or DeepHash-pytorch (swuxyj) on GitHub publish them",
)
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Derive the COCO database list of 117,218 images.")
    for name in ("hashnet-train", "hashnet-database", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="LIST")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lists = (read_list(f, COCO.n_labels, COCO.prefix) for f in (args.hashnet_train, args.hashnet_database, args.test))
    found = derive(*lists)
    with written_aside(args.out, "w") as file:
        for name, row in zip(found.names, found.labels, strict=True):
            file.write(f"{name} {' '.join(map(str, row))}\n")
    print(f"{args.out}: {len(found):,} images")


if __name__ == "__main__":
    guarded(main)
