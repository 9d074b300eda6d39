"""Adding pictures to an index: which files are new or changed, and their codes, by threads that decode and hash.

A file of the same size and time is taken as it was; one of another time is read, and hashed anew only if its bytes are
new too. Bytes that are in the index already, a file that was moved or copied, are not decoded. Files that are no
readable pictures are remembered and not tried again as long as they stay as they are.
"""

import calendar
import contextlib
import hashlib
import io
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.decode import READER, opened, pixels_of, shown_anew
from data.tree import EXCLUDED, Unreadable, holds_image, time_of, walk
from search.index import Broken, Index, Row, wall
from utils.errors import UserError, some
from utils.machine import cores

THUMBNAIL = 320  # pixels of the longer side, at most
QUALITY = 80  # of its JPEG
BATCH, SECONDS = 512, 2.0  # pictures, or time, a transaction: what a kill may cost
AHEAD = 16  # pictures a thread that may wait for the one before them
SAMPLE = 100  # files that a check reads
MOST_GONE, NAMED = 0.1, 3  # share of the pictures that --prune forgets unasked; folders that are named
FORGETTING = "if it is gone for good, forget its pictures: python -m search remove --index INDEX"
EXIF, TAKEN, WRITTEN = 0x8769, 0x9003, 0x0132  # tags


class Model(Protocol):
    """What hashes pictures: see ``models.exported.Exported``."""

    card: dict
    folder: Path

    def code(self, pixels: np.ndarray) -> np.ndarray: ...


@dataclass
class Report:
    """What an ``add`` did: numbers of pictures, and a line about each file that could not be read.

    Attributes:
        touched: of another time and the same bytes; gone: known, and no longer there; forgotten: gone, and removed;
        still_broken: known to be broken, and unchanged; found: pictures by the folder that was named; others: files
        that are no images, by their endings.
    """

    added: int = 0
    unchanged: int = 0
    touched: int = 0
    gone: int = 0
    forgotten: int = 0
    still_broken: int = 0
    broken: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    found: dict[Path, int] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class File:
    """A file to be looked at; known: the id of the picture at this path."""

    path: str
    known: int | None


@dataclass(frozen=True)
class Touched:
    """A picture whose file has another time and the same bytes."""

    id: int
    size: int
    mtime_ns: int


def add(
    index: Index,
    model: Model,
    roots: Sequence[Path],
    prune: bool = False,
    threads: int | None = None,
    yes: bool = False,
    exclude: Collection[str] = EXCLUDED,
) -> Report:
    """Add what is new or changed below ``roots``, which are folders or single files.

    Each transaction is whole; one that is killed loses what it had not yet committed, and running it again goes on.
    Ids follow the order of names, whatever the number of threads.

    Args:
        prune: forget pictures that are gone.
        threads: that decode and hash, each with one picture at a time (default: the cores).
        yes: also if many are gone, or all of a folder: a disk may be away.
        exclude: patterns of folders that are passed over.

    Raises:
        UserError: no such folder; another model than that of the pictures there; ``prune`` without ``yes`` where much
            is gone.
    """
    roots = checked(roots)
    index.set_card(model.card, os.path.abspath(model.folder))
    report, todo, gone = compare(index, roots, exclude)
    ids = [one for one in gone if isinstance(one, int)]
    if prune:
        if not yes:
            refuse_much(index, roots, report, ids)
        report.forgotten = index.remove(gone)
    else:
        report.gone = len(ids)
    index.note("passed over", dict(report.others.most_common()))
    index.note("excluded", {"patterns": list(exclude)})
    threads = threads or cores()
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(todo), desc="adding", unit="img", disable=not todo) as bar:
        for batch in batches(in_order(pool, lambda file: look(index, model, file), todo, threads * AHEAD)):
            keep(index, batch, report)
            bar.update(len(batch))
    return report


