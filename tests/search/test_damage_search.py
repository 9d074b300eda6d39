"""Damaged indexes, and the list of what decodes below a folder of photos: right, or one line that names the file."""

import os
from pathlib import Path

import numpy as np
import pytest
from damage import Reader, look
from exports import write_export
from PIL import Image

from data import photos
from data.decode import pixels_of
from models.exported import Exported
from search import adding, asking
from search.index import Index

INPUTS, SEED = 30, 1
BITS, PICTURES = 16, 12


def make_files(folder: Path) -> None:
    """Valid ones, two of each kind."""
    model = Exported(write_export(folder / "student", BITS))
    for number in range(2):
        (folder / f"album{number}").mkdir()
        for i in range(PICTURES):
            draw = np.random.RandomState(PICTURES * number + i)
            pixels = draw.randint(0, 256, (18, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"album{number}" / f"{i:02}.png")
        (folder / f"index{number}").mkdir()
        with Index(folder / f"index{number}" / "file", write=True) as index:
            adding.add(index, model, [folder / f"album{number}"], threads=1)
        read_photos(folder / f"photos{number}" / "file")


def read_index(file: Path) -> tuple:
    """All that a query shows: hits, what is known of them, their thumbnails."""
    with Index(file) as index:
        model = asking.model_of(index)
        album = file.parents[1] / "album0"
        hits = index.search(np.stack([model.code(pixels_of(album / f"{i:02}.png")) for i in range(3)]), PICTURES)
        known = index.records([hit.id for hit in hits[0]])
        thumbnails = [index.thumbnail(hit.id) for hit in hits[0]]
    # Names may be other names; no picture may be missing, and none at another distance than its own.
    distances = [[hit.distance for hit in of_one] for of_one in hits]
    assert all(len(of_one) == PICTURES and of_one == sorted(of_one) and of_one[-1] <= BITS for of_one in distances)
    assert len({record.id for record in known}) == PICTURES and all(isinstance(one, bytes) for one in thumbnails)
    return distances, [[hit.path for hit in of_one] for of_one in hits], known, thumbnails


def read_photos(file: Path) -> tuple:
    album = file.parents[1] / file.parent.name.replace("photos", "album")
    for picture in album.iterdir():
        os.utime(picture, (0, 0))  # the answer is kept by name, size and time
    data = photos.load(album, cache_dir=file.parent)
    assert len(data.source) == PICTURES
    return data.source.names, data.train, data.database, data.val, data.test, data.notes


READERS = [Reader("index{}/file", read_index), Reader("photos{}/photos_*.json", read_photos, exact=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    make_files(folder := tmp_path_factory.mktemp("files"))
    return folder


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.file.format(0))
def test_a_damaged_file_is_read_right_or_refused_in_one_line(folder, reader):
    tally, found = look(reader, folder, INPUTS, SEED)
    assert not found and tally["inputs"] >= INPUTS / 2 and tally["refused"], found or tally
