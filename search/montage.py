"""Queries and what they found as one picture: a query at the left, its hits beside it, nearest first."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from search.index import Index
from utils.files import written_aside

TILE, GAP, TEXT = 128, 8, 16  # pixels: a picture's side, between pictures, a line of text
COLUMNS = 10
INK, FRAME = "#333333", "#2f6fd1"


def draw(index: Index, queries: Sequence[tuple[Image.Image, dict]], path: Path) -> None:
    """Write a PNG of each query (its picture, its answer as ``search.asking.answers`` gives it)."""
    step, line = TILE + GAP, TILE + TEXT + GAP
    lines = [max(1, -(-len(answer["results"]) // COLUMNS)) for _, answer in queries]
    columns = max(1, *(min(COLUMNS, len(answer["results"])) for _, answer in queries))
    sheet = Image.new("RGB", (2 * GAP + (columns + 1) * step, GAP + sum(lines) * line), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    top = GAP

    def put(image: Image.Image, left: int, top: int, text: str) -> tuple[int, int, int, int]:
        image.thumbnail((TILE, TILE))
        corner = left + (TILE - image.width) // 2, top + (TILE - image.height) // 2
        sheet.paste(image, corner)
        pen.text((left + TILE // 2, top + TILE + 2), text, INK, font, anchor="ma")
        return *corner, corner[0] + image.width, corner[1] + image.height

    for (picture, answer), n_lines in zip(queries, lines, strict=True):
        x0, y0, x1, y1 = put(picture, GAP, top, "query")
        pen.rectangle((x0 - 3, y0 - 3, x1 + 2, y1 + 2), outline=FRAME, width=3)
        for at, hit in enumerate(answer["results"]):
            row, column = divmod(at, COLUMNS)
            left = 2 * GAP + (column + 1) * step
            put(_thumbnail(index, hit["id"]), left, top + row * line, f"{hit['distance']} bits")
        top += n_lines * line
    with written_aside(path) as file:
        sheet.save(file, "PNG")


def _thumbnail(index: Index, content: str) -> Image.Image:
    """A grey tile where the index has none, or the picture has just been removed."""
    try:
        return Image.open(io.BytesIO(index.thumbnail(index.find(content).id)), formats=["JPEG"]).convert("RGB")
    except (KeyError, OSError):
        return Image.new("RGB", (TILE, TILE), "#dddddd")
