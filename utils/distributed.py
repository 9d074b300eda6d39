"""Several processes, one result: ``torchrun --nproc_per_node N train_teacher.py ...``.

Backbones are frozen, so a batch's features do not depend on any step taken: the ranks pass batches through them in
turn, exchange the features, and then every rank takes every step. The search of a database is shared the same way.
What is exchanged is bound for the disk or for a small head, so gloo carries it, on GPU machines too. Results have the
same bits for any number of processes. Rank 0 alone writes; run folders and the cache must be on storage that all see.

Without torchrun there is one process and every function here is trivial.
"""

import atexit
import contextlib
import datetime
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from tqdm import tqdm

from utils.errors import UserError, first_line

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)  # another run may be extracting what this one waits for; torchrun sees deaths


def start() -> None:
    """Join the other processes, if torchrun started some; all but rank 0 fall silent."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return
    numbers, addresses = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("MASTER_ADDR", "MASTER_PORT")
    lacking = [name for name in numbers if not os.environ.get(name, "").isdigit()]
    lacking += [name for name in addresses if name not in os.environ]
    if lacking:
        raise UserError(
            f"WORLD_SIZE is {world} and {', '.join(lacking)} missing or no number: start several processes by "
            "torchrun, or unset WORLD_SIZE"
        )
    dist.init_process_group("gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    if not is_first():
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)  # type: ignore[assignment, method-assign]
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (open for good)


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine: which GPU it takes."""
    return int(os.environ["LOCAL_RANK"]) if size() > 1 else 0


def local_size() -> int:
    """How many processes share this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if size() > 1 else 1


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Raises UserError where another process has ended, which gloo tells by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another process has ended, so rank {rank()} ends too; what that one said is the cause "
            f"({first_line(error, 80)})"
        ) from None


def gather(value: T) -> list[T]:
    """Every rank's value, by rank."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with _heard():
        dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Rank 0's value."""
    if size() == 1:
        return value
    box = [value]
    with _heard():
        dist.broadcast_object_list(box)
    return box[0]


def my_turns() -> slice:
    """Which items of a sequence this rank makes, when the ranks take turns."""
    return slice(rank(), None, size())


def in_turn(mine: Iterator[T]) -> Iterator[T]:
    """All items of a sequence, in order, of which each rank makes those of ``my_turns``.

    Raises:
        UserError: what one rank's iterator raised, on every rank, so that none waits for ever.
    """
    if size() == 1:
        yield from mine
        return
    while True:
        own: T | UserError | None
        try:
            own = next(mine, None)
        except UserError as error:
            own = error
        for item in gather(own):
            if isinstance(item, UserError):
                raise item
            if item is None:  # turns are dealt in order: nobody behind has one left
                return
            yield item


def my_shard(n: int) -> slice:
    """This rank's part of n rows: contiguous, in the order of ranks."""
    return slice(n * rank() // size(), n * (rank() + 1) // size())


def run_folder(folder: Path) -> Path:
    """Where this process writes: the run's folder on rank 0, a folder that goes away on the others."""
    if is_first():
        return Path(folder)
    aside = Path(tempfile.mkdtemp(prefix="brcd_rank"))
    atexit.register(shutil.rmtree, aside, ignore_errors=True)
    return aside
