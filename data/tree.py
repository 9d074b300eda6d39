"""Which images lie below a folder; links are followed, circles are not."""

import os
import tarfile
from pathlib import Path
from typing import BinaryIO, NoReturn

from data.decode import IMAGE_SUFFIXES
from utils.errors import UserError


def listing(folder: Path | str, hidden: bool = True) -> tuple[list[str], list[str]]:
    """(folders, files) in a folder, sorted, links to folders among the folders; images that are no files are refused.

    Args:
        hidden: what begins with a dot (.thumbnails, ._copies) too.

    Raises:
        UserError: it can't be read, or holds a link to nothing.
    """

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: can't be read ({error.strerror}); change its permissions or remove it")

    _, *entries = next(os.walk(folder, onerror=refuse))
    folders, files = ([name for name in names if hidden or not name.startswith(".")] for names in entries)
    for name in files:
        path = os.path.join(folder, name)
        if not os.path.isfile(path) and (os.path.islink(path) or is_image(name)):
            raise UserError(f"{path}: a link to nothing, or no file that can be read; mend or remove it")
    return sorted(folders), sorted(files)


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def images_below(folder: str, seen: set[str]) -> list[str]:
    """Paths of the images below a folder, less what is hidden.

    Links to folders are followed; a real folder in ``seen`` is not met again.
    """
    folders, files = listing(folder, hidden=False)
    found = [os.path.join(folder, name) for name in files if is_image(name)]
    for path in (os.path.join(folder, name) for name in folders):
        if (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            found += images_below(path, seen)
    return found


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
