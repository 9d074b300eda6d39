"""Are the bits the same wherever they are made?  python benchmarks/search_bits.py

    python benchmarks/search_bits.py --run RUN --exports FLOAT32 FLOAT16 INT8 --photos FOLDER

Bits that differ between PyTorch and the exported files on photographs of all kinds (large, EXIF-turned, grayscale,
alpha, palette, CMYK, ICC, 16 bits, WebP, tiny, long), made from the pictures of FOLDER. mAP of each file of the student
on the run's test queries.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.decode import pixels_of  # noqa: E402
from data.load import load_data  # noqa: E402
from data.photos import pictures_below  # noqa: E402
from data.transforms import eval_transform  # noqa: E402
from export import codes_of, different, spread  # noqa: E402
from models.exported import Exported  # noqa: E402
from models.trained import Trained, read_run  # noqa: E402
from retrieval.codes import pack, unpack  # noqa: E402
from retrieval.hasher import Hasher, run_options  # noqa: E402
from retrieval.metrics import mean_average_precision  # noqa: E402
from retrieval.relevance import relevance  # noqa: E402
from utils.errors import UserError, guarded  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

LARGE = (4000, 3000)


# Photographs of all kinds


def other_profile() -> bytes:
    """sRGB's ICC profile with red and green exchanged: a client that obeyed it would see other colours."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")


def enlarged(source: Image.Image, draw: np.random.RandomState, size: tuple[int, int]) -> Image.Image:
    """A picture at another size, with a camera's noise, so that single pixels say something."""
    pixels = np.asarray(source.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + draw.randint(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8))


def shaded(image: Image.Image) -> Image.Image:
    """Alpha that grows from left to right."""
    alpha = np.broadcast_to(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, image.width))
    image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    return image


def turned(image: Image.Image, orientation: int) -> dict:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif, "quality": 90}


def wide(image: Image.Image, draw: np.random.RandomState) -> Image.Image:
    gray = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    return Image.fromarray(gray ^ draw.randint(0, 256, gray.shape).astype(np.uint16))


# Ending, and (picture, random numbers, running number) -> (what is saved, how).
KINDS: dict[str, tuple[str, Callable]] = {
    "plain": ("jpg", lambda image, draw, n: (image, {"quality": 90})),
    "large": ("jpg", lambda image, draw, n: (enlarged(image, draw, LARGE), {"quality": 90})),
    "exif": ("jpg", lambda image, draw, n: (image, turned(image, n % 8 + 1))),
    "gray": ("jpg", lambda image, draw, n: (image.convert("L"), {"quality": 90})),
    "alpha": ("png", lambda image, draw, n: (shaded(image), {})),
    "palette": ("png", lambda image, draw, n: (image.quantize(64), {"transparency": n % 64})),
    "cmyk": ("jpg", lambda image, draw, n: (image.convert("CMYK"), {"quality": 90})),
    "icc": ("jpg", lambda image, draw, n: (image, {"quality": 90, "icc_profile": other_profile()})),
    "wide": ("png", lambda image, draw, n: (wide(image, draw), {})),
    "webp": ("webp", lambda image, draw, n: (image, {"lossless": bool(n % 2)})),
    "tiny": ("png", lambda image, draw, n: (image.resize(tuple(draw.randint(1, 40, 2))), {})),
    "long": ("png", lambda image, draw, n: (image.resize((40 + n, 1600) if n % 2 else (1600, 40 + n)), {})),
}


