"""Imported once by the server that tries are forked from: what a first use would cost every fork is paid here."""

import tempfile
from pathlib import Path

from fault_inputs import look_at
from fault_readers import Reader

import distill
import evaluate
import train_teacher
from scripts import report

COMMANDS = (train_teacher, distill, evaluate, report)


def make(folder: Path, variant: int) -> None:
    (folder / "file").write_bytes(bytes([variant]))


def read(folder: Path) -> bytes:
    return (folder / "file").read_bytes()


with tempfile.TemporaryDirectory() as aside:  # hypothesis makes its tables at its first input
    look_at(Reader("warm", "file", make, read), Path(aside) / "case", 0, 3, lambda *_: None)
