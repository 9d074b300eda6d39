"""Checkpoints that run no code when they are read."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from zipfile import BadZipFile

import torch

from utils.errors import UserError
from utils.files import written_aside


def save_atomically(path: Path, content) -> None:
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
        if zipfile.is_zipfile(path):  # torch.load does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if torn := archive.testzip():
                    raise BadZipFile(f"checksum of {torn}")
                # Of two archives in one file the checksums are of the last, and torch reads the first.
                if min(entry.header_offset for entry in archive.infolist()):
                    raise BadZipFile("something before the archive")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles: they are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; has its training run finished a validation?") from None
    except PermissionError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: not loaded, for it holds more than tensors and plain values (or is damaged); "
            "only checkpoints that this project wrote are read"
        ) from None
    except Exception as error:  # a damaged file makes torch.load raise a dozen kinds, OSError among them
        raise UserError(
            f"{path}: truncated or no checkpoint ({type(error).__name__}); train again, or copy it again"
        ) from None
    there = content.get("kind") if isinstance(content, dict) else None
    if there != kind:
        raise UserError(
            f"{path}: a checkpoint of kind '{kind}' is needed, this is {there or 'no file of this project'}"
        )
    if version is not None and content.get("format") != version:
        raise UserError(f"{path}: of format {content.get('format')}, this code reads format {version}")
    return content