def photographs(folder: Path, pictures: list[Path], n: int, seed: int = 0) -> list[Path]:
    """``n`` files of all ``KINDS`` in turn, named by kind, made of ``pictures``; the same every time."""
    files, kinds = [], list(KINDS)
    for number in tqdm(range(n), "making photographs", unit="img"):
        kind, draw = kinds[number % len(kinds)], np.random.RandomState([seed, number])
        source = Image.fromarray(pixels_of(pictures[draw.randint(len(pictures))], upright=True))
        image = enlarged(source, draw, tuple(int(side) for side in draw.randint(200, 900, 2)))
        ending, make = KINDS[kind]
        made, how = make(image, draw, number // len(kinds))
        files.append(folder / f"{number:05d}_{kind}.{ending}")
        made.save(files[-1], **how)
    return files


# Bits


def by_pytorch(run: Trained, metric: str, images, files: list[Path]) -> np.ndarray:
    """Packed codes of files, as evaluation would make them without its cache: in float32, one picture at a time."""
    backbone, head = run.backbone(), run.heads[metric]

    @torch.inference_mode()
    def code(file: Path) -> np.ndarray:
        pixels = torch.from_numpy(pixels_of(file, upright=True)).permute(2, 0, 1)
        return pack(head(backbone(eval_transform(pixels, run.size, images.crop)[None])))[0]

    return np.stack([code(file) for file in tqdm(files, "PyTorch", unit="img")])


def hashed(exported: Exported, pictures: Iterable, what: str, pixels=lambda picture: picture) -> np.ndarray:
    """Packed codes of pictures, or of what ``pixels`` makes of them."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = pool.map(lambda picture: exported.code(pixels(picture)), pictures)
        return np.stack(list(tqdm(codes, what, unit="img")))


def bits(run: Trained, students: dict[str, Exported], images, files: list[Path]) -> dict:
    """Bits that differ, of all and of each kind: of the float32 file from PyTorch's, of the others from float32."""
    codes = {"pytorch": by_pytorch(run, students["float32"].card["chosen_by"], images, files)}
    for precision, exported in students.items():
        codes[precision] = hashed(exported, files, precision, lambda file: pixels_of(file, upright=True))
    kinds = np.array([file.stem.split("_")[1] for file in files])
    found = {"photographs": len(files), "bits": len(files) * run.bits, "kinds": sorted(set(kinds))}
    for one, other in [("pytorch", "float32"), *(("float32", p) for p in students if p != "float32")]:
        differing = np.bitwise_count(codes[one] ^ codes[other]).sum(axis=1)
        found[f"{one}, {other}"] = {
            "bits": int(differing.sum()),
            "share": different(codes[one], codes[other], run.bits),
            "pictures": int((differing > 0).sum()),
            "by_kind": {kind: int(differing[kinds == kind].sum()) for kind in found["kinds"]},
        }
        print(f"{one} and {other}: {differing.sum()} of {found['bits']:,} bits differ")
    return found


def maps(
    students: dict[str, Exported], teacher: Hasher, student: Hasher, images, most_queries: int, most_searched: int
) -> dict:
    """mAP of the test queries: each file's codes of queries and database (SSHP), and of queries only (ASHP)."""
    queries, database = spread(images.test, most_queries), spread(images.database, most_searched)
    labels = relevance(images, queries, database, teacher.features)
    taught = teacher.codes("map", database)
    found = {"queries": len(queries), "searched": len(database), "k": images.k}

    def add(name: str, asking: np.ndarray, asked: np.ndarray) -> None:
        asking, asked = (unpack(codes, student.run.bits) for codes in (asking, asked))
        found[name] = {
            "sshp": mean_average_precision(asking, asked, *labels, images.k),
            "ashp": mean_average_precision(asking, taught, *labels, images.k),
        }
        print(f"{name}: mAP@{images.k} SSHP {found[name]['sshp']:.4f}, ASHP {found[name]['ashp']:.4f}")

    metric = students["float32"].card["chosen_by"]
    add("evaluate.py", pack(student.codes(metric, queries)), pack(student.codes(metric, database)))
    for precision, exported in students.items():
        add(precision, *(codes_of(exported, images, rows, precision) for rows in (queries, database)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a student's run")
    parser.add_argument("--exports", type=Path, nargs="+", required=True, help="of that student")
    parser.add_argument("--photos", type=Path, help="pictures that photographs are made of; without it no bits")
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="where the photographs are left, for other clients")
    parser.add_argument("--queries", type=int, default=5000, help="at most; 0: no mAP")
    parser.add_argument("--map-searched", type=int, default=10_000, help="hashed by every file, at most")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--lists-dir", type=Path)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "search_bits.json")
    parser.set_defaults(dataset=None)
    args = parser.parse_args()
    run = read_run(args.run)
    students = {e.card["precision"]: e for e in map(Exported, args.exports)}
    if "float32" not in students or not run.teacher:
        raise UserError("--run takes a student's run, --exports its export in float32 at least")
    options = run_options(args, run)
    images = load_data(options)
    student, teacher = Hasher(run, options, images), Hasher(run.teacher, options, images)
    result = {"environment": environment(), "data": images.title, "cards": [e.card for e in students.values()]}
    if args.photos:
        pictures = [args.photos / name for name in pictures_below(args.photos)[0]]
        with tempfile.TemporaryDirectory() as aside:
            folder = args.keep or Path(aside)
            folder.mkdir(parents=True, exist_ok=True)
            result["bits"] = bits(run, students, images, photographs(folder, pictures, args.photographs))
            write_json(args.out, result)
    if args.queries:
        result["map"] = maps(students, teacher, student, images, args.queries, args.map_searched)
    write_json(args.out, result)


if __name__ == "__main__":
    guarded(main)
