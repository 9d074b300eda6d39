"""Write a data set as WebDataset tar shards:

python -m scripts.make_shards --dataset folder --data-dir ROOT --out SHARDS
"""

import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import HashingData
from data.decode import IMAGE_SUFFIXES
from data.load import add_data_arguments, load_data
from data.shards import PARTS
from utils.errors import UserError, guarded
from utils.files import ASIDE
from utils.options import Parser, whole


def write_shards(images: HashingData, out: Path, per_shard: int) -> list[Path]:
    """Every part of a data set as shards; files keep their bytes, arrays become PNG."""
    if Path(out).exists():
        raise UserError(f"{out}: is there already; choose another --out")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=f"{ASIDE}{Path(out).name}.") as aside:
        write_parts(images, Path(aside) / "shards", per_shard)
        os.replace(Path(aside) / "shards", out)  # all of them, or none
    return sorted(Path(out).glob("*.tar"))


def rows_of(images: HashingData) -> dict[str, np.ndarray]:
    """What each part's shards hold: every image once, training images that are searched in the database's.

    Validation queries that are drawn from the database leave it: shards have one database for all queries.
    """
    queries = np.concatenate([images.val, images.test])
    database = images.database[~np.isin(images.database, queries)]
    train = images.train[~np.isin(images.train, database)]
    return {"train": train, "database": database, "test": images.test, "val": images.val}


def write_parts(images: HashingData, folder: Path, per_shard: int) -> None:
    if not images.labelled:
        raise UserError(f"{images.title}: has no labels, and shards carry labels; use --dataset folder or lists")
    folder.mkdir()
    single = (images.labels.sum(axis=1) == 1).all()
    if images.labels.shape[1] == 1 and not single:
        raise UserError(
            "one 0/1 column can't be told from class numbers in shards; write a column a class, '1 0' and '0 1'"
        )
    trained = set(images.train.tolist())
    rows = rows_of(images)
    if left_out := len(images.database) - len(rows["database"]):
        print(f"note: {left_out} queries are left out of the database shards")
    for part in PARTS:
        if not len(rows[part]):
            continue
        numbered = list(enumerate(rows[part]))
        for shard, first in enumerate(tqdm(range(0, len(numbered), per_shard), part, unit="shard")):
            with tarfile.open(folder / f"{part}-{shard:06d}.tar", "w") as tar:
                for number, row in numbered[first : first + per_shard]:
                    ending, content = images.source.encoded(row)
                    if f".{ending}" not in IMAGE_SUFFIXES:
                        raise UserError(
                            f"{images.source.names[row]}: shards name images by ending, such as .jpg; rename it"
                        )
                    known = images.labels[row]
                    label = str(known.argmax()) if single else " ".join(map(str, known))
                    mark = {"train": b""} if part == "database" and int(row) in trained else {}
                    for name, data in {ending: content, "cls": label.encode(), **mark}.items():
                        member = tarfile.TarInfo(f"{number:09d}.{name}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--per-shard", type=whole(1), default=1000, help="images a shard")
    args = parser.parse_args()
    shards = write_shards(load_data(args), args.out, args.per_shard)
    print(f"{args.out}: {len(shards)} shards, {sum(f.stat().st_size for f in shards) / 1e6:,.1f} MB")


if __name__ == "__main__":
    guarded(main)
