"""Files that appear whole or not at all, locks, and checkpoints that run no code."""

import contextlib
import csv
import fcntl
import io
import json
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import torch

from utils.errors import UserError


@contextlib.contextmanager
def written_aside(path: Path, mode: str = "wb") -> Iterator:
    """Open a file that appears at ``path`` whole or not at all, also when the power goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Of several processes one is inside, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def held_alone(folder: Path):
    """A lock on ``folder`` that lasts as long as what is returned, and no longer than this process.

    Raises:
        UserError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w")  # noqa: SIM115  (open as long as it is held)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"{folder}: another process is at work there; wait for its end, or choose another --run-dir"
        ) from None
    return lock


def save_atomically(path: Path, content) -> None:
    # Through memory: torch turns a full disk into its own error, a plain write says what happened.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with written_aside(path) as file:
        file.write(buffer.getbuffer())


def write_json(path: Path, content) -> None:
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


def read_checkpoint(path: Path, kind: str) -> dict:
    """A checkpoint of this project as a dict of plain values and tensors.

    Raises:
        UserError: missing, truncated, not ours, of another kind, or holding objects that would run code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; has its training run finished a validation?") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: not loaded, for it holds more than tensors and plain values (or is damaged); "
            "only checkpoints that this project wrote are read"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(
            f"{path}: truncated or no checkpoint ({type(error).__name__}); train again, or copy it again"
        ) from None
    kind_there = content.get("kind") if isinstance(content, dict) else None
    if kind_there != kind:
        raise UserError(
            f"{path}: a checkpoint of kind '{kind}' is needed, this is {kind_there or 'no file of this project'}"
        )
    return content
