"""Anybody's own images: parts with class folders inside (ROOT/train/CLASS/*, ROOT/val/CLASS/*), or class folders split
by a seed (ROOT/CLASS/*).
"""

import unicodedata
from pathlib import Path

import numpy as np

from data.dataset import HashingData, one_hot, without_shared_content
from data.sources import FileImages, broken_images
from data.tree import Found, images_below, relative, subfolders, walk
from utils.errors import UserError, some
from utils.seeds import seed_of

QUERY_SHARE = 0.2  # of each class, where the folder has no split of its own; half validates, half asks
# What people call the parts, in any case. Without validation queries of their own, half of those that ask validate.
PART_NAMES = {
    **dict.fromkeys(("database", "train"), "database"),
    **dict.fromkeys(("query", "test"), "test"),
    "val": "val",
}
LAYOUT = "ROOT/CLASS/*.jpg, or ROOT/database/CLASS/*.jpg (or train) and ROOT/query/CLASS/*.jpg (or test, val)"


def _class_folders(top: Path) -> list[Path]:
    return [top / name for name in subfolders(top)]


def _files(root: Path, top: Path, found: Found) -> list[tuple[str, str]]:
    """(path relative to root, class) of every image below ``top``/CLASS, class by class, each sorted; ``found`` gets
    what is passed over. A class is one name, whatever letters its folders' names are composed of."""
    folders, files = _class_folders(top), []
    for folder in folders:
        # Not to be met by links inside a class: they would mix classes, or never end.
        outside = [*(other for other in folders if other != folder), top, root]
        here = images_below([folder], outside)
        found.problems += here.problems
        found.others += here.others
        name = unicodedata.normalize("NFC", folder.name)
        files += [(relative(path, root), name) for path in sorted(map(Path, here.paths))]
    return files


def _parts_of(root: Path) -> dict[str, Path]:
    """{"database", "test", "val": folder} of a folder that is split by its owner; empty where it is not.

    Raises:
        UserError: half a split, or two folders for one part.
    """
    folders = _class_folders(root)
    named = [folder for folder in folders if folder.name.lower() in PART_NAMES]
    if not named:
        return {}
    words = ", ".join(folder.name for folder in named)
    others = [folder.name for folder in folders if folder not in named]
    if others:
        # A class may be called "train": its folder holds images. A part holds folders.
        halves = [f.name for f in named if subfolders(f) and not next(walk([f])).files]
        if halves:
            raise UserError(
                f"{root}: {some(halves)} (of a split?) and {some(others)} (of classes?) lie "
                f"side by side; images lie as {LAYOUT}"
            )
        return {}
    parts: dict[str, Path] = {}
    for folder in named:
        other = parts.setdefault(PART_NAMES[folder.name.lower()], folder)
        if other is not folder:
            raise UserError(f"{root}: {other.name} and {folder.name} both name one part; keep one, or join them")
    missing = [
        f"{what} with CLASS folders inside"
        for names, what in ((("database",), "database (or train)"), (("test", "val"), "query (or test, val)"))
        if not any(_class_folders(parts[name]) for name in names if name in parts)
    ]
    if missing:
        raise UserError(f"{root}: has {words}, but no {' and no '.join(missing)}; images lie as {LAYOUT}")
    return parts


def _drop_broken(root: Path, files: list[tuple[str, str]], skip: bool) -> tuple[list[tuple[str, str]], list[str]]:
    broken = broken_images(FileImages(root, [name for name, _ in files]))
    if not broken:
        return files, []
    named = some(broken.values(), between="; ")
    if not skip:
        raise UserError(
            f"{len(broken)} of {len(files)} images are broken: {named}; mend or remove them, "
            "or leave them out with --skip-broken"
        )
    kept = [file for index, file in enumerate(files) if index not in broken]
    return kept, [f"left out {len(broken)} broken images: {named}"]


