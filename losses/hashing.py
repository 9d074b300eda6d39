"""Hashing objectives: what a network learns without a teacher, from two views of every image.

Each takes logits [2, B, b] and features [2, B, D] of the views and returns its named terms, "loss" among them.
"""

from collections.abc import Callable

import torch
from torch import nn

from losses.bihalf import BiHalfLoss
from losses.cibhash import CIBHashLoss
from losses.greedyhash import GreedyHashLoss


class OnPairs(nn.Module):
    """CIBHash: the two views are contrasted."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.loss(logits[0], logits[1])


class OnAll(nn.Module):
    """Bi-half and GreedyHash: the views are just images, and codes follow features."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.loss(logits.flatten(0, 1), features.flatten(0, 1))


# Each builds its objective; keywords temperature and kl_weight, which CIBHash alone takes.
HASHING: dict[str, Callable[..., nn.Module]] = {
    "cibhash": lambda temperature, kl_weight: OnPairs(CIBHashLoss(temperature, kl_weight)),
    "bihalf": lambda **_: OnAll(BiHalfLoss()),
    "greedyhash": lambda **_: OnAll(GreedyHashLoss()),
}
