"""Fetch a data set's published lists, believe them by their hash, and derive what nobody publishes:

    python -m scripts.fetch_lists coco --out data/coco

``--from DIR`` takes files fetched by hand (called as the messages name them) instead of the network.
"""

import hashlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from data.lists import ImageList, read_list
from data.protocols import PROTOCOLS
from utils.errors import UserError, guarded
from utils.files import written_aside
from utils.options import Parser

SOURCES = {
    "hashnet": "https://raw.githubusercontent.com/thuml/HashNet/master/pytorch/data",
    "dhp": "https://raw.githubusercontent.com/swuxyj/DeepHash-pytorch/master/data",
}


@dataclass(frozen=True)
class Published:
    """One list on the web: what it is called here, where it is, its SHA-256."""

    name: str
    url: str
    sha256: str


def published(source: str, path: str, sha256: str) -> Published:
    return Published(f"{source}_{path.replace('/', '_')}", f"{SOURCES[source]}/{path}", sha256)


LISTS = {
    "coco": (
        published("dhp", "coco/train.txt", "4708c66fa87bac20c85d470c29422c564b0a6811fc48d32a4714c23212e9500c"),
        published("dhp", "coco/test.txt", "3f0e2c49e363bccbf5ed67cf8cd59cce2b04a7238417ba0c3baf876be3be90b7"),
        published("hashnet", "coco/train.txt", "b7bc04035e2217e0bc8533f20a1007203b73ce283d9ef09669c5c6ea707efb3a"),
        published("hashnet", "coco/database.txt", "59dab6cbae3dda3490f978f3feec890e681f8f5f9ff07e2f6ce1b45bc8fad4ea"),
    ),
    "imagenet100": (
        published("hashnet", "imagenet/train.txt", "d5dc07dcd2f69df60b6338d349c11c3b2cf6ab7ab982f015ea79b282383bb303"),
        published(
            "hashnet", "imagenet/database.txt", "66c3f56839376cad709ffd2a37f7e4c302bd9f41488308a9c33375d1a8a39c8f"
        ),
        published("hashnet", "imagenet/test.txt", "41f8000eb213fa3c3cce139c39c6ec7498ca217ba34ffb58701e2b339076a565"),
    ),
    "nuswide": (  # no database list is published: write database.txt from your copy of the images
        published("dhp", "nuswide_21/train.txt", "c31007d63075cc173cb368f91475e4072a76b312b7dca0d14e88b1cc23586851"),
        published("dhp", "nuswide_21/test.txt", "bbdbc13c08e340068064eb4f9849f33800139816fbe0e0792d5a49953581b41f"),
    ),
}


def fetch(one: Published, by_hand: Path | None) -> bytes:
    """The list's bytes, out of a folder or off the network.

    Raises:
        UserError: it is not there, cannot be had, or is not the known one.
    """
    if by_hand is None:
        try:
            with urlopen(one.url, timeout=60) as answer:
                content = answer.read()
        except (OSError, HTTPException) as error:
            raise UserError(
                f"{one.url} could not be downloaded ({error}); fetch it on another machine, put it into a folder "
                f"as {one.name}, and name that folder with --from"
            ) from None
    else:
        if not (by_hand / one.name).exists():
            raise UserError(f"{by_hand}: no {one.name} in it; fetch {one.url}")
        content = (by_hand / one.name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != one.sha256:
        raise UserError(
            f"{one.name}: SHA-256 {digest[:12]}…, the known list has {one.sha256[:12]}…; it was changed or cut"
        )
    return content


DERIVED = 117_218  # images


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


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=LISTS)
    parser.add_argument("--out", type=Path, required=True, help="folder for train.txt, database.txt and test.txt")
    parser.add_argument("--from", dest="by_hand", type=Path, metavar="DIR", help="files fetched by hand")
    args = parser.parse_args()
    contents = {one.name: fetch(one, args.by_hand) for one in LISTS[args.dataset]}
    for name, content in contents.items():
        # What is only there to derive from keeps its own name.
        part = name if args.dataset == "coco" and name.startswith("hashnet") else name.rsplit("_", 1)[1]
        with written_aside(args.out / part) as file:
            file.write(content)
        print(f"{args.out / part}: {len(content.splitlines()):,} images")
    if args.dataset == "coco":
        coco = PROTOCOLS["coco"]
        names = ("hashnet_coco_train.txt", "hashnet_coco_database.txt", "test.txt")
        derived = derive(*(read_list(args.out / name, coco.n_labels, coco.prefix) for name in names))
        write_list(args.out / "database.txt", derived)
        print(f"{args.out / 'database.txt'}: {len(derived):,} images, derived")


if __name__ == "__main__":
    guarded(main)
