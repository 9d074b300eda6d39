"""Write a data set that asks for originals: queries are edited copies, relevant is the picture that was edited.

    python -m scripts.make_copies --photos PHOTOS --out COPIES
    python evaluate.py --run RUN --dataset folder --data-dir COPIES      # precision at 1 is recall at 1

Every picture is a class of its own: COPIES/database/NAME/ holds its file, COPIES/query/NAME/ twelve edited copies.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from tqdm import tqdm

from data.decode import pixels_of
from data.tree import images_below
from utils.errors import UserError, guarded
from utils.files import ASIDE
from utils.options import Parser, whole
from utils.seeds import seed_of


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file, formats=["JPEG"]).convert("RGB")


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


EDITS: dict[str, Callable[[Image.Image, np.random.RandomState], Image.Image]] = {
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


def write_copies(photos: Path, out: Path, database: int, queries: int, seed: int) -> None:
    """The data set, of ``database`` pictures drawn by the seed, of which the first ``queries`` are edited.

    Raises:
        UserError: ``out`` is there, too few pictures, or one that is none.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; choose another --out")
    if queries > database:
        raise UserError(f"--queries {queries}: at most the {database} of --database")
    paths = sorted(images_below([photos]).paths)
    if len(paths) < database:
        raise UserError(f"{photos}: {len(paths)} pictures, --database asks for {database}")
    drawn = np.random.RandomState(seed_of("copies", seed) % 2**32).permutation(len(paths))[:database]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{ASIDE}{out.name}.") as aside:
        for number, row in enumerate(tqdm(drawn, "editing", unit="img")):
            file, name = Path(paths[row]), f"{number:06}"
            (original := Path(aside) / "all" / "database" / name).mkdir(parents=True)
            shutil.copyfile(file, original / file.name)
            if number < queries:
                (copies := Path(aside) / "all" / "query" / name).mkdir(parents=True)
                image = Image.fromarray(pixels_of(file, upright=True))
                for e, (what, edit) in enumerate(EDITS.items()):
                    edit(image, np.random.RandomState([e, number])).save(copies / f"{what.replace(' ', '_')}.png")
        os.replace(Path(aside) / "all", out)  # all of it, or nothing


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--database", type=whole(2), default=3000, help="pictures to search")
    parser.add_argument("--queries", type=whole(1), default=500, help="of these, how many are edited")
    parser.add_argument("--seed", type=whole(0), default=0, help="which pictures")
    args = parser.parse_args()
    write_copies(args.photos, args.out, args.database, args.queries, args.seed)
    print(f"{args.out}: {args.database} pictures, {args.queries * len(EDITS)} edited copies of {args.queries}")


if __name__ == "__main__":
    guarded(main)
