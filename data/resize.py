"""Evaluation's resize and centre crop in whole numbers: the same pixels on every machine and in every client.

torchvision's antialiased resize of uint8 images is integer arithmetic on AVX2, AVX-512 and ARM: a triangle filter as
wide as the reduction, its weights rounded to 16 bits, the rows' pass rounded to bytes before the columns'. This is the
same, to the pixel, written in tensor operations that also run inside an exported file, for images of any size.

Each output pixel needs a few neighbouring source pixels only. Outputs are taken in blocks of ``BLOCK``: one gather of
whole rows and one small matrix product a block, so that cost follows the image's pixels and not their square. What the
crop cuts off is never computed, however long an image is.
"""

from collections.abc import Callable

import torch

BLOCK = 8  # output pixels that share a gather
MOST_SHIFT = 22  # binary places of a weight, at most
TOP = 2**16 - 1  # twice a weight's limit: the largest is to stay below 2^15 when rounded

# Of two sizes. Where an export leaves them open they are SymInts, which a shape's type calls int: so do these.
_least: Callable[[int, int], int] = torch.sym_min  # type: ignore[assignment]
_most: Callable[[int, int], int] = torch.sym_max  # type: ignore[assignment]


def resize(image: torch.Tensor, size: int, short: int | None) -> torch.Tensor:
    """uint8 [H, W, ...] -> uint8 [size, size, ...].

    Args:
        short: the short side's length before the centre is cut out, at least ``size``; None: resized to the square.
    """
    height, width = image.shape[:2]
    new_height = new_width = size
    top = left = 0
    if short is not None:
        side = _least(height, width)
        new_height, new_width = short * height // side, short * width // side
        top, left = _middle(new_height, size), _middle(new_width, size)
    first = _first(torch.arange(1) + top, height, new_height)
    rows = (first + torch.arange(_reach(size, height, new_height))).clamp(max=height - 1)
    # Plain transposes of a matrix, [rows the crop needs, W * C] and back: five times as fast as moving pixels.
    x = image.flatten(2)[rows].flatten(1).T.unflatten(0, (width, -1))  # [W, C, rows]
    x = _shrink(x, width, new_width, left, size).flatten(0, 1).T.unflatten(1, (size, -1))  # [rows, size, C]
    return _shrink(x, height, new_height, top, size, first).unflatten(2, image.shape[2:])


def _middle(length: int, size: int) -> int:
    """Where torchvision's centre crop begins: half of what is left over, halves to the even number."""
    gap = length - size
    return (gap + gap // 2 % 2) // 2


# Below: n source pixels become m output pixels. Output i has its centre at (i + 1/2) n / m, pixel j at j + 1/2.


def _first(i: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """First source pixel that output ``i`` may need."""
    return ((2 * i + 1) * n - 2 * _most(n, m) + m).clamp(min=0) // (2 * m)


def _reach(count: int, n: int, m: int) -> int:
    """How many source pixels ``count`` outputs in a row may need."""
    return ((count - 1) * n + 2 * _most(n, m)) // m + 2


def _triangle(i: torch.Tensor, j: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Weight of pixel ``j`` in output ``i``, in units of 1 / (2 max(n, m)), before they are made to sum to 1."""
    distance = ((2 * j + 1) * m - (2 * i + 1) * n).abs()
    return (2 * _most(n, m) - distance).clamp(min=0) * (j < n)


def _shift(n: int, m: int) -> torch.Tensor:
    """Binary places of the weights: as many as leave the largest below 2^15. Enlarging has a 1 among them: 14."""
    i = torch.arange((m - 1) * _least(1, n // m) + 1)[:, None]
    weights = _triangle(i, _first(i, n, m) + torch.arange(_reach(1, n, m)), n, m)
    largest = weights.amax(1, keepdim=True) * 4 * 2 ** torch.arange(MOST_SHIFT) // weights.sum(1, keepdim=True)
    return (largest < TOP).sum(1).amin(0)


def _shrink(x: torch.Tensor, n: int, m: int, start: int, size: int, origin: torch.Tensor | int = 0) -> torch.Tensor:
    """Resize the first dimension of uint8 [rows, a, b] from n to m and give outputs start..start+size.

    Args:
        origin: which of the n rows is the first of x.
    """
    blocks = -(-size // BLOCK)
    i = (start + torch.arange(blocks * BLOCK)).clamp(max=start + size - 1).view(blocks, BLOCK, 1)
    j = _first(i[:, :1], n, m) + torch.arange(_reach(BLOCK, n, m))  # [blocks, 1, reach]
    weights = _triangle(i, j, n, m)  # [blocks, BLOCK, reach]
    total = weights.sum(2, keepdim=True)
    one = 2 ** _shift(n, m)
    weights = (2 * one * weights + total) // (2 * total)  # rounded
    pixels = x[(j[:, 0] - origin).clamp(max=x.shape[0] - 1)].flatten(2)  # [blocks, reach, a * b]
    y = torch.floor((_product(weights, pixels) + one // 2) / one).clamp(max=255)
    return y.to(torch.uint8).flatten(0, 1)[:size].unflatten(1, x.shape[1:])


def _product(weights: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """``weights @ pixels``, whole numbers below 2^15 and 2^8 whose sums stay below 2^31: float64, exact in any order.

    An exported file multiplies bytes, which is several times as fast: the weights' upper and lower ones.
    """
    if not torch.onnx.is_in_onnx_export():
        return weights.double() @ pixels.double()
    both = torch.cat([weights // 256, weights % 256], dim=1).to(torch.uint8)
    shape = (*both.shape[:2], pixels.shape[2])
    sums = torch.onnx.ops.symbolic("MatMulInteger", (both, pixels), dtype=torch.int32, shape=shape)
    upper, lower = sums.split(weights.shape[1], dim=1)
    return (upper * 256 + lower).double()
