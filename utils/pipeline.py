"""Batches on their way: made by other processes ahead of their use, waited for one batch late."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from utils import distributed
from utils.errors import UserError, first_line

T = TypeVar("T")


def one_late(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The batches as float16 on the CPU, each waited for when the next is on its way: a GPU never stands still."""
    waiting = None
    for batch in batches:
        copy = batch.to("cpu", torch.float16, non_blocking=batch.is_cuda)
        arrived = torch.cuda.current_stream(batch.device).record_event() if batch.is_cuda else None
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copy, arrived
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(copy: torch.Tensor, event: torch.cuda.Event | None) -> torch.Tensor:
    if event is not None:
        event.synchronize()
    return copy


def loaded(make: Callable[..., T], tasks: Sequence[tuple], workers: int) -> Iterator[T]:
    """``make(*task)`` for each task, in order; made ahead of their use by processes, ``workers`` on this machine.

    Args:
        make: picklable, and the same in any process.

    Raises:
        UserError: from ``make``, or a process died.
    """
    workers = min(max(1, workers // distributed.local_size()), len(tasks) // 2)
    own = torch.Generator()  # none is drawn from, but PyTorch's own would be
    loader = DataLoader(_Made(make, tasks), batch_size=None, num_workers=workers, generator=own)
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that reads images died ({first_line(error, 80)}): out of memory, or of shared memory (a "
            "container's --shm-size); use fewer --workers, or give it more"
        ) from None


class _Made(Dataset):
    def __init__(self, make: Callable, tasks: Sequence[tuple]):
        self.make, self.tasks = make, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(*self.tasks[number])
        except UserError as error:  # handed on whole: PyTorch would add a traceback to its words
            return error
