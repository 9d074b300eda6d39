"""Batches of pixels for the backbones, and pairs of views for training.

The random views of a data set are numbered: view v of every image is drawn from a generator named by v alone. A bank
of N views is views 0..N-1, kept as features; fresh views are 2e and 2e+1 in epoch e. So a larger bank begins with
the smaller one, and a resumed run meets the views that it would have met.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from data.dataset import HashingData
from data.transforms import ViewParams, crop_view, eval_transform, sample_views, views_of_crops, views_of_stack
from utils import distributed
from utils.devices import to_device
from utils.errors import UserError
from utils.pipeline import prefetch
from utils.seeds import generator

CPU = torch.device("cpu")
Engine = Callable[[torch.Tensor], torch.Tensor]
BankArray = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Share:
    """Which of the batches are made: those from row ``start`` on, of them ``turns``; by ``workers`` threads."""

    start: int = 0
    turns: slice = field(default_factory=lambda: slice(None))
    workers: int = 4


@dataclass(frozen=True)
class Bank:
    """Views 0..n_views-1 of every training image under ``seed``, rotated by so many quarters."""

    n_views: int
    seed: int
    quarters: int = 0


def eval_batches(
    data: HashingData, rows: np.ndarray, size: int, batch_size: int, part: Share = Share()
) -> Iterator[torch.Tensor]:
    """Images ``rows`` as evaluation sees them, uint8 [B, 3, size, size]."""
    firsts = range(part.start, len(rows), batch_size)[part.turns]
    if data.source.stack is not None:
        for first in firsts:
            yield eval_transform(data.source.stack[rows[first : first + batch_size]], size, data.crop)
        return
    with ThreadPoolExecutor(part.workers) as pool:
        for first in firsts:
            batch = rows[first : first + batch_size]
            yield torch.stack(list(pool.map(lambda i: eval_transform(data.source[i], size, data.crop), batch)))


def view_params(data: HashingData, view: int, seed: int) -> ViewParams:
    """The random numbers of view number ``view`` of every training image."""
    return sample_views(len(data.train), data.flip, generator("view", seed, view))


def view_pixels(
    data: HashingData, rows: torch.Tensor, params: ViewParams, size: int, device: torch.device, pool: ThreadPoolExecutor
) -> torch.Tensor:
    """One view of each training image in ``rows`` [B]: uint8 [B, 3, size, size] on ``device``; ``params``: B rows."""
    index = data.train[rows.numpy()]
    stack = data.source.stack
    if stack is not None and max(stack.shape[2:]) <= size:
        return views_of_stack(to_device(stack[index], device), params, size)
    one = lambda b: crop_view(data.source[index[b]], params[b : b + 1], size)  # noqa: E731
    crops = torch.stack(list(pool.map(one, range(len(index)))))
    return views_of_crops(to_device(crops, device), params)


def rotate(images: torch.Tensor, quarters: int) -> torch.Tensor:
    """Rotate [B, 3, S, S] by quarter turns."""
    return torch.rot90(images, quarters, dims=(2, 3))


def view_batches(
    data: HashingData, bank: Bank, size: int, batch_size: int, device: torch.device, part: Share = Share()
) -> Iterator[torch.Tensor]:
    """A bank's views, uint8 [B, 3, size, size], view by view: row = view * n + image."""
    n = len(data.train)

    def batches() -> Iterator[tuple[torch.Tensor, ViewParams]]:
        for view in range(part.start // n, bank.n_views):
            params = view_params(data, view, bank.seed)
            for rows in torch.arange(part.start % n if view == part.start // n else 0, n).split(batch_size):
                yield rows, params

    with ThreadPoolExecutor(part.workers) as pool:
        for rows, params in islice(batches(), part.turns.start, part.turns.stop, part.turns.step):
            yield rotate(view_pixels(data, rows, params[rows], size, device, pool), bank.quarters)


@dataclass(frozen=True)
class ViewBatch:
    """What the networks make of B images' views, a list entry for each network (student, teacher).

    Attributes:
        index: [B] positions among the training images.
        pairs: float32 [2, B, D] of views i and j.
        rotated: float32 [4, B, D] of one view and its three rotations, if asked for.
    """

    index: torch.Tensor
    pairs: list[torch.Tensor]
    rotated: list[torch.Tensor]


class BankedViews:
    """Pairs of different views out of banks of N.

    Args:
        banks: arrays or memory maps [N, n, D], one for each network that looks at the views.
        seed: of the run: the images' order and which two views each gets, every epoch anew.
        rotated: for each network its banks [R, n, D] at 0, 1, 2 and 3 quarter turns; R may be smaller than N.
        device: where batches are wanted. A GPU holds the banks if half of its free memory does, and then a step copies
            nothing; else rows are sent as they are needed.
    """

    def __init__(
        self,
        banks: Sequence[BankArray],
        seed: int,
        rotated: Sequence[Sequence[BankArray]] = (),
        device: torch.device = CPU,
    ):
        self.seed, self.device, self.resident = seed, device, False
        if device.type == "cuda":
            everything = [*banks, *(bank for four in rotated for bank in four)]
            size = sum(bank.nbytes for bank in everything)
            self.resident = size <= torch.cuda.mem_get_info(device)[0] / 2
        hold = (lambda bank: torch.as_tensor(np.array(bank)).to(device)) if self.resident else (lambda bank: bank)
        self.banks, self.rotated = [hold(b) for b in banks], [[hold(b) for b in four] for four in rotated]
        self.n_views, self.n = banks[0].shape[0], banks[0].shape[1]
        if self.n_views < 2:
            raise UserError(
                f"--views {self.n_views}: a pair needs at least 2 views an image; 0 makes new ones each epoch"
            )

    def epoch(self, epoch: int, batch_size: int) -> Iterator[ViewBatch]:
        order = torch.randperm(self.n, generator=generator("order", self.seed, epoch))
        draw = generator("pairs", self.seed, epoch)
        first = torch.randint(self.n_views, (self.n,), generator=draw)
        second = (first + torch.randint(1, self.n_views, (self.n,), generator=draw)) % self.n_views
        views = torch.stack([first, second])  # [2, n] by image
        if self.rotated:
            which = torch.randint(len(self.rotated[0][-1]), (self.n,), generator=generator("turned", self.seed, epoch))
        sequence = torch.stack([order, *views[:, order], which[order]] if self.rotated else [order, *views[:, order]])
        if self.resident:
            sequence = to_device(sequence, self.device)  # the one copy of an epoch
        for index, *columns in (part.unbind() for part in sequence.split(batch_size, dim=1)):
            pair = torch.stack(columns[:2])  # [2, B]
            yield ViewBatch(
                index,
                [self._rows(bank, pair, index) for bank in self.banks],
                [torch.stack([self._rows(bank, columns[2], index) for bank in four]) for four in self.rotated],
            )

    def _rows(self, bank: BankArray, views: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """[..., D] of ``bank`` [N, n, D], on the device."""
        rows = bank[views, index]
        return rows.float() if self.resident else to_device(torch.as_tensor(rows), self.device).float()


class FreshViews:
    """Two new views of every image each epoch, as in the paper: every network looks at each view once.

    Args:
        networks: (function from uint8 views [B, 3, S, S] to rows [B, D], its S) for each network; a frozen backbone,
            or one with its head.
        rotated: also rotate view i by 1, 2 and 3 quarter turns.
    """

    def __init__(
        self,
        data: HashingData,
        networks: list[tuple[Engine, int]],
        seed: int,
        device: torch.device,
        workers: int = 4,
        rotated: bool = False,
    ):
        self.data, self.networks, self.seed, self.device = data, networks, seed, device
        self.workers, self.rotated = workers, rotated

    def _pixels(self, epoch: int, batch_size: int) -> Iterator[tuple[torch.Tensor, dict[int, torch.Tensor]]]:
        """(index [B], for each size the 2B views)."""
        params = [view_params(self.data, 2 * epoch + half, self.seed) for half in (0, 1)]
        order = torch.randperm(len(self.data.train), generator=generator("order", self.seed, epoch))
        sizes = {size for _, size in self.networks}
        with ThreadPoolExecutor(self.workers) as pool:
            for index in order.split(batch_size)[distributed.my_turns()]:
                yield (
                    index,
                    {
                        size: torch.cat(
                            [view_pixels(self.data, index, p[index], size, self.device, pool) for p in params]
                        )
                        for size in sizes
                    },
                )

    def _batches(self, epoch: int, batch_size: int) -> Iterator[ViewBatch]:
        for index, pixels in prefetch(self._pixels(epoch, batch_size)):
            pairs = [network(pixels[s]).float().unflatten(0, (2, len(index))) for network, s in self.networks]
            rotated = []
            if self.rotated:
                for (network, s), pair in zip(self.networks, pairs, strict=True):
                    plain = pixels[s][: len(index)]
                    rotated.append(torch.stack([pair[0], *(network(rotate(plain, q)).float() for q in (1, 2, 3))]))
            if distributed.size() > 1:  # other processes use other GPUs
                pairs, rotated = [p.cpu() for p in pairs], [t.cpu() for t in rotated]
            yield ViewBatch(index, pairs, rotated)

    def epoch(self, epoch: int, batch_size: int) -> Iterator[ViewBatch]:
        yield from distributed.in_turn(self._batches(epoch, batch_size))
