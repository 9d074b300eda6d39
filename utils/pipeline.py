"""Batches on their way: made by a thread ahead of their use, waited for one batch late."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

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


def prefetch(batches: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, made by a thread while the caller works on the one before."""
    done = object()
    failed: list[BaseException] = []
    items: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return items.put(item, timeout=0.1)

    def work() -> None:
        try:
            for item in batches:
                put(item)
                if stop.is_set():
                    return
        except BaseException as error:  # raised again in the caller's thread
            failed.append(error)
        put(done)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not done:
            yield item
        if failed:
            raise failed[0]
    finally:
        stop.set()
        thread.join()
