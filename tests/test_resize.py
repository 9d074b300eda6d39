"""The resize in whole numbers: torchvision's to the pixel, and cheap where torchvision is not."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from data import transforms
from data.resize import resize
from data.transforms import eval_transform, short_side

NATIVE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
needs_native = pytest.mark.skipif(not NATIVE, reason="torchvision resizes in floats on this processor")


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 [H, W, 3]; of every third seed black and white, where rounding shows most."""
    pixels = torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8))
    return pixels if seed % 3 else (pixels > 127).to(torch.uint8) * 255


def by_torchvision(image: torch.Tensor, size: int, short: int | None) -> torch.Tensor:
    channels = image.permute(2, 0, 1)
    if short is None:
        return F.resize(channels, [size, size], antialias=True).permute(1, 2, 0)
    return F.center_crop(F.resize(channels, [short], antialias=True), [size, size]).permute(1, 2, 0)


@needs_native
@settings(deadline=None, max_examples=150)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    size=st.sampled_from([1, 7, 32, 64, 224]),
    crop=st.booleans(),
    seed=st.integers(0, 9),
)
@example(1, 1, 224, True, 0)
@example(1, 40, 224, True, 1)
@example(3000, 4000, 224, True, 0)
@example(2999, 301, 224, False, 0)
@example(299, 161, 161, False, 0)  # its largest weight is not the first output's
@example(256, 257, 224, True, 0)  # gaps of a half: centre crops round them to even
@example(224, 224, 224, False, 0)
def test_every_pixel_is_torchvisions(height, width, size, crop, seed):
    short = short_side(size) if crop else None
    if crop and max(height, width) > 40 * min(height, width):
        height = max(1, min(height, width))  # torchvision would make gigabytes of it
        width = 40 * height
    image = picture(height, width, seed)
    assert torch.equal(resize(image, size, short), by_torchvision(image, size, short))


@needs_native
def test_evaluation_takes_torchvisions_where_it_is_the_same_and_the_bits_do_not_depend_on_it(monkeypatch):
    images = [picture(h, w).permute(2, 0, 1) for h, w in ((30, 40), (300, 200), (64, 64))]
    assert transforms._same_in_torchvision()
    quick = [eval_transform(image, 64, crop) for image in images for crop in (True, False)]
    monkeypatch.setattr(transforms, "_same_in_torchvision", lambda: False)
    assert all(map(torch.equal, quick, [eval_transform(i, 64, crop) for i in images for crop in (True, False)]))
    stack = torch.stack([images[0]] * 3)
    assert torch.equal(eval_transform(stack, 64, True), torch.stack([quick[0]] * 3))


def test_evaluation_does_not_trust_a_torchvision_that_differs(monkeypatch):
    real = F.resize
    monkeypatch.setattr(transforms.F, "resize", lambda *a, **k: real(*a, **k) ^ 1)
    transforms._same_in_torchvision.cache_clear()
    assert not transforms._same_in_torchvision()
    monkeypatch.undo()
    transforms._same_in_torchvision.cache_clear()


def test_what_a_crop_cuts_off_is_not_computed():
    """256 x 7,680,000 pixels, 6 GB, would be what is cropped."""
    image = picture(1, 30_000, 1)
    made = eval_transform(image.permute(2, 0, 1), 224, True)
    assert made.shape == (3, 224, 224) and (made == made[:, :1]).all()
    left, right = image[0, 14_999].int(), image[0, 15_000].int()  # the crop's middle lies between them
    assert (made[:, 0, 112].int() - (left + right) / 2).abs().max() <= 2
