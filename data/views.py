"""Batches of pixels for the backbones, and pairs of views for training.

The random views of a data set are numbered: view v of every image is drawn from a generator named by v alone. A bank
of N views is views 0..N-1, kept as features; fresh views are 2e and 2e+1 in epoch e. So a larger bank begins with
the smaller one, and a resumed run meets the views that it would have met.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch

from data.dataset import HashingData
from data.transforms import ViewParams, crop_view, eval_transform, sample_views, views_of_crops, views_of_stack
from models.backbones import CROP_PCT
from utils import distributed
from utils.devices import to_device
from utils.errors import UserError
from utils.machine import cores
from utils.pipeline import loaded
from utils.seeds import generator

CPU = torch.device("cpu")
Engine = Callable[[torch.Tensor], torch.Tensor]
BankArray = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Share:
    """Which of the batches are made: those from row ``start`` on, of them ``turns``; by ``workers`` processes."""

    start: int = 0
    turns: slice = field(default_factory=lambda: slice(None))
    workers: int = field(default_factory=cores)


@dataclass(frozen=True)
class Bank:
    """Views 0..n_views-1 of every training image under ``seed``, rotated by so many quarters."""

    n_views: int
    seed: int
    quarters: int = 0


def eval_batches(
    data: HashingData, rows: np.ndarray, size: int, batch_size: int, part: Share = Share(), crop_pct: float = CROP_PCT
) -> Iterator[torch.Tensor]:
    """Images ``rows`` as evaluation sees them, uint8 [B, 3, size, size]."""
    firsts = range(part.start, len(rows), batch_size)[part.turns]
    make = partial(_evaluated, data, size, crop_pct)
    yield from loaded(make, [(rows[f : f + batch_size],) for f in firsts], part.workers)


def _evaluated(data: HashingData, size: int, crop_pct: float, rows: np.ndarray) -> torch.Tensor:
    if data.source.stack is not None:
        return eval_transform(data.source.stack[rows], size, data.crop, crop_pct)
    return torch.stack([eval_transform(data.source[i], size, data.crop, crop_pct) for i in rows])


def view_params(data: HashingData, view: int, seed: int) -> ViewParams:
    """The random numbers of view number ``view`` of every training image."""
    return _drawn(len(data.train), data.flip, view, seed)


@lru_cache(maxsize=2)  # both views of an epoch
def _drawn(n: int, flip: bool, view: int, seed: int) -> ViewParams:
    return sample_views(n, flip, generator("view", seed, view))


@dataclass(frozen=True)
class ViewMaker:
    """Views of training images in two halves: ``crops`` where files are read, ``finish`` where the backbone is.

    Without a GPU both are the reading processes' work.
    """

    data: HashingData
    seed: int
    size: int
    device: torch.device

    @property
    def _stacked(self) -> bool:
        """Whether images are all of one size and enlarged: then cropping them is part of ``finish``."""
        stack = self.data.source.stack
        return stack is not None and max(stack.shape[2:]) <= self.size

    def crops(self, view: int, rows: torch.Tensor) -> torch.Tensor:
        """One view of training images ``rows`` [B]: uint8 [B, 3, H, W], on its way."""
        index, source = self.data.train[rows.numpy()], self.data.source
        if source.stack is not None and self._stacked:
            images = source.stack[index]
        else:
            params = view_params(self.data, view, self.seed)[rows]
            images = torch.stack([crop_view(source[i], params[b : b + 1], self.size) for b, i in enumerate(index)])
        return self._finish(images, view, rows) if self.device.type == "cpu" else images

    def finish(self, images: torch.Tensor, view: int, rows: torch.Tensor) -> torch.Tensor:
        """The views themselves, uint8 [B, 3, size, size] on the device."""
        return images if self.device.type == "cpu" else self._finish(to_device(images, self.device), view, rows)

    def _finish(self, images: torch.Tensor, view: int, rows: torch.Tensor) -> torch.Tensor:
        params = view_params(self.data, view, self.seed)[rows]
        return views_of_stack(images, params, self.size) if self._stacked else views_of_crops(images, params)


def _pair_of_crops(makers: list[ViewMaker], views: tuple[int, int], rows: torch.Tensor) -> list[list[torch.Tensor]]:
    """For each maker the crops of both views."""
    return [[maker.crops(view, rows) for view in views] for maker in makers]


def rotate(images: torch.Tensor, quarters: int) -> torch.Tensor:
    """Rotate [B, 3, S, S] by quarter turns."""
    return torch.rot90(images, quarters, dims=(2, 3))


def view_batches(
    data: HashingData, bank: Bank, size: int, batch_size: int, device: torch.device, part: Share = Share()
) -> Iterator[torch.Tensor]:
    """A bank's views, uint8 [B, 3, size, size], view by view: row = view * n + image."""
    n, maker = len(data.train), ViewMaker(data, bank.seed, size, device)
    tasks = [
        (view, rows)
        for view in range(part.start // n, bank.n_views)
        for rows in torch.arange(part.start % n if view == part.start // n else 0, n).split(batch_size)
    ][part.turns]
    for task, images in zip(tasks, loaded(maker.crops, tasks, part.workers), strict=True):
        yield rotate(maker.finish(images, *task), bank.quarters)


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
        workers: int,
        rotated: bool = False,
    ):
        self.data, self.networks, self.seed, self.device = data, networks, seed, device
        self.workers, self.rotated = workers, rotated

    def _batches(self, epoch: int, batch_size: int) -> Iterator[ViewBatch]:
        order = torch.randperm(len(self.data.train), generator=generator("order", self.seed, epoch))
        makers = [
            ViewMaker(self.data, self.seed, size, self.device) for size in sorted({size for _, size in self.networks})
        ]
        views = (2 * epoch, 2 * epoch + 1)
        tasks = [(makers, views, index) for index in order.split(batch_size)[distributed.my_turns()]]
        for (*_, index), crops in zip(tasks, loaded(_pair_of_crops, tasks, self.workers), strict=True):
            pixels = {
                maker.size: torch.cat([maker.finish(c, v, index) for c, v in zip(pair, views, strict=True)])
                for maker, pair in zip(makers, crops, strict=True)
            }  # for each size the 2B views
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
