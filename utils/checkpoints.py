"""Checkpoints that run no code when they are read."""

import io
import zipfile
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import written_aside


def save_atomically(path: Path, content: dict) -> None:
    # Through memory: torch turns a full disk into its own error, a plain write says what happened.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with written_aside(path) as file:
        file.write(buffer.getbuffer())


def read_checkpoint(path: Path, kind: str, version: int | None = None) -> dict:
    """A checkpoint of this project as a dict of plain values and tensors.

    Raises:
        UserError: missing, truncated, not ours, of another kind or version, or holding objects that would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if torn := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {torn}")
            # Of two archives in one file the checksums are of the last, and torch reads the first.
            if min(entry.header_offset for entry in archive.infolist()):
                raise zipfile.BadZipFile("something before the archive")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; has its training run finished a validation?") from None
    except PermissionError:
        raise
    except Exception as error:  # a damaged file, or one of more than tensors and plain values: a dozen kinds
        raise UserError(
            f"{path}: truncated or no checkpoint of ours ({type(error).__name__}); train again, or copy it again"
        ) from None
    there = content.get("kind") if isinstance(content, dict) else None
    if there != kind:
        raise UserError(
            f"{path}: a checkpoint of kind '{kind}' is needed, this is {there or 'no file of this project'}"
        )
    if version is not None and content.get("format") != version:
        raise UserError(f"{path}: of format {content.get('format')}, this code reads format {version}")
    return content
