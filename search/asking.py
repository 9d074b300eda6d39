"""Asking an index with pictures: by which exported model, and the answer as plain values, the same for every client."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from data.decode import pixels_of
from models.exported import Exported, may_ask
from search.copies import LOOKED, alike, look_at
from search.index import SHORT, Filters, Hit, Index, Record
from utils.errors import UserError


def model_of(index: Index, student: Path | None = None) -> Exported:
    """The exported model that queries are hashed by: the one named, or the one that hashed the index.

    Raises:
        UserError: the index is empty, or that model can't ask it.
    """
    card = index.card
    if card is None:
        raise UserError(f"{index.path}: holds no picture yet; add some: python -m search add")
    if student is None:
        if index.student is None:
            raise UserError(f"{index.path}: does not say where its model lies; name it by --student")
        try:
            model = Exported(Path(index.student))
        except UserError as error:
            raise UserError(f"{error} (it hashed this index; name it, or a student of it, by --student)") from None
        if model.hash != card["model_sha256"]:
            raise UserError(
                f"{index.student}: holds another model by now than the one that hashed this index "
                f"({model.hash[:12]}, not {card['model_sha256'][:12]}); name that one, or a student of it, by --student"
            )
        return model
    model = Exported(student)
    may_ask(model.card, card)
    return model


def hashed(model: Exported, file: Path | BinaryIO, name: str) -> tuple[tuple[str, np.ndarray, float], np.ndarray]:
    """((name, code uint8 [w], milliseconds that reading and hashing took), look). UserError: no readable picture."""
    start = time.perf_counter()
    pixels = pixels_of(file, name, upright=True)
    code = model.code(pixels)
    return (name, code, 1000 * (time.perf_counter() - start)), look_at(Image.fromarray(pixels))


def answers(
    index: Index,
    queries: list[tuple[str, np.ndarray, float]],
    k: int,
    radius: int | None = None,
    where: Filters = Filters(),
    unique: bool = False,
    looks: Sequence[np.ndarray | None] = (),
) -> list[dict]:
    """What ``python -m search query --json`` prints: one object a query; several share the time of one search evenly.

    Args:
        queries: (name, code, milliseconds that hashing took) of each.
        looks: of each, if it is to be said which of the nearest are likely the same picture: see ``search.copies``.
    """
    start = time.perf_counter()
    found = index.search(np.stack([code for _, code, _ in queries]), k, radius, where, unique)
    milliseconds = 1000 * (time.perf_counter() - start) / len(queries)
    searched = index.count(where)
    looks = looks if looks and index.keeps_thumbnails else [None] * len(queries)
    return [
        {
            "query": name,
            "hash_ms": round(hash_ms, 3),
            "search_ms": round(milliseconds, 3),
            "searched": searched,
            "index": index.identity,
            "generation": index.generation,
            "likely_same": [hit.content for hit in hits[:LOOKED] if alike(look, index, hit)],
            "results": [{"rank": n, "distance": hit.distance, **facts(hit)} for n, hit in enumerate(hits, 1)],
        }
        for (name, _, hash_ms), hits, look in zip(queries, found, looks, strict=True)
    ]


def facts(picture: Hit | Record) -> dict:
    """What is said of a picture."""
    content = picture.content if isinstance(picture, Hit) else picture.digest[:SHORT]
    return {"path": picture.path, "id": content, "bytes": picture.size, "taken": picture.taken}
