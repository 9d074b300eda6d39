"""Files that appear whole or not at all, and locks."""

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from utils.errors import UserError, naming

ASIDE = ".brcd_aside_"  # how files begin while they are written: what a killed process leaves is told by it
# Whatever the locale; file names may be any bytes.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}


@contextlib.contextmanager
def written_aside(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at ``path`` whole or not at all, also when the power goes; text is UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, name = tempfile.mkstemp(prefix=f"{ASIDE}{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, mode, **({} if "b" in mode else TEXT)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def folder_aside(path: Path, mark: str) -> Iterator[Path]:
    """Fill a folder that appears at ``path`` whole or not at all.

    Args:
        mark: a file that every such folder holds: one that holds it is replaced.

    Raises:
        UserError: something else is at ``path``.
    """
    path = Path(os.path.abspath(path))
    check_replaceable(path, mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), tempfile.TemporaryDirectory(prefix=f"{ASIDE}{path.name}.", dir=path.parent) as aside:
        new, old = Path(aside) / "new", Path(aside) / "old"
        new.mkdir()
        yield new
        for file in (*new.iterdir(), new):
            _to_disk(file)
        check_replaceable(path, mark)
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(new, path)
        except BaseException:
            if old.exists():
                os.rename(old, path)
            raise
        _to_disk(path.parent)


def check_replaceable(path: Path, mark: str) -> None:
    """Raises UserError where ``folder_aside`` would destroy something: a file, or a folder that is not of its kind."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UserError(f"{path}: is no folder; choose another one")
    if path.exists() and any(path.iterdir()) and not (path / mark).is_file():
        raise UserError(f"{path}: is not empty and holds no {mark}, so it is not replaced; choose another folder")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Of several processes one is inside, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def held_alone(folder: Path) -> BaseFileLock:
    """A lock on ``folder`` that lasts as long as what is returned, and no longer than this process.

    Raises:
        UserError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = f"{folder}: another process is at work there; wait for its end, or choose another folder"
    return held_file(folder / ".lock", taken)


def held_file(file: Path, taken: str) -> BaseFileLock:
    """The same by a file of its own; ``taken``: what is said where another process has it."""
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(taken) from None
    return lock


def remove_torn(folder: Path) -> None:
    """Delete what a killed process was writing aside in ``folder``, and nothing else."""
    for torn in folder.glob(f"{ASIDE}*"):
        torn.unlink()


def write_json(path: Path, content: dict) -> None:
    with written_aside(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """One header for all rows; a value a row lacks stays empty."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    with written_aside(path, "w") as file:
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        UserError: missing, damaged, or no object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError):  # also what is not UTF-8
        pass
    raise UserError(f"{path}: damaged; delete it, and the command that made it writes it again")


def lines_of(content: bytes, name: Path | str) -> list[str]:
    """Lines of a text, UTF-8 with or without a byte-order mark, whatever their ends.

    Raises:
        UserError: no text, or none that is UTF-8; ``name`` is what it is called.
    """
    try:
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}:{content.count(10, 0, error.start) + 1}: not UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{name}: empty list")
    return lines


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that ``write_csv`` wrote.

    Raises:
        UserError: damaged: no rows, or rows of another width than the header.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (csv.Error, ValueError) as error:
        raise _damaged(path, error) from None
    if not rows or any(None in row or None in row.values() for row in rows):
        raise _damaged(path, "a row is cut")
    return rows


def read_arrays(path: Path, **shapes: tuple[str, int]) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, which carries a checksum for each.

    Args:
        shapes: for each array that is needed its dtype's kind ("iu", "f", ...) and number of dimensions.

    Raises:
        UserError: missing, damaged, or other arrays than those.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in shapes}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is it a finished run?") from None
    except PermissionError:
        raise
    except Exception as error:  # what reads a damaged archive raises a dozen kinds
        raise _damaged(path, error) from None
    for name, (kinds, dimensions) in shapes.items():
        array = np.asarray(arrays[name])  # what has lost its head comes as plain bytes
        if array.dtype.kind not in kinds or array.ndim != dimensions:
            raise _damaged(path, f"'{name}' is {array.dtype} with {array.ndim} dimensions")
    return arrays


def _damaged(path: Path, why: Exception | str) -> UserError:
    return UserError(f"{path}: damaged ({type(why).__name__ if isinstance(why, Exception) else why}); make it again")
