"""A tree of pictures as people keep them: no classes, no lists; a sample of them, drawn by a seed, is the data set."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import HashingData
from data.sources import FileImages, broken_images
from data.tree import images_below, relative
from utils.errors import UserError, many, some
from utils.files import read_json, write_json
from utils.machine import cores
from utils.seeds import seed_of

TRAIN_IMAGES = 5000
QUERIES = 500  # at most, of validation and of test queries each: a tenth of the pictures
NEIGHBOURS = 100  # at most, that count as relevant to a query: a tenth of what is searched
FEWEST = 4
SAMPLE = "sample.json"  # in a teacher's run


def load(
    data_dir: Path,
    train_images: int | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    sample: Path | None = None,
) -> HashingData:
    """A sample of the pictures below a folder: those that train, as many again that are only searched, and queries.

    Files that do not decode and copies of a picture's bytes are left out, with a note. There are no labels: what is
    relevant to a query is for ``retrieval.relevance`` to say.

    Args:
        data_dir: the top of the tree; links are followed, hidden files and folders are not.
        train_images: how many train, at most (``TRAIN_IMAGES`` where None).
        seed: of the sample.
        cache_dir: where digests and the list of what decodes are kept.
        sample: where ``keep_sample`` keeps one; if it has, that is it, whatever pictures have come since.

    Raises:
        UserError: no such folder, one that can't be read, fewer than ``FEWEST`` pictures, or a kept one that is gone.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data-dir takes the folder that your pictures are in")
    n_train = train_images or TRAIN_IMAGES
    if sample is not None and sample.exists():
        kept, notes = _kept_sample(root, sample), [f"the pictures that {sample} names"]
    else:
        names, passed = pictures_below(root)
        kept, notes = _sample(root, names, 2 * n_train + 2 * QUERIES, seed, cache_dir)
        notes = [f"{len(names):,} pictures found", *passed, *notes]
    if len(kept) < FEWEST:
        why = "".join(f"; {note}" for note in notes[1:])
        raise UserError(f"{root}: {len(kept)} different pictures that can be read{why}; at least {FEWEST} are needed")
    source = FileImages(root, sorted(kept), upright=True, cache_dir=cache_dir)
    place = {name: index for index, name in enumerate(source.names)}
    drawn = np.array([place[name] for name in kept])
    n_queries = min(QUERIES, max(1, len(kept) // 10))
    val, test, database = np.split(drawn, [n_queries, 2 * n_queries])
    return HashingData(
        name="photos",
        source=source,
        labels=np.zeros((len(source), 0), dtype=np.uint8),
        classes=[],
        train=database[:n_train],
        database=database,
        val=val,
        test=test,
        k=_neighbours(len(database)),
        notes=notes,
        decoded=True,
        title=f"photos {root.resolve().name}",
    )


def keep_sample(images: HashingData, run: Path) -> None:
    """Keep which pictures are the data set, in the order drawn: folders grow while runs are made of them."""
    order = np.concatenate([images.val, images.test, images.database]).tolist()
    write_json(run / SAMPLE, {"names": [images.source.names[i] for i in order]})


def _kept_sample(root: Path, file: Path) -> list[str]:
    names = read_json(file).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: damaged; delete that run, and train again")
    if gone := [name for name in names if not (root / name).is_file()]:
        raise UserError(
            f"{root}: {len(gone)} of the pictures that the run was made of are gone: {some(gone)}; put them back, or "
            "train a new teacher"
        )
    return names


def pictures_below(root: Path) -> tuple[list[str], list[str]]:
    """(paths of all pictures below ``root``, relative to it, sorted; notes of what is passed over)."""
    found = images_below([root])
    return sorted(relative(path, root) for path in found.paths), found.notes()


def _sample(root: Path, names: list[str], size: int, seed: int, cache_dir: Path | None) -> tuple[list[str], list[str]]:
    """(names in the order drawn, notes): up to ``size`` pictures that decode, no two of the same bytes.

    Deciding that takes every picture drawn to be decoded: the answer is kept, under what was asked and every file's
    size and time.
    """
    stats = [os.stat(os.path.join(root, name)) for name in tqdm(names, "looking at files", unit="file", leave=False)]
    state = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(names, stats, strict=True)]
    key = hashlib.sha256(json.dumps([str(root.resolve()), size, seed, state]).encode()).hexdigest()[:32]
    file = cache_dir / f"photos_{key}.json" if cache_dir else None
    if file and file.exists():
        kept = read_json(file)
        answer = kept.get("answer", {})
        if kept.get("checksum") != _checksum(answer):
            raise UserError(f"{file}: damaged; delete it, and the pictures are looked at again")
    else:
        order = np.random.RandomState(seed_of("photos", seed) % 2**32).permutation(len(names))
        answer = _draw(root, [names[i] for i in order], size, cache_dir)
        if file:
            write_json(file, {"answer": answer, "checksum": _checksum(answer)})
    notes = []
    if answer["broken"]:
        broken = many(len(answer["broken"]), "file")
        notes.append(f"left out {broken} that could not be decoded: {some(answer['broken'])}")
    if answer["copies"]:
        notes.append(f"left out {answer['copies']} copies of other pictures")
    return answer["names"], notes


def _checksum(answer: dict) -> str:
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()


def _draw(root: Path, names: list[str], size: int, cache_dir: Path | None) -> dict:
    """The first ``size`` of ``names`` that are whole and new, why others are broken, and how many are copies."""
    kept: list[str] = []
    broken: list[str] = []
    digests: set[bytes] = set()
    copies = 0
    while names and len(kept) < size:
        part, names = names[: size - len(kept)], names[size - len(kept) :]
        source = FileImages(root, part, upright=True, cache_dir=cache_dir)
        reasons = broken_images(source, cores())
        broken += reasons.values()
        for index, digest in enumerate(map(bytes, source.digests)):
            if index in reasons:
                continue
            if digest in digests:
                copies += 1
            else:
                digests.add(digest)
                kept.append(part[index])
    return {"names": kept, "broken": broken, "copies": copies}


def _neighbours(searched: int) -> int:
    return min(NEIGHBOURS, max(1, searched // 10))


def unlabelled(data: HashingData) -> HashingData:
    """A labelled data set as it would be measured if it had no labels."""
    return dataclasses.replace(data, labels=data.labels[:, :0], k=_neighbours(len(data.database)))