def refuse_much(index: Index, roots: Sequence[Path], report: Report, gone: list[int]) -> None:
    """UserError where these pictures are many: a tenth of those below the roots, or all of a folder."""
    by_folder = Counter(os.path.dirname(record.path) for record in index.records(gone))
    emptied = [folder for folder, count in by_folder.items() if count > 1 and count == len(index.known(folder))]
    known = report.unchanged + len(gone)
    if emptied or len(gone) > MOST_GONE * known:
        where = some([f"{count:,} in {folder}" for folder, count in by_folder.most_common()], NAMED)
        raise UserError(
            f"--prune would forget {len(gone):,} of {known:,} pictures: {where}. Is a disk away, or has the library "
            "moved (search move OLD NEW)? If they are gone for good, add --yes"
        )


def _is_below(path: str, root: Path | str) -> bool:
    return path == os.fspath(root) or path.startswith(os.fspath(root).rstrip("/") + "/")


def checked(roots: Sequence[Path]) -> list[Path]:
    """Absolute paths. UserError: one that is neither a folder nor a picture."""
    roots = [Path(os.path.realpath(root)) for root in roots]  # by one name, whatever links lead there
    for root in roots:
        if not root.exists():
            raise UserError(f"{root}: no such folder (not mounted?); {FORGETTING} {root}")
        if not root.is_dir() and not (root.is_file() and holds_image(os.fspath(root))):
            raise UserError(f"{root}: neither a folder nor a picture")
    return roots


# Which files


def compare(
    index: Index, roots: Sequence[Path], exclude: Collection[str]
) -> tuple[Report, list[File], list[int | str]]:
    """(report so far, files to look at, what is gone: ids of pictures, paths of broken files)."""
    report, todo, gone = Report(found=dict.fromkeys(roots, 0)), [], list[int | str]()
    broken = {file.path: (file.size, file.mtime_ns, file.reader) for file in index.broken()}
    looked, closed, found = set(), [], set()
    with tqdm(desc="looking at files", unit="file", leave=False) as bar:
        for here in walk(roots, exclude):
            report.others += here.others
            known = index.known(here.folder)
            report.unreadable += map(str, here.problems)
            for name, *state in here.files:
                path = os.path.join(here.folder, name)
                picture, *before = known.get(name, (None,))
                if path in found:  # also named by itself
                    continue
                found.add(path)
                if before == state:
                    report.unchanged += 1
                elif broken.get(path) == (*state, READER):
                    report.still_broken += 1
                else:
                    todo.append(File(path, picture))
            bar.update(len(here.files))
            for root in roots:
                report.found[root] += len(here.files) * _is_below(here.folder, root)
            if here.whole:
                looked.add(here.folder)
                closed += [one.path for one in here.problems]  # a folder that can't be looked into, or a picture
                names = {name for name, *_ in here.files} | {os.path.basename(one.path) for one in here.problems}
                gone += [picture for name, (picture, *_) in known.items() if name not in names]
            elif here.problems:
                closed.append(here.folder)
    folders = [root for root in roots if root.is_dir()]

    def lost(path: str) -> bool:
        """Whether a folder or file that was not met would have been, were it there."""
        return (
            any(_is_below(path, root) for root in folders)
            and not any(_is_below(path, c) for c in closed)
            and not any(map(os.path.isfile, [Path(path), *Path(path).parents]))  # in a shard or table
        )

    for folder in filter(lost, set(index.folders()) - looked):
        gone += [picture for picture, *_ in index.known(folder).values()]
    gone += [path for path in broken if path not in found and lost(path)]
    return report, todo, gone


# Their codes


def look(index: Index, model: Model, file: File) -> Row | Touched | Broken | Unreadable:
    """Read a file and, unless its bytes are known, decode and hash it. Called by many threads."""
    try:
        with open(file.path, "rb") as opened:
            state = os.fstat(opened.fileno())
            content = opened.read()
    except OSError as error:
        return Unreadable(file.path, f"can't be read ({error.strerror})")
    digest = hashlib.sha256(content).digest()
    if file.known is not None and index.record(file.known).digest == digest.hex() and not shown_anew(content):
        return Touched(file.known, state.st_size, time_of(state))
    known = index.same(digest)
    if known is None or not known[1] or shown_anew(content):  # added without thumbnails, or maybe by older pixels
        try:
            pixels = pixels_of(io.BytesIO(content), file.path, upright=True)
            known = model.code(pixels), thumbnail_of(pixels)
        except UserError as error:
            reason = str(error).removeprefix(f"{file.path}: ")
            return Broken(file.path, state.st_size, time_of(state), reason, READER)
    return Row(file.path, state.st_size, time_of(state), digest, *known, taken_at(content) or wall(state.st_mtime))


