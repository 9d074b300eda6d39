"""The one place for image transforms: evaluation, and the random training views in batches.

A view is RandomResizedCrop (area 0.5-1, aspect 3/4-4/3), horizontal flip, ColorJitter(.4, .4, .4, .1) with
probability .7, grayscale .2 and a 3x3 Gaussian blur (sigma 0.1-2) .5, as in the method's recipe. Transforms give
uint8; normalisation belongs to the backbone, since teacher and student may want different ones.

Views are made in batches. Crop, resize, flip and blur are linear and separable, so together they are one small
matrix for the rows and one for the columns of each image, applied as two batched matrix products. Images smaller
than the view (CIFAR-10, digits) get their colours changed before they are enlarged, which is up to 49 times less
work; a test bounds the difference from the usual order.
"""

import functools
from dataclasses import dataclass, fields

import torch
from torchvision.transforms.v2 import functional as F

from data.resize import resize
from models.backbones import CROP_PCT
from utils.devices import to_device

AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.1
P_JITTER, P_GRAY, P_BLUR = 0.7, 0.2, 0.5
SIGMA = (0.1, 2.0)
CROP_TRIES = 10
LONG = 8  # sides' ratio from which on torchvision would make much more than the crop needs
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, torchvision's grayscale

# Part of the feature cache's keys: raise one when a change here changes the pixels of evaluation images or of views.
EVAL_VERSION = 1
VIEW_VERSION = 2


def short_side(size: int, crop_pct: float = CROP_PCT) -> int:
    """Of an evaluation image before its centre, size x size, is cut out."""
    return round(size / crop_pct)


def eval_transform(image: torch.Tensor, size: int, crop: bool, crop_pct: float = CROP_PCT) -> torch.Tensor:
    """uint8 [..., 3, H, W] -> uint8 [..., 3, size, size]; ``crop``: short side to size / crop_pct, then the centre."""
    height, width = image.shape[-2:]
    if not _same_in_torchvision() or max(height, width) > LONG * min(height, width):
        rows = resize(image.movedim((-2, -1), (0, 1)), size, short_side(size, crop_pct) if crop else None)
        return rows.movedim((0, 1), (-2, -1)).contiguous()
    if not crop:
        return F.resize(image, [size, size], antialias=True)
    return F.center_crop(F.resize(image, [short_side(size, crop_pct)], antialias=True), [size, size])


@functools.cache
def _same_in_torchvision() -> bool:
    """Whether torchvision's resize, which is quicker, gives the pixels of ours here: AVX2, AVX-512 and ARM have it."""
    image = torch.arange(3 * 97 * 61).mul(7919).bitwise_right_shift(3).to(torch.uint8).view(3, 97, 61)
    return all(
        torch.equal(
            F.resize(image, [size, size], antialias=True), resize(image.permute(1, 2, 0), size, None).permute(2, 0, 1)
        )
        for size in (40, 150)
    )


@dataclass
class ViewParams:
    """Random numbers of one view of each of B images; every field's first dimension is B."""

    area: torch.Tensor  # [B, CROP_TRIES] share of the image
    aspect: torch.Tensor  # [B, CROP_TRIES] width / height
    corner: torch.Tensor  # [B, 2] where the crop lies, 0..1 down and right
    flip: torch.Tensor  # [B] bool
    jitter: torch.Tensor  # [B] bool
    factors: torch.Tensor  # [B, 4] brightness, contrast, saturation, hue
    order: torch.Tensor  # [B, 4] a permutation: which of the four comes when
    gray: torch.Tensor  # [B] bool
    sigma: torch.Tensor  # [B] of the blur, 0 where there is none

    def __getitem__(self, rows: slice | torch.Tensor) -> "ViewParams":
        return ViewParams(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: torch.device) -> "ViewParams":
        """The same there, sent in one copy."""
        if device.type == "cpu":
            return self
        values = [getattr(self, f.name) for f in fields(self)]
        flat = [v.float().flatten(1) if v.dim() > 1 else v.float()[:, None] for v in values]  # whole numbers stay exact
        sent = to_device(torch.cat(flat, dim=1), device).split([v.shape[1] for v in flat], dim=1)
        return ViewParams(*(s.reshape(v.shape).to(v.dtype) for s, v in zip(sent, values, strict=True)))


