"""Is the nearest the same picture?  python benchmarks/search_copies.py --photos FOLDER --students STUDENT...

Half of the photographs are in the database among others, half are not; each is edited in twelve ways. Precision: of
what is said to be the same picture, the share that is; recall: of queries whose original is there, the share for which
it is named. By the nearest code alone, and by a second look at the nearest (search/copies.py).
"""

import argparse
import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.decode import pixels_of  # noqa: E402
from data.tree import images_below  # noqa: E402
from models.exported import Exported  # noqa: E402
from search.copies import ALIKE, LOOKED, look_at  # noqa: E402
from search.scan import nearest  # noqa: E402
from utils.errors import guarded  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.machine import cores  # noqa: E402
from utils.runs import environment  # noqa: E402


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cut(image: Image.Image, share: float, draw: np.random.RandomState) -> Image.Image:
    width, height = (round(share * side) for side in image.size)
    x, y = draw.randint(image.width - width + 1), draw.randint(image.height - height + 1)
    return image.crop((x, y, x + width, y + height))


def noisy(image: Image.Image, draw: np.random.RandomState) -> Image.Image:
    pixels = np.asarray(image) + draw.normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def framed(image: Image.Image) -> Image.Image:
    edge = round(0.08 * max(image.size))
    sheet = Image.new("RGB", (image.width + 2 * edge, image.height + 2 * edge), "white")
    sheet.paste(image, (edge, edge))
    return sheet


def written_on(image: Image.Image, draw: np.random.RandomState) -> Image.Image:
    pen, top = ImageDraw.Draw(image := image.copy()), draw.randint(round(0.7 * image.height))
    pen.rectangle((0, top, image.width, top + 0.15 * image.height), fill="black")
    pen.text((2, top), "holiday 2024", fill="white")
    return image


EDITS: dict[str, Callable] = {
    "JPEG 75": lambda image, draw: jpeg(image, 75),
    "JPEG 30": lambda image, draw: jpeg(image, 30),
    "half as large": lambda image, draw: image.reduce(2),
    "blur": lambda image, draw: image.filter(ImageFilter.GaussianBlur(1)),
    "noise": noisy,
    "brighter": lambda image, draw: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast": lambda image, draw: ImageEnhance.Contrast(image).enhance(1.4),
    "cut to 95 %": lambda image, draw: cut(image, 0.95, draw),
    "cut to 85 %": lambda image, draw: cut(image, 0.85, draw),
    "border": lambda image, draw: framed(image),
    "written on": written_on,
    "mixture": lambda image, draw: jpeg(ImageEnhance.Brightness(cut(image, 0.95, draw)).enhance(1.15).reduce(2), 60),
}


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
