"""Is the nearest the same picture?  python benchmarks/search_copies.py --photos FOLDER --students STUDENT...

Half of the photographs are in the database among others, half are not; each is edited in twelve ways. Precision: of
what is said to be the same picture, the share that is; recall: of queries whose original is there, the share for which
it is named. By the nearest code alone, and by a second look at the nearest (search/copies.py).
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.decode import pixels_of  # noqa: E402
from data.tree import images_below  # noqa: E402
from models.exported import Exported  # noqa: E402
from scripts.make_copies import EDITS  # noqa: E402
from search.copies import ALIKE, LOOKED, look_at  # noqa: E402
from search.scan import nearest  # noqa: E402
from utils.errors import guarded  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.machine import cores  # noqa: E402
from utils.runs import environment  # noqa: E402


def measure(said: np.ndarray, right: np.ndarray, there: int) -> dict:
    """Of queries [edits, n], of which the first ``there`` have their original in the database."""
    recalls = dict(zip(EDITS, (right.sum(1) / there).round(3).tolist(), strict=True))
    return {"precision": float(right.sum() / max(1, said.sum())), "recall": float(right[:, :there].mean()), **recalls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--students", type=Path, nargs="+", required=True)
    parser.add_argument("--database", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=1000, help="photographs that are edited; half are not there")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "search_copies.json")
    args = parser.parse_args()
    n, half, paths = args.database, args.queries // 2, images_below([args.photos]).paths
    chosen = np.random.RandomState(1).permutation(len(paths))[: n + half]
    photos = [Image.fromarray(pixels_of(Path(paths[i]))) for i in tqdm(chosen, "reading")]
    images = photos[:n]
    for e, edit in enumerate(EDITS.values()):
        images += [edit(image, np.random.RandomState([e, i])) for i, image in enumerate(photos[:half] + photos[n:])]
    looks = np.stack([look_at(image) for image in tqdm(images, "looking")])
    truth = np.append(np.arange(half), np.full(half, -1))
    found = {"database": n, "queries": len(images) - n, "alike": ALIKE, "looked": LOOKED, "machine": environment()}
    for student in map(Exported, args.students):
        with ThreadPoolExecutor(cores()) as pool:
            codes = np.stack(list(tqdm(pool.map(student.code, map(np.asarray, images)), "hashing", len(images))))
        distances, rows = nearest(codes[n:], codes[:n], LOOKED)
        apart = np.bitwise_count(looks[n:, None] ^ looks[:n][rows]).sum(-1)
        at = np.arange(len(rows)), apart.argmin(1)
        ways = {"code": (distances[:, 0], rows[:, 0], student.bits // 4), "look": (apart[at], rows[at], 16)}
        for way, (value, row, most) in ways.items():
            for threshold in range(0, most + 1, 2):
                said = (value <= threshold).reshape(len(EDITS), -1)
                numbers = measure(said, said & (row.reshape(said.shape) == truth), half)
                found[f"{student.bits} bits, {way} <= {threshold}"] = numbers
                print(f"{student.bits} bits, {way} <= {threshold}: {numbers['precision']:.4f} {numbers['recall']:.3f}")
    write_json(args.out, found)


if __name__ == "__main__":
    guarded(main)
