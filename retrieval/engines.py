"""What --index names: a file, or a collection on a Milvus server; both have the same methods and results."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.index import Index
from utils.errors import UserError

if TYPE_CHECKING:
    from retrieval.milvus import MilvusIndex

SCHEMES = ("milvus://", "milvus+tls://")


def open_index(name: str, write: bool = False, nprobe: int | None = None) -> "Index | MilvusIndex":
    """Open an index.

    Args:
        name: a file, or milvus://HOST:PORT/NAME.
        write: also change it: it is made where there is none.
        nprobe: search approximately, in so many of the inverted lists; None: exactly.

    Raises:
        UserError: see ``Index`` and ``MilvusIndex``; pymilvus is not installed; a file that is to be searched
            approximately.
    """
    if not name.startswith(SCHEMES):
        if nprobe is not None:
            raise UserError(f"{name}: an index in a file is always searched exactly; leave --approximate out")
        return Index(Path(name), write)
    try:
        from retrieval.milvus import MilvusIndex  # seldom needed, and takes a second
    except ImportError:
        raise UserError(f"{name}: pymilvus is not installed; pip install -r requirements-scale.txt") from None
    return MilvusIndex(name, write, nprobe)
