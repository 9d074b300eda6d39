"""Batches of pixels for the backbones, and pairs of views for training.

The random views of a data set are numbered: view v of every image is drawn from a generator named by v alone. A bank
of N views is views 0..N-1, kept as features; fresh views are 2e and 2e+1 in epoch e. So a larger bank begins with
the smaller one, and a resumed run meets the views that it would have met.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from data.sources import ArrayImages
from data.splits import HashingData
from data.transforms import ViewParams, crop_view, eval_transform, sample_views, views_of_crops, views_of_stack
from utils.errors import UserError
from utils.features import prefetch
from utils.seeds import generator

Engine = Callable[[torch.Tensor], torch.Tensor]


def eval_batches(data: HashingData, rows: np.ndarray, size: int, batch_size: int, start: int = 0,
                 workers: int = 4) -> Iterator[torch.Tensor]:
    """Images ``rows[start:]`` as evaluation sees them, uint8 [B, 3, size, size]."""
    if isinstance(data.images, ArrayImages):
        for first in range(start, len(rows), batch_size):
            yield eval_transform(data.images.pixels[rows[first : first + batch_size]], size, data.crop)
        return
    with ThreadPoolExecutor(workers) as pool:
        for first in range(start, len(rows), batch_size):
            part = rows[first : first + batch_size]
            yield torch.stack(list(pool.map(lambda i: eval_transform(data.images[i], size, data.crop), part)))


def view_params(data: HashingData, view: int, seed: int) -> ViewParams:
    """The random numbers of view number ``view`` of every training image."""
    return sample_views(len(data.train), data.flip, generator("view", seed, view))


def make_views(data: HashingData, rows: torch.Tensor, params: ViewParams, size: int, device: torch.device,
               pool: ThreadPoolExecutor) -> torch.Tensor:
    """One view of each training image in ``rows`` [B]: uint8 [B, 3, size, size] on ``device``; ``params`` has B rows."""
    index = data.train[rows.numpy()]
    if isinstance(data.images, ArrayImages) and max(data.images.pixels.shape[2:]) <= size:
        return views_of_stack(data.images.pixels[index].to(device), params.to(device), size)
    one = lambda b: crop_view(data.images[index[b]], params[b : b + 1], size)  # noqa: E731
    crops = torch.stack(list(pool.map(one, range(len(index)))))
    return views_of_crops(crops.to(device), params.to(device))


def view_batches(data: HashingData, n_views: int, seed: int, size: int, batch_size: int, device: torch.device,
                 start: int = 0, workers: int = 4) -> Iterator[torch.Tensor]:
    """Views 0..n_views-1 of all training images, view by view, from row ``start`` on (row = view * n + image)."""
    n = len(data.train)
    with ThreadPoolExecutor(workers) as pool:
        for view in range(start // n, n_views):
            params = view_params(data, view, seed)
            for rows in torch.arange(start % n if view == start // n else 0, n).split(batch_size):
                yield make_views(data, rows, params[rows], size, device, pool)


class BankedViews:
    """Pairs of different views out of banks of N.

    Args:
        banks: arrays or memory maps [N, n, D], one for each network that looks at the views (student, teacher).
        seed: of the run: the images' order and which two views each gets, every epoch anew.
    """

    def __init__(self, banks: list[np.ndarray | torch.Tensor], seed: int):
        self.banks, self.seed = banks, seed
        self.n_views, self.n = banks[0].shape[:2]
        if self.n_views < 2:
            raise UserError(f"--views {self.n_views}: a pair needs at least 2 views an image; 0 makes new ones each epoch")

    def epoch(self, epoch: int, batch_size: int) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """(index [B], for each bank its two views' rows, float32 [2, B, D])."""
        order = torch.randperm(self.n, generator=generator("order", self.seed, epoch))
        draw = generator("pairs", self.seed, epoch)
        first = torch.randint(self.n_views, (self.n,), generator=draw)
        second = (first + torch.randint(1, self.n_views, (self.n,), generator=draw)) % self.n_views
        views = torch.stack([first, second])  # [2, n] by image
        for index in order.split(batch_size):
            pair = views[:, index]  # [2, B]
            yield index, [torch.as_tensor(bank[pair, index]).float() for bank in self.banks]


class FreshViews:
    """Two new views of every image each epoch, as in the paper: every network looks at each view once.

    Args:
        networks: (function from uint8 views [B, 3, S, S] to rows [B, D], its S) for each network; a frozen backbone,
            or one with its head.
    """

    def __init__(self, data: HashingData, networks: list[tuple[Engine, int]], seed: int, device: torch.device,
                 workers: int = 4):
        self.data, self.networks, self.seed, self.device, self.workers = data, networks, seed, device, workers

    def _pixels(self, epoch: int, batch_size: int) -> Iterator[tuple[torch.Tensor, dict[int, torch.Tensor]]]:
        """(index [B], for each size the 2B views)."""
        params = [view_params(self.data, 2 * epoch + half, self.seed) for half in (0, 1)]
        order = torch.randperm(len(self.data.train), generator=generator("order", self.seed, epoch))
        sizes = {size for _, size in self.networks}
        with ThreadPoolExecutor(self.workers) as pool:
            for index in order.split(batch_size):
                yield index, {
                    size: torch.cat([make_views(self.data, index, p[index], size, self.device, pool) for p in params])
                    for size in sizes
                }

    def epoch(self, epoch: int, batch_size: int) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """(index [B], for each network its two views' rows, float32 [2, B, D])."""
        for index, pixels in prefetch(self._pixels(epoch, batch_size)):
            yield index, [network(pixels[s]).float().unflatten(0, (2, len(index))) for network, s in self.networks]
