"""Image lists: the formats that deep-hashing papers use, and tables, read strictly.

- ``path l1 ... lL`` a line, 0/1 labels (HashNet, DeepHash-pytorch); .txt or .txt.xz
- ``X_img.txt`` with a path a line beside ``X_label_onehot.txt`` with 0/1 labels a line (the NUS-WIDE style)
- .csv or .parquet with a column ``path`` and either ``labels`` ("0 1 0", or a list) or one 0/1 column a label

Every fault is one line with file and line number: a list is believed only whole.
"""

import lzma
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from utils.errors import UserError

NAMES_AT_MOST = 5


@dataclass(frozen=True)
class ImageList:
    """Paths as written (less a known prefix) and labels uint8 [n, L] of 0/1."""

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
        n_labels: how many labels a line must have; None: as many as the first line.
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
        names, labels, classes = _read_lines(file, n_labels)
    if n_labels is not None and labels.shape[1] != n_labels:
        raise UserError(f"{file}: {labels.shape[1]} labels a line, {n_labels} are needed")
    names = [_inside(file, i, n.removeprefix(prefix)) for i, n in enumerate(names, 1)]
    _no_duplicates(file, names)
    return ImageList(file, names, labels, classes)


def _lines(file: Path) -> list[str]:
    """Lines without their ends; Windows line ends, a byte-order mark and an empty file are refused."""
    data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        raise UserError(f"{file}:1: begins with a byte-order mark; save it as UTF-8 without BOM")
    newline = b"\n"
    if (at := data.find(b"\r")) >= 0:
        raise UserError(f"{file}:{data.count(newline, 0, at) + 1}: Windows line ends; convert the file with dos2unix")
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}:{data.count(newline, 0, error.start) + 1}: not UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{file}: empty list")
    return lines


def _labels_of(file: Path, number: int, words: list[str], width: int) -> bytes:
    if len(words) != width:
        raise UserError(f"{file}:{number}: {len(words)} labels, {width} are needed")
    row = "".join(words)
    if len(row) != width or not set(row) <= {"0", "1"}:
        wrong = next(w for w in words if w not in ("0", "1"))
        raise UserError(f"{file}:{number}: label '{wrong}' is not 0 or 1")
    return row.encode()


def _matrix(rows: list[bytes], width: int) -> np.ndarray:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), width) - ord("0")


def _read_lines(file: Path, n_labels: int | None) -> tuple[list[str], np.ndarray, list[str]]:
    names, rows, width = [], [], n_labels
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            raise UserError(f"{file}:{number}: empty line")
        # With a known width a path may hold spaces; the first line tells the width by its trailing 0s and 1s.
        if width is None:
            words = line.split()
            width = len(words) - 1
            if width < 1:
                raise UserError(f"{file}:{number}: a path and at least one 0/1 label are needed, separated by spaces")
        name, *words = line.rsplit(maxsplit=width)
        rows.append(_labels_of(file, number, words, width))
        names.append(name)
    return names, _matrix(rows, width), [str(i) for i in range(width)]


def _read_two_files(file: Path) -> tuple[list[str], np.ndarray, list[str]]:
    partner = file.with_name(file.name.replace("_img.txt", "_label_onehot.txt"))
    if not partner.is_file():
        raise UserError(f"{file}: its labels {partner.name} are not beside it")
    names, label_lines = _lines(file), _lines(partner)
    if len(names) != len(label_lines):
        raise UserError(f"{partner}: {len(label_lines)} lines for the {len(names)} images of {file.name}")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{file}:{number}: empty line")
    width = len(label_lines[0].split())
    if width < 1:
        raise UserError(f"{partner}:1: no labels")
    rows = [_labels_of(partner, number, line.split(), width) for number, line in enumerate(label_lines, 1)]
    return [n.strip() for n in names], _matrix(rows, width), [str(i) for i in range(width)]


def _read_table(file: Path) -> tuple[list[str], np.ndarray, list[str]]:
    try:
        table = (
            pd.read_parquet(file)
            if file.suffix == ".parquet"
            else pd.read_csv(file, dtype={"path": str, "labels": str})
        )
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors are ValueErrors or OSErrors
        raise UserError(f"{file}: not a readable table ({error})") from None
    if "path" not in table:
        raise UserError(f"{file}: no column 'path'; there are: {', '.join(map(str, table.columns))}")
    if not len(table):
        raise UserError(f"{file}: empty list")
    header = 1 if file.suffix == ".csv" else 0
    if missing := np.flatnonzero(table["path"].isna()).tolist():
        raise UserError(f"{file}:{missing[0] + 1 + header}: no path")
    if "labels" in table:
        cells = [c.split() if isinstance(c, str) else [str(v) for v in np.atleast_1d(c)] for c in table["labels"]]
        width = len(cells[0])
        rows = [_labels_of(file, i + header, words, width) for i, words in enumerate(cells, 1)]
        return table["path"].tolist(), _matrix(rows, width), [str(i) for i in range(width)]
    columns = [c for c in table.columns if c != "path"]
    if not columns:
        raise UserError(f"{file}: no labels: a column 'labels', or one 0/1 column a label")
    values = table[columns].to_numpy()
    wrong = np.argwhere(~np.isin(values, (0, 1)))
    if len(wrong):
        i, j = wrong[0]
        raise UserError(f"{file}:{i + 1 + header}: label '{values[i, j]}' of '{columns[j]}' is not 0 or 1")
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


def leaks(queries: ImageList, database: ImageList) -> np.ndarray:
    """Rows of the database that are also queries."""
    asked = set(queries.names)
    return np.flatnonzero([name in asked for name in database.names])


def missing_files(root: Path, lists: list[ImageList]) -> list[str]:
    """ "list:line: path" of the first images that are not there, and how many more."""
    absent = [
        f"{one.file}:{number}: {name}"
        for one in lists
        for number, name in enumerate(one.names, 1)
        if not (root / name).is_file()
    ]
    return (
        absent if len(absent) <= NAMES_AT_MOST else [*absent[:NAMES_AT_MOST], f"and {len(absent) - NAMES_AT_MOST} more"]
    )


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
    """The list of one part ("train", "database", "test", "val") in a folder, in whichever format it is there."""
    names = [part + ending for ending in (".txt", ".txt.xz", "_img.txt", ".csv", ".parquet")]
    return next((folder / name for name in names if (folder / name).is_file()), None)