def thumbnail_of(pixels: np.ndarray, most: int = THUMBNAIL) -> bytes:
    """A JPEG of at most so many pixels a side, smaller by a whole number: a fifth of the time of any other."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image = image.reduce(-(-max(image.size) // most))
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def taken_at(content: bytes) -> float | None:
    """When a picture was taken by its EXIF data: what the clock showed there, in seconds since 1970 on that clock."""
    with contextlib.suppress(Exception), opened(content) as image:  # EXIF may be anything
        exif = image.getexif()
        for text in filter(None, (exif.get_ifd(EXIF).get(TAKEN), exif.get(WRITTEN))):
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                return calendar.timegm(time.strptime(text, "%Y:%m:%d %H:%M:%S"))
    return None


def in_order(pool: ThreadPoolExecutor, work: Callable, items: Iterable, ahead: int) -> Iterator:
    """What ``work`` makes of items, in their order; at most ``ahead`` are begun and not yet taken."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def batches(results: Iterable) -> Iterator[list]:
    """Results by ``BATCH`` or by what came in ``SECONDS``."""
    batch, since = [], time.monotonic()
    for result in results:
        batch.append(result)
        if len(batch) >= BATCH or time.monotonic() - since > SECONDS:
            yield batch
            batch, since = [], time.monotonic()
    if batch:
        yield batch


def keep(index: Index, batch: list, report: Report) -> None:
    """Write what came of some files, in one transaction, and count it."""

    def of(kind: type) -> list:
        return [one for one in batch if isinstance(one, kind)]

    with index.transaction():
        index.add(of(Row))
        index.touch((one.id, one.size, one.mtime_ns) for one in of(Touched))
        index.note_broken(of(Broken))
    report.added += len(of(Row))
    report.touched += len(of(Touched))
    report.broken += [f"{one.path}: {one.reason}" for one in of(Broken)]
    report.unreadable += map(str, of(Unreadable))


def file_faults(index: Index, every: bool = False) -> list[str]:
    """Pictures whose files are gone or have changed; the bytes of a sample are hashed, or of ``every`` file.

    Says how many have no file of their own: members of shards, rows of tables, what URLs name.
    """
    ids, _ = index.codes()
    sample = ids if every else np.random.RandomState(0).choice(ids, min(len(ids), SAMPLE), replace=False)
    gone, changed, other, elsewhere = [], [], [], 0
    hashed = set(sample.tolist())
    for start in tqdm(range(0, len(ids), 1024), "comparing files", unit_scale=1024, unit="img", leave=False):
        for record in index.records(ids[start : start + 1024].tolist()):
            if not record.mtime_ns and not os.path.isfile(record.path):
                elsewhere += 1
                continue
            try:
                state = os.stat(record.path)
                if (state.st_size, time_of(state)) != (record.size, record.mtime_ns):
                    changed.append(record.path)
                elif record.id in hashed and _digest(record.path) != record.digest:
                    other.append(record.path)
            except OSError:
                gone.append(record.path)
    if elsewhere:
        print(f"{elsewhere:,} pictures are not looked at: they came from shards, tables or URLs, not from files")
    return [
        f"{len(paths):,} {what}: {some(paths)}"
        for paths, what in (
            (gone, "files are gone or can't be read; python -m search add --prune forgets those gone"),
            (changed, "files have another size or time than when they were added; `search add` looks at them again"),
            (other, "files have other bytes than when they were added, at the same size and time; touch and add them"),
        )
        if paths
    ]


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
