"""Features of images under a frozen backbone, kept on disk, opened as a memory map."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from utils import distributed
from utils.errors import UserError, naming
from utils.files import file_lock, held_file, read_json, remove_torn, write_json, written_aside

CHECKPOINT_SECONDS = 10  # work that a kill may cost an extraction
DTYPE = np.float16
BLOCK = 1 << 22  # bytes a checksum


class FeatureCache:
    """Arrays of features on disk, each named by a hash of all the facts that determine it.

    An entry grows row by row and counts as complete up to what ``rows.json`` says, which is written after the rows
    are on the disk; so a half-written entry is never read, and an interrupted extraction goes on where it was.
    More rows of the same facts (more views of a bank) are appended to the entry that has fewer. ``rows.json`` also
    holds a checksum a block, and what a run opens is checked once.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.limit = Path(folder), limit

    def get(
        self, facts: dict, rows: int, dim: int, extract: Callable[[int], Iterable[torch.Tensor]], title: str
    ) -> np.memmap:
        """Rows 0..rows of the entry that ``facts`` name, float16 [rows, dim], read-only.

        Args:
            facts: everything the values depend on, as plain values.
            extract: called with the first missing row; yields feature batches from there on.
            title: of the progress bar, and what a listing of the cache shows.

        Raises:
            UserError: the entry is damaged, or not all processes see it.
        """
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        entry = Entry(self.folder / name, dim)
        entry.folder.mkdir(parents=True, exist_ok=True)
        if not all(distributed.gather(entry.rows >= rows)):
            if distributed.is_first():
                with file_lock(entry.folder / "lock"):  # of several runs one extracts, the others wait
                    remove_torn(entry.folder)
                    start = distributed.from_first(entry.rows)
                    if start < rows:
                        entry.check(start)
                        write_json(entry.folder / "facts.json", {"title": title, **facts})
                        entry.append(start, rows, extract, title)
            elif (start := distributed.from_first(0)) < rows:
                for _ in extract(start):  # rank 0 writes
                    pass
            distributed.from_first(None)  # all wait until rank 0 has written
            if min(distributed.gather(entry.rows)) < rows:
                raise UserError(f"{entry.folder}: not every process sees it; put --cache-dir on storage that all share")
        entry.check(rows)
        with contextlib.suppress(OSError):  # a cache that can only be read serves as well
            os.utime(entry.folder)
        if self.limit is not None and distributed.is_first():
            prune(self.folder, self.limit, keep=name)
        return np.memmap(entry.data, dtype=DTYPE, mode="r", shape=(rows, dim))


class Entry:
    """One array of the cache: features.bin, and rows.json with the number of its rows and its blocks' checksums."""

    checked: ClassVar[dict[Path, tuple]] = {}  # state when checked, and how many bytes were

    def __init__(self, folder: Path, dim: int):
        self.folder, self.width = folder, dim * DTYPE().itemsize
        self.data, self.marker = folder / "features.bin", folder / "rows.json"

    def known(self) -> tuple[int, list[int]]:
        """(rows, checksums); an entry whose marker is missing, damaged or without checksums is begun again."""
        try:
            marker = json.loads(self.marker.read_text())
            rows, sums = marker["rows"], marker["checksums"]
            if isinstance(rows, int) and isinstance(sums, list) and len(sums) == -(-rows * self.width // BLOCK):
                return rows, sums
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return 0, []

    @property
    def rows(self) -> int:
        return self.known()[0]

    def state(self) -> tuple[int, int] | None:
        try:
            stat = self.data.stat()
            return stat.st_size, stat.st_mtime_ns
        except FileNotFoundError:
            return None

    def check(self, rows: int) -> None:
        """Raises UserError unless the blocks that hold the first ``rows`` rows are as they were written."""
        state, (before, size) = self.state(), self.checked.get(self.data, (None, 0))
        if state and state == before and size >= rows * self.width:
            return
        known, sums = self.known()
        blocks = -(-rows * self.width // BLOCK)
        stop = min(blocks * BLOCK, known * self.width)
        there = checksums(self.data, 0, stop) if state else None
        if there != sums[:blocks] and blocks:
            raise UserError(
                f"{self.data}: damaged, or its rows.json; delete {self.folder}, and its features are extracted again"
            )
        self.checked[self.data] = state, rows * self.width

    def append(self, start: int, rows: int, extract: Callable[[int], Iterable[torch.Tensor]], title: str) -> None:
        sums = self.known()[1][: start * self.width // BLOCK]  # of whole blocks

        def mark(file: BinaryIO, count: int) -> None:
            file.flush()
            os.fsync(file.fileno())
            size = count * self.width
            now = sums + checksums(self.data, len(sums) * BLOCK, size)
            sums[:] = now[: size // BLOCK]
            with written_aside(self.marker, "w") as out:
                json.dump({"rows": count, "checksums": now}, out)

        with (
            naming(self.data),
            open(self.data, "ab") as file,
            tqdm(total=rows, initial=start, desc=title, unit="img") as bar,
        ):
            file.truncate(start * self.width)
            done, last = start, time.monotonic()
            for features in extract(start):
                values = features.cpu().numpy().astype(DTYPE)
                if not np.isfinite(values).all():
                    raise UserError(
                        f"{title}: the backbone gave NaN or infinite features; check its weights and "
                        "--precision float32"
                    )
                file.write(values.tobytes())
                done += len(values)
                bar.update(len(values))
                if time.monotonic() - last > CHECKPOINT_SECONDS:
                    mark(file, done)
                    last = time.monotonic()
            if done != rows:
                raise RuntimeError(f"{title}: {done} rows came, {rows} were asked for")
            mark(file, done)


def checksums(file: Path, start: int, stop: int) -> list[int]:
    """CRC-32 of each block of bytes start..stop; of fewer if the file is shorter."""
    sums = []
    with open(file, "rb") as content:
        content.seek(start)
        for first in range(start, stop, BLOCK):
            sums.append(zlib.crc32(content.read(min(BLOCK, stop - first))))
    return sums


def entries(folder: Path) -> list[dict]:
    """What a cache holds, longest unused first."""
    listed = []
    for facts in Path(folder).glob("*/facts.json"):
        entry = facts.parent
        data = entry / "features.bin"
        listed.append(
            {
                "name": entry.name,
                "bytes": data.stat().st_size if data.exists() else 0,
                "used": entry.stat().st_mtime,
                "facts": _facts(facts),
            }
        )
    return sorted(listed, key=lambda e: e["used"])


def _facts(file: Path) -> dict:
    try:
        return read_json(file)
    except UserError:
        return {"title": "damaged facts.json"}


def prune(folder: Path, limit: int, keep: str | None = None) -> list[dict]:
    """Delete the longest unused entries until the cache is at most ``limit`` bytes; returns what went.

    An entry that a process is extracting into (its lock is held) stays. Memory maps open elsewhere stay valid.
    """
    held = entries(folder)
    total, gone = sum(e["bytes"] for e in held), []
    for entry in held:
        if total <= limit:
            break
        if entry["name"] == keep:
            continue
        path = Path(folder) / entry["name"]
        try:
            lock = held_file(path / "lock", "in use")
        except UserError:
            continue
        shutil.rmtree(path)
        lock.release()
        total -= entry["bytes"]
        gone.append(entry)
    return gone
