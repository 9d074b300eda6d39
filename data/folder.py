"""Anybody's own images: ROOT/{database,query}/CLASS/*, or ROOT/CLASS/* split by a seed."""

from pathlib import Path

import numpy as np

from data.dataset import HashingData, one_hot
from data.sources import IMAGE_SUFFIXES, FileImages, broken_images
from utils.errors import UserError
from utils.seeds import seed_of

QUERY_SHARE = 0.2  # of each class, where the folder has no split of its own; half validates, half asks
NAMED_AT_MOST = 5  # broken files named in one message


def _class_folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path, top: Path) -> list[tuple[str, str]]:
    """(path relative to root, class) of every image below ``top``/CLASS, sorted."""
    return [
        (path.relative_to(root).as_posix(), folder.name)
        for folder in _class_folders(top)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]


def _drop_broken(root: Path, files: list[tuple[str, str]], skip: bool) -> tuple[list[tuple[str, str]], list[str]]:
    broken = broken_images(FileImages(root, [name for name, _ in files]))
    if not broken:
        return files, []
    first = "; ".join(list(broken.values())[:NAMED_AT_MOST])
    more = f" and {len(broken) - NAMED_AT_MOST} more" if len(broken) > NAMED_AT_MOST else ""
    if not skip:
        raise UserError(
            f"{len(broken)} of {len(files)} images are broken: {first}{more}; mend or remove them, "
            "or leave them out with --skip-broken"
        )
    kept = [file for index, file in enumerate(files) if index not in broken]
    return kept, [f"left out {len(broken)} broken images: {first}{more}"]


def _split_by_seed(classes: np.ndarray, draw: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """(database, queries) positions: QUERY_SHARE of each class asks; a class of one image stays in the database."""
    database, queries = [], []
    for c in np.unique(classes):
        members = draw.permutation(np.flatnonzero(classes == c))
        n_queries = min(max(1, round(QUERY_SHARE * len(members))), len(members) - 1)
        queries.append(members[:n_queries])
        database.append(members[n_queries:])
    return np.sort(np.concatenate(database)), np.concatenate(queries)


def load(data_dir: Path, skip_broken: bool = False, seed: int = 0) -> HashingData:
    """A folder of images, one subfolder a class; training uses the whole database part and none of its labels.

    Args:
        data_dir: ROOT with ``database`` and ``query`` inside, or with the class folders themselves.
        skip_broken: leave out files that do not decode instead of refusing.
        seed: of the split into database and queries and of the queries' halving into validation and test.

    Raises:
        UserError: no such folder, no images, broken images, or too few to split.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; --data-dir takes ROOT with database/CLASS and query/CLASS inside, "
            "or with CLASS folders"
        )
    own_split = (root / "database").is_dir() and (root / "query").is_dir()
    files = _files(root, root / "database") + _files(root, root / "query") if own_split else _files(root, root)
    if not files:
        raise UserError(
            f"{root}: no images in it; images ({', '.join(sorted(IMAGE_SUFFIXES))}) lie one folder a "
            "class: ROOT/CLASS/*.jpg, or ROOT/database/CLASS/*.jpg and ROOT/query/CLASS/*.jpg"
        )
    files, notes = _drop_broken(root, files, skip_broken)
    if not files:
        raise UserError(f"{root}: no image in it can be read")
    names = [name for name, _ in files]
    class_names = sorted({c for _, c in files})
    classes = np.array([class_names.index(c) for _, c in files])

    draw = np.random.RandomState(seed_of("folder split", seed) % 2**32)
    if own_split:
        asks = np.array([name.startswith("query/") for name in names])
        database, queries = np.flatnonzero(~asks), np.flatnonzero(asks)
        unseen = sorted({class_names[c] for c in set(classes[queries]) - set(classes[database])})
        if unseen:
            notes.append(f"query classes with no image in the database (their AP is 0): {', '.join(unseen)}")
    else:
        database, queries = _split_by_seed(classes, draw)
        single = [class_names[c] for c in np.flatnonzero(np.bincount(classes) == 1)]
        if single:
            notes.append(f"classes with one image, kept in the database, never a query: {', '.join(single)}")
    if len(queries) < 2 or len(database) < 2:
        raise UserError(
            f"{root}: {len(database)} database and {len(queries)} query images; at least 2 of each are "
            "needed (queries are halved into validation and test)"
        )
    queries = draw.permutation(queries)
    return HashingData(
        name="folder",
        source=FileImages(root, names),
        labels=one_hot(classes, len(class_names)),
        classes=class_names,
        train=database,
        database=database,
        val=queries[: len(queries) // 2],
        test=queries[len(queries) // 2 :],
        k=1000,
        notes=notes,
        decoded=True,
    )
