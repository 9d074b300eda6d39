"""Which images lie below folders; what else lies there is counted, what can't be read is named, and nothing ends it.

What is in a file decides whether it is an image; only a file with an image's usual ending is not opened for that.
Links are followed, circles are not; what begins with a dot is passed over.
"""

import os
import stat
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from data.decode import HEAD, IMAGE_SUFFIXES, RAW_SUFFIXES, format_of
from utils.errors import some

# Folders of no photographs: previews and bins of Synology, QNAP, Windows, Lightroom and Apple Photos. A pattern is of a
# folder's name, or of its parent's and its own.
EXCLUDED = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "lost+found"),
    *("System Volume Information", "*.lrdata", "*.photoslibrary/resources", "*.photoslibrary/database"),
    *("*.photoslibrary/private", "*.photoslibrary/scopes"),
)
MOST_NS = 2**63 - 1  # of a time that a database can hold


@dataclass(frozen=True)
class Unreadable:
    """A file or folder that can't be read now."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """What is in a folder.

    Attributes:
        files: images by name, size and mtime_ns, in the order of names.
        problems: what can't be read.
        others: how many files of each ending, and folders of each name, are passed over.
        whole: all that is in the folder; False where a single file was asked for, or the folder can't be listed.
    """

    folder: str
    files: list[tuple[str, int, int]]
    problems: list[Unreadable] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    whole: bool = True


def is_image(name: str) -> bool:
    """By the ending alone: of what is not opened, such as members of shards."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def holds_image(path: str) -> bool:
    """Whether a file is an image. A camera's RAW file, which begins as a TIFF, is none."""
    ending = os.path.splitext(path)[1].lower()
    if ending in IMAGE_SUFFIXES or ending in RAW_SUFFIXES:
        return ending in IMAGE_SUFFIXES
    with open(path, "rb") as file:
        return format_of(file.read(HEAD)) is not None


def relative(path: str | Path, root: str | Path) -> str:
    """``path`` below ``root``, with "/" between, whichever of them is written how."""
    return Path(os.path.relpath(path, root)).as_posix()


def time_of(state: os.stat_result) -> int:
    """A file's time in nanoseconds, as far as a database can hold it."""
    return max(-MOST_NS, min(state.st_mtime_ns, MOST_NS))


def walk(
    roots: Sequence[str | Path], exclude: Collection[str] = EXCLUDED, outside: Iterable[str | Path] = ()
) -> Iterator[Listing]:
    """Of all folders below the roots, each once, in the order of names. A root may be a single file.

    Args:
        exclude: patterns of folders that are passed over.
        outside: folders that no link may lead to, beside those above the roots.
    """
    seen = {_identity(os.stat(folder)) for folder in outside}
    for root in map(os.path.abspath, roots):
        if not os.path.isdir(root):
            folder, name = os.path.split(root)
            state = os.stat(root)
            yield Listing(folder, [(name, state.st_size, time_of(state))], whole=False)
            continue
        above = {
            _identity(os.stat(folder)) for folder in Path(os.path.realpath(root)).parents
        }  # would lead to all else
        waiting = [root]
        while waiting:
            here, below = _listing(waiting.pop(), exclude, seen, above)
            if here:
                yield here
                waiting += reversed(below)


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _listing(
    folder: str, exclude: Collection[str], seen: set[tuple[int, int]], above: set[tuple[int, int]]
) -> tuple[Listing | None, list[str]]:
    """A folder's listing and the folders in it; (None, []) for one that was met before."""
    try:
        identity = _identity(os.stat(folder))
        if identity in seen or identity in above:
            return None, []
        seen.add(identity)
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        return Listing(folder, [], [Unreadable(folder, f"can't be read ({error.strerror})")], whole=False), []
    here, below = Listing(folder, []), []
    for entry in entries:
        try:
            state = entry.stat()
            if stat.S_ISDIR(state.st_mode):
                both = f"{os.path.basename(folder)}/{entry.name}"
                if any(fnmatch(entry.name, pattern) or fnmatch(both, pattern) for pattern in exclude):
                    here.others[f"{entry.name}/"] += 1
                else:
                    below.append(entry.path)
            elif stat.S_ISREG(state.st_mode) and holds_image(entry.path):
                here.files.append((entry.name, state.st_size, time_of(state)))
            elif stat.S_ISREG(state.st_mode) or not is_image(entry.name):
                here.others[os.path.splitext(entry.name)[1].lower() or "(no ending)"] += 1
            else:
                here.problems.append(Unreadable(entry.path, "is no file"))
        except OSError as error:
            gone = (
                "a link to nothing" if entry.is_symlink() and isinstance(error, FileNotFoundError) else error.strerror
            )
            here.problems.append(Unreadable(entry.path, f"can't be read ({gone})"))
    return here, below


@dataclass
class Found:
    """Images below some folders, and what else there was.

    Attributes:
        paths: of the images, in the order of names, folder by folder.
    """

    paths: list[str] = field(default_factory=list)
    problems: list[Unreadable] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """A line each of what is passed over."""
        lines = [f"passed over: {counted(self.others)}"] if self.others else []
        return lines + ([f"{len(self.problems)} can't be read: {some(self.problems)}"] if self.problems else [])


def counted(others: Counter[str]) -> str:
    """ "12 .mov, 3 .xmp", the most frequent first."""
    return some([f"{count:,} {ending}" for ending, count in others.most_common()], 12)


def images_below(roots: Sequence[str | Path], outside: Iterable[str | Path] = ()) -> Found:
    """All images below folders, and what else is there; ``outside``: see ``walk``."""
    found = Found()
    for here in walk(roots, outside=outside):
        found.paths += [os.path.join(here.folder, name) for name, *_ in here.files]
        found.problems += here.problems
        found.others += here.others
    return found


def subfolders(folder: Path) -> list[str]:
    """Names of the folders right in a folder, sorted, less what is hidden or excluded."""
    names = (e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    return sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in EXCLUDED))


def ends_here(file: BinaryIO, offset: int) -> bool:
    """Whether from ``offset`` on there is tar's end mark, two blocks of zeros, and nothing else.

    tarfile stops at any bad head as if it were the end.
    """
    file.seek(offset)
    zeros = 0
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            return False
        zeros += len(block)
    return zeros >= 2 * tarfile.BLOCKSIZE