def sample_views(n: int, flip: bool, generator: torch.Generator) -> ViewParams:
    """Draw one view's parameters for each of ``n`` images; ``flip``: whether the set may be mirrored."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def chance(p: float) -> torch.Tensor:
        return torch.rand(n, generator=generator) < p

    log_aspect = torch.log(torch.tensor(ASPECT))
    sigma = uniform(*SIGMA, n)
    spread = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE])
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
    return ViewParams(
        area=uniform(*AREA, n, CROP_TRIES),
        aspect=torch.exp(uniform(log_aspect[0].item(), log_aspect[1].item(), n, CROP_TRIES)),
        corner=torch.rand(n, 2, generator=generator),
        flip=chance(0.5) & flip,
        jitter=chance(P_JITTER),
        factors=centre + spread * uniform(-1, 1, n, 4),
        order=torch.rand(n, 4, generator=generator).argsort(dim=1),
        gray=chance(P_GRAY),
        sigma=torch.where(chance(P_BLUR), sigma, torch.zeros(())),
    )


def crop_boxes(params: ViewParams, height: int, width: int) -> torch.Tensor:
    """[B, 4] (top, left, height, width) in whole pixels: the first try that fits, else the largest centred box.

    The rule is RandomResizedCrop's; only images far from square ever need the fallback.
    """
    target = params.area * (height * width)  # [B, tries]
    w = torch.sqrt(target * params.aspect).round().long()
    h = torch.sqrt(target / params.aspect).round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # 0 where none fits: mended below
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]  # [B]
    none = ~fits.any(dim=1)
    ratio = min(max(width / height, ASPECT[0]), ASPECT[1])
    w = torch.where(none, min(width, max(1, round(height * ratio))), w)
    h = torch.where(none, min(height, max(1, round(width / ratio))), h)
    room = torch.stack([height - h, width - w], dim=1)  # [B, 2]
    corner = (params.corner * (room + 1)).long().clamp(max=room)
    corner = torch.where(none[:, None], room // 2, corner)
    return torch.cat([corner, h[:, None], w[:, None]], dim=1)


def resize_weights(start: torch.Tensor, length: torch.Tensor, source: int, size: int) -> torch.Tensor:
    """[B, size, source] weights that resize pixels start..start+length of ``source`` to ``size``, antialiased.

    Each output pixel is a triangle filter over the crop, as wide as the reduction (at least one pixel to each
    side), cut at the crop's edges and normalised: torchvision's ``resize(antialias=True)`` as a matrix.
    """
    scale = (length / size)[:, None]  # [B, 1] source pixels per output pixel
    centre = (torch.arange(size, device=start.device) + 0.5) * scale  # [B, size] within the crop
    reach = scale.clamp(min=1)[..., None]  # [B, 1, 1]
    pixel = torch.arange(source, device=start.device) - start[:, None] + 0.5  # [B, source] within the crop
    weights = (1 - (pixel[:, None] - centre[..., None]).abs() / reach).clamp(min=0)  # [B, size, source]
    inside = (pixel > 0) & (pixel < length[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def blur_rows(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The 3-tap Gaussian blur down the second last dimension of [B, ..., size, n], with reflected edges; nothing where
    sigma [B] is 0."""
    side = torch.where(sigma > 0, torch.exp(-0.5 / sigma.clamp(min=1e-3) ** 2), torch.zeros_like(sigma))
    side = (side / (1 + 2 * side)).view(-1, *[1] * (x.dim() - 1))
    last = x.shape[-2] - 1
    row = torch.arange(last + 1, device=x.device)
    before, after = (row - 1).abs(), torch.where(row == last, max(last - 1, 0), row + 1)
    return x + side * (x.index_select(-2, before) + x.index_select(-2, after) - 2 * x)


