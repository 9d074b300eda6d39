"""Features of images under a frozen backbone, kept on disk, opened as a memory map."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import distributed
from utils.errors import UserError
from utils.files import file_lock, write_json, written_aside

CHECKPOINT_SECONDS = 10  # work that a kill may cost an extraction
DTYPE = np.float16


class FeatureCache:
    """Arrays of features on disk, each named by a hash of all the facts that determine it.

    An entry grows row by row and counts as complete up to what ``rows.json`` says, which is written after the rows
    are on the disk; so a half-written entry is never read, and an interrupted extraction goes on where it was.
    More rows of the same facts (more views of a bank) are appended to the entry that has fewer.
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
            title: of the progress bar.
        """
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        entry = self.folder / name
        entry.mkdir(parents=True, exist_ok=True)
        data = entry / "features.bin"
        if not all(distributed.gather(self._complete(entry, dim) >= rows)):
            if distributed.is_first():
                with file_lock(entry / "lock"):  # of several runs one extracts, the others wait
                    start = distributed.from_first(self._complete(entry, dim))
                    if start < rows:
                        write_json(entry / "facts.json", facts)
                        self._append(data, entry / "rows.json", start, rows, dim, extract, title)
            elif (start := distributed.from_first(None)) < rows:
                for _ in extract(start):  # rank 0 writes
                    pass
            distributed.from_first(None)  # all wait until rank 0 has written
            if min(distributed.gather(self._complete(entry, dim))) < rows:
                raise UserError(f"{entry}: not every process sees it; put --cache-dir on storage that all share")
        os.utime(entry)
        if self.limit is not None and distributed.is_first():
            prune(self.folder, self.limit, keep=name)
        return np.memmap(data, dtype=DTYPE, mode="r", shape=(rows, dim))

    @staticmethod
    def _complete(entry: Path, dim: int) -> int:
        try:
            rows = json.loads((entry / "rows.json").read_text())
            there = (entry / "features.bin").stat().st_size // (dim * DTYPE().itemsize)
            return min(int(rows), there)
        except (FileNotFoundError, ValueError):
            return 0

    @staticmethod
    def _append(data: Path, marker: Path, start: int, rows: int, dim: int, extract, title: str) -> None:
        def mark(file, count: int) -> None:
            file.flush()
            os.fsync(file.fileno())
            with written_aside(marker, "w") as out:
                out.write(str(count))

        with open(data, "ab") as file, tqdm(total=rows, initial=start, desc=title, unit="img") as bar:
            file.truncate(start * dim * DTYPE().itemsize)
            done, last = start, time.monotonic()
            for features in extract(start):
                if not torch.isfinite(features).all():
                    raise UserError(
                        f"{title}: the backbone gave NaN or infinite features; check its weights and "
                        "--precision float32"
                    )
                file.write(features.cpu().numpy().astype(DTYPE).tobytes())
                done += len(features)
                bar.update(len(features))
                if time.monotonic() - last > CHECKPOINT_SECONDS:
                    mark(file, done)
                    last = time.monotonic()
            assert done == rows, f"{title}: {done} rows came, {rows} were asked for"
            mark(file, done)


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
                "facts": json.loads(facts.read_text()),
            }
        )
    return sorted(listed, key=lambda e: e["used"])


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
        with open(path / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path)
        total -= entry["bytes"]
        gone.append(entry)
    return gone