def _split_by_seed(classes: np.ndarray, draw: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """(database, queries) positions: QUERY_SHARE of each class asks; a class of one image stays in the database."""
    database, queries = [], []
    for c in np.unique(classes):
        members = draw.permutation(np.flatnonzero(classes == c))
        n_queries = min(max(1, round(QUERY_SHARE * len(members))), len(members) - 1)
        queries.append(members[:n_queries])
        database.append(members[n_queries:])
    return np.sort(np.concatenate(database)), np.concatenate(queries)


def load(
    data_dir: Path, skip_broken: bool = False, seed: int = 0, drop_leaks: bool = False, cache_dir: Path | None = None
) -> HashingData:
    """A folder of images, one subfolder a class; training uses the whole database part and none of its labels.

    Args:
        data_dir: ROOT with the parts inside (``PART_NAMES``), or with the class folders themselves.
        skip_broken: leave out files that do not decode instead of refusing.
        seed: of the split into database and queries and of the queries' halving into validation and test.
        drop_leaks: leave images that are queries too out of the database instead of refusing.
        cache_dir: where the files' digests are kept.

    Raises:
        UserError: no such folder, no images, broken images, too few to split, half a split, or queries in the database.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data-dir takes ROOT with images as {LAYOUT}")
    folders = _parts_of(root)
    found = Found()
    files = [file for top in folders.values() or [root] for file in _files(root, top, found)]
    if not files:
        passed = "".join(f"; {note}" for note in found.notes())
        raise UserError(f"{root}: no images in it{passed}; images lie one folder a class: {LAYOUT}")
    files, notes = _drop_broken(root, files, skip_broken)
    notes = found.notes() + notes
    stray = [name for top in (root, *folders.values()) for name, *_ in next(walk([top])).files]
    if stray:
        notes.append(f"{len(stray)} images lie in no class folder and are left out, the first {stray[0]}")
    if not files:
        raise UserError(f"{root}: no image in it can be read")
    names = [name for name, _ in files]
    class_names = sorted({c for _, c in files})
    number = {name: c for c, name in enumerate(class_names)}
    classes = np.array([number[c] for _, c in files])

    draw = np.random.RandomState(seed_of("folder split", seed) % 2**32)
    if folders:
        part_of = {folder.name: part for part, folder in folders.items()}
        part = np.array([part_of[name.split("/", 1)[0]] for name in names])
        database, test, val = (np.flatnonzero(part == p) for p in ("database", "test", "val"))
        unseen = sorted({class_names[c] for c in set(np.delete(classes, database)) - set(classes[database])})
        if unseen:
            notes.append(f"query classes with no image in the database (their AP is 0): {some(unseen, 20)}")
    else:
        database, test = _split_by_seed(classes, draw)
        val = test[:0]
        single = [class_names[c] for c in np.flatnonzero(np.bincount(classes) == 1)]
        if single:
            notes.append(f"classes with one image, kept in the database, never a query: {some(single, 20)}")
    if len(test) + len(val) < 2 or len(database) < 2:
        raise UserError(
            f"{root}: {len(database)} database and {len(test) + len(val)} query images; at least 2 of each are "
            "needed (queries are halved into validation and test)"
        )
    if not (len(test) and len(val)):
        queries = draw.permutation(np.concatenate([test, val]))
        val, test = np.split(queries, [len(queries) // 2])
    source = FileImages(root, names, upright=True, cache_dir=cache_dir)
    parts = {"database": database, "train": database, "val": val, "test": test}
    parts, dropped = without_shared_content(root, source, parts, drop_leaks)
    return HashingData(
        name="folder",
        source=source,
        labels=one_hot(classes, len(class_names)),
        classes=class_names,
        train=parts["train"],
        database=parts["database"],
        val=parts["val"],
        test=parts["test"],
        k=1000,
        notes=notes + dropped,
        decoded=True,
        title=f"folder {root.resolve().name}",
    )
