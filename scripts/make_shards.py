"""Write a data set as WebDataset tar shards:

python -m scripts.make_shards --dataset folder --data-dir ROOT --out SHARDS
"""

from utils.errors import guarded  # isort: skip  (first: Ctrl-C while the rest is imported is one line too)

import os
import tempfile
from pathlib import Path

import webdataset
from tqdm import tqdm

from data.dataset import HashingData
from data.load import add_data_arguments, load_data
from data.shards import PARTS
from utils.errors import UserError
from utils.options import Parser, whole


def write_shards(images: HashingData, out: Path, per_shard: int) -> list[Path]:
    """Every part of a data set as shards; files keep their bytes, arrays become PNG."""
    if Path(out).exists():
        raise UserError(f"{out}: is there already; choose another --out")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=f".{Path(out).name}.") as aside:
        write_parts(images, Path(aside) / "shards", per_shard)
        os.replace(Path(aside) / "shards", out)  # all of them, or none
    return sorted(Path(out).glob("*.tar"))


def write_parts(images: HashingData, folder: Path, per_shard: int) -> None:
    folder.mkdir()
    single = (images.labels.sum(axis=1) == 1).all()
    for part in PARTS:
        rows = getattr(images, part)
        with webdataset.ShardWriter(f"{folder}/{part}-%06d.tar", maxcount=per_shard, verbose=0) as shards:
            for number, row in enumerate(tqdm(rows, part, unit="img")):
                ending, content = images.source.encoded(row)
                known = images.labels[row]
                label = str(known.argmax()) if single else " ".join(map(str, known))
                shards.write({"__key__": f"{number:09d}", ending: content, "cls": label.encode()})


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