def luma(x: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] -> [B, 1, H, W]"""
    r, g, b = x.unbind(dim=1)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).unsqueeze(1)


def shift_hue(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue of [B, 3, H, W] in 0..1 by ``turn`` [B] (1 is the full circle), through hexagonal HSV."""
    r, g, b = x.unbind(dim=1)
    value, low = x.amax(dim=1), x.amin(dim=1)  # [B, H, W]
    chroma = value - low
    safe = chroma.clamp(min=1e-12)
    hue = (
        torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
        + 6 * turn[:, None, None]
    )
    channels = []
    for n in (5, 3, 1):  # red, green, blue: the same ramp, two sextants apart
        k = (n + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def rows_of(masks: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Where each mask [B], on the CPU, is set: positions on ``device``, sent in one copy, so that no GPU is asked."""
    rows = [torch.nonzero(mask)[:, 0] for mask in masks]
    return list(to_device(torch.cat(rows), device).split([len(r) for r in rows]))


def change_colours(x: torch.Tensor, params: ViewParams, weight: torch.Tensor) -> torch.Tensor:
    """ColorJitter and grayscale, each image with its own factors in its own order.

    Args:
        x: [B, 3, H, W] in 0..1.
        params: on the CPU, wherever ``x`` is.
        weight: [B, H, W] sums to 1: how much each pixel counts in the mean that contrast pulls towards.
    """

    def blend(a: torch.Tensor, b: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return torch.lerp(b, a, factor[:, None, None, None]).clamp(0, 1)

    def contrast(x: torch.Tensor, factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        mean = (luma(x)[:, 0] * weight).sum(dim=(1, 2))
        return blend(x, mean[:, None, None, None].expand_as(x), factor)

    operations = (
        lambda x, factor, weight: (x * factor[:, None, None, None]).clamp(0, 1),
        contrast,
        lambda x, factor, weight: blend(x, luma(x).expand_as(x), factor),
        lambda x, factor, weight: shift_hue(x, factor),
    )
    x, factors = x.clone(), to_device(params.factors, x.device)
    turns = [(step, kind) for step in range(4) for kind in range(4)]
    *changed, gray = rows_of([*(params.jitter & (params.order[:, s] == k) for s, k in turns), params.gray], x.device)
    for (_, kind), rows in zip(turns, changed, strict=True):
        if len(rows):
            x[rows] = operations[kind](x[rows], factors[rows, kind], weight[rows])
    x[gray] = luma(x[gray]).expand(-1, 3, -1, -1)
    return x


def views_of_stack(images: torch.Tensor, params: ViewParams, size: int) -> torch.Tensor:
    """uint8 [B, 3, H, W], all of one size -> their views, uint8 [B, 3, size, size]; ``params`` on the CPU."""
    height, width = images.shape[2:]
    boxes = crop_boxes(params, height, width)  # [B, 4]
    colours, params = params, params.to(images.device)
    top, left, h, w = to_device(boxes, images.device).unbind(dim=1)
    rows = resize_weights(top, h, height, size)  # [B, size, H]
    columns = resize_weights(left, w, width, size)  # [B, size, W]
    columns = torch.where(params.flip[:, None, None], columns.flip(1), columns)
    weight = rows.mean(dim=1)[:, :, None] * columns.mean(dim=1)[:, None, :]  # [B, H, W] each pixel's share of the view
    x = change_colours(images.float() / 255, colours, weight)
    rows, columns = blur_rows(rows, params.sigma), blur_rows(columns, params.sigma)
    # Weights sum to 1, so the half that rounding adds can be added here, where the images are small.
    x = (rows[:, None] @ (x * 255 + 0.5)).flatten(1, 2) @ columns.mT  # [B, 3 size, size]
    return x.to(torch.uint8).unflatten(1, (3, size))


def views_of_crops(crops: torch.Tensor, params: ViewParams) -> torch.Tensor:
    """uint8 [B, 3, size, size], cropped, resized and flipped already -> views: colours and blur in batches; ``params``
    on the CPU."""
    size = crops.shape[2]
    x = change_colours(
        crops.float() / 255,
        params,
        crops.new_full((1, 1, 1), 1 / size**2, dtype=torch.float32).expand(len(crops), size, size),
    )
    (rows,) = rows_of([params.sigma > 0], x.device)
    sigma = to_device(params.sigma[params.sigma > 0], x.device)
    x[rows] = blur_rows(blur_rows(x[rows], sigma).mT, sigma).mT
    return (x * 255).round().to(torch.uint8)


def crop_view(image: torch.Tensor, params: ViewParams, size: int) -> torch.Tensor:
    """One image uint8 [3, H, W] of any size -> its crop, resized and flipped, uint8 [3, size, size].

    ``params`` holds this image's row only. Used where images differ in size and cannot be stacked.
    """
    top, left, h, w = crop_boxes(params, *image.shape[1:])[0].tolist()
    view = F.resized_crop(image, top, left, h, w, [size, size], antialias=True)
    return F.horizontal_flip(view) if params.flip[0] else view
