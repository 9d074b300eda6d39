"""Image lists: the formats that deep-hashing papers use, and tables, read strictly.

- ``path l1 ... lL`` a line, 0/1 labels (HashNet, DeepHash-pytorch)
- ``X_img.txt`` with a path a line beside ``X_label_onehot.txt`` with 0/1 labels a line (the NUS-WIDE style)
- .csv or .parquet with a column ``path`` and either ``labels`` ("0 1 0", or a list) or one 0/1 column a label

Where tables name their labels, all parts name the same ones, in any order. Every fault is one line with file and line
number: a list is believed only whole.
"""

import os
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from utils.errors import UserError, first_line, some
from utils.files import lines_of

ROWS_NEEDED = "0/1 rows are needed, one column a class: of 4 classes number 2 is '0 0 1 0'"


@dataclass(frozen=True)
class ImageList:
    """Paths as written (less a known prefix) and labels uint8 [n, L] of 0/1; ``classes`` is empty in a format without
    names of its columns, until the lists are ``aligned``."""

    file: Path
    names: list[str]
    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> "ImageList":
        return ImageList(self.file, [self.names[i] for i in rows], self.labels[rows], self.classes)


def read_list(file: Path, n_labels: int | None = None, prefix: str = "") -> ImageList:
    """Read one list in any of the formats.

    Args:
        file: for the two-file style the ``_img.txt``.
        n_labels: how many labels a line must have; None: as many as the first line ends with.
        prefix: removed from the front of paths that have it, such as "./data/coco/".

    Raises:
        UserError: a fault, with file and line.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file}: no such list")
    if file.suffix in (".csv", ".parquet"):
        names, labels, classes = _read_table(file)
    elif "_img.txt" in file.name:
        names, labels, classes = _read_two_files(file)
    else:
        names, labels, classes = _read_rows(file, n_labels)
    if n_labels is not None and labels.shape[1] != n_labels:
        raise UserError(f"{file}: {labels.shape[1]} labels a line, {n_labels} are needed")
    names = [_inside(file, i, n.removeprefix(prefix)) for i, n in enumerate(names, 1)]
    _no_duplicates(file, names)
    return ImageList(file, names, labels, classes)


def _labels_of(file: Path, number: int, words: list[str], width: int) -> bytes:
    if len(words) != width:
        raise UserError(f"{file}:{number}: {len(words)} labels, {width} are needed")
    row = "".join(words)
    if len(row) != width or not set(row) <= {"0", "1"}:
        wrong = next(w for w in words if w not in ("0", "1"))
        hint = f"; if it is a class number: {ROWS_NEEDED}" if wrong.isdecimal() else ""
        raise UserError(f"{file}:{number}: label '{wrong}' is not 0 or 1{hint}")
    return row.encode()


def _matrix(rows: list[bytes], width: int) -> np.ndarray:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), width) - ord("0")


def _trailing_labels(line: str) -> int:
    return sum(1 for _ in takewhile(lambda word: word in ("0", "1"), reversed(line.split())))


def _first_width(file: Path, line: str) -> int:
    width = min(_trailing_labels(line), len(line.split()) - 1)
    if width < 1:
        last = line.split()[-1]
        found = f"'{last}' looks like a class number; {ROWS_NEEDED}" if last.isdecimal() else f"it ends in '{last}'"
        raise UserError(f"{file}:1: a path and at least one 0/1 label are needed, separated by spaces: {found}")
    return width


def _read_rows(file: Path, n_labels: int | None) -> tuple[list[str], np.ndarray, list[str]]:
    names, rows, width = [], [], n_labels
    for number, line in enumerate(lines_of(file.read_bytes(), file), 1):
        if not line.strip():
            raise UserError(f"{file}:{number}: empty line")
        # A path may hold spaces, so labels are counted from the end.
        width = width or _first_width(file, line)
        name, *words = line.rsplit(maxsplit=width)
        if name.endswith((" 0", " 1", "\t0", "\t1")) or len(words) < width or not words[0].isdecimal():
            raise UserError(f"{file}:{number}: {_trailing_labels(line)} labels, {width} are needed")
        rows.append(_labels_of(file, number, words, width))
        names.append(name)
    labels = _matrix(rows, len(rows[0]))
    return names, labels, []


def _read_two_files(file: Path) -> tuple[list[str], np.ndarray, list[str]]:
    partner = file.with_name(file.name.replace("_img.txt", "_label_onehot.txt"))
    if not partner.is_file():
        raise UserError(f"{file}: its labels {partner.name} are not beside it")
    names, label_lines = lines_of(file.read_bytes(), file), lines_of(partner.read_bytes(), partner)
    if len(names) != len(label_lines):
        raise UserError(f"{partner}: {len(label_lines)} lines for the {len(names)} images of {file.name}")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{file}:{number}: empty line")
    width = len(label_lines[0].split())
    if width < 1:
        raise UserError(f"{partner}:1: no labels")
    rows = [_labels_of(partner, number, line.split(), width) for number, line in enumerate(label_lines, 1)]
    return [n.strip() for n in names], _matrix(rows, width), []


def _read_table(file: Path) -> tuple[list[str], np.ndarray, list[str]]:
    try:
        table = (
            pd.read_parquet(file)
            if file.suffix == ".parquet"
            else pd.read_csv(
                file, dtype={"path": str, "labels": str}, low_memory=False
            )  # else it warns of mixed columns
        )
        for column in {"path", "labels"} & set(table.columns):
            table[column] = table[column].astype(object)  # arrow reads its bytes only now
    except Exception as error:  # pandas and pyarrow raise a dozen kinds, some of many lines
        raise UserError(f"{file}: not a readable table ({first_line(error)})") from None
    if file.suffix == ".csv" and not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{file}: more fields a line than its first line names; name each column there")
    if "path" not in table:
        raise UserError(f"{file}: no column 'path'; there are: {some(table.columns)}")
    if not len(table):
        raise UserError(f"{file}: empty list")
    header = 1 if file.suffix == ".csv" else 0
    if missing := np.flatnonzero(table["path"].isna()).tolist():
        raise UserError(f"{file}:{missing[0] + 1 + header}: no path")
    if (kind := pd.api.types.infer_dtype(table["path"])) != "string":
        raise UserError(f"{file}: its column 'path' holds {kind}, not text")
    if "labels" in table:
        cells = [c.split() if isinstance(c, str) else [str(v) for v in np.atleast_1d(c)] for c in table["labels"]]
        width = len(cells[0])
        if not width:
            raise UserError(f"{file}:{1 + header}: no labels; {ROWS_NEEDED}")
        rows = [_labels_of(file, i + header, words, width) for i, words in enumerate(cells, 1)]
        return table["path"].tolist(), _matrix(rows, width), []
    columns = [c for c in table.columns if c != "path"]
    if not columns:
        raise UserError(f"{file}: no labels: a column 'labels', or one 0/1 column a label")
    values = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    wrong = np.argwhere(~np.isin(values, (0, 1)))
    if len(wrong):
        i, j = wrong[0]
        found = str(table[columns[j]].iloc[i])[:40]
        raise UserError(f"{file}:{i + 1 + header}: label '{found}' of '{columns[j]}' is not 0 or 1")
    return table["path"].tolist(), values.astype(np.uint8), [str(c) for c in columns]


def _inside(file: Path, number: int, name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{file}:{number}: {name} lies outside the image folder; paths are relative to --data-dir")
    return str(path)


def _no_duplicates(file: Path, names: list[str]) -> None:
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if seen.setdefault(name, number) != number:
            raise UserError(f"{file}:{number}: {name} is in the list already, at line {seen[name]}")


def missing_files(root: Path, lists: list[ImageList]) -> list[str]:
    """ "list:line: path is not there" of every image that is not, each once."""
    places: dict[str, str] = {}
    for one in lists:
        for number, name in enumerate(one.names, 1):
            if name not in places:
                places[name] = "" if os.path.isfile(os.path.join(root, name)) else f"{one.file}:{number}"
    return [f"{place}: {name} is not there" for name, place in places.items() if place]


def aligned(parts: dict[str, ImageList]) -> dict[str, ImageList]:
    """Label columns of all parts in the order of the first list that names them; without names they stay as they are.

    Raises:
        UserError: two lists name different labels.
    """
    parts, first = dict(parts), None
    for part, one in parts.items():
        if not one.classes:
            continue
        first = first or one
        if odd := sorted(set(one.classes) ^ set(first.classes)):
            raise UserError(
                f"{one.file}: its label columns are not those of {first.file}; only one of them has "
                f"{some(odd)}; give both the same columns"
            )
        order = [one.classes.index(name) for name in first.classes]
        parts[part] = replace(one, labels=one.labels[:, order], classes=first.classes)
    for part, one in parts.items():
        parts[part] = replace(one, classes=first.classes if first else [str(i) for i in range(one.labels.shape[1])])
    return parts


def merge(parts: dict[str, ImageList]) -> tuple[list[str], np.ndarray, dict[str, np.ndarray]]:
    """(all names once, their labels, for each part its positions).

    Raises:
        UserError: an image has different labels in two lists, or the lists different widths.
    """
    widths = {one.labels.shape[1] for one in parts.values()}
    if len(widths) > 1:
        raise UserError(
            "; ".join(f"{one.file}: {one.labels.shape[1]} labels" for one in parts.values()) + ": they must agree"
        )
    place: dict[str, int] = {}
    rows: list[np.ndarray] = []
    positions = {}
    for part, one in parts.items():
        where = np.empty(len(one), dtype=np.int64)
        for i, name in enumerate(one.names):
            at = place.setdefault(name, len(place))
            if at == len(rows):
                rows.append(one.labels[i])
            elif not np.array_equal(rows[at], one.labels[i]):
                raise UserError(f"{one.file}:{i + 1}: {name} has other labels here than in an earlier list")
            where[i] = at
        positions[part] = where
    return list(place), np.stack(rows), positions


def find_list(folder: Path, part: str) -> Path | None:
    """The list of one part ("train", "database", "test", "val") in a folder, in whichever format it is there.

    Raises:
        UserError: it is there in two formats.
    """
    names = [part + ending for ending in (".txt", "_img.txt", ".csv", ".parquet")]
    there = [folder / name for name in names if (folder / name).is_file()]
    if len(there) > 1:
        raise UserError(f"{folder}: two lists of one part, {there[0].name} and {there[1].name}; remove one")
    return there[0] if there else None
