"""Bi-half Net: hashing with maximal bit entropy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from losses.nt_xent import cosine_matrix


class _HalfHalf(torch.autograd.Function):
    """Each bit +1 for the upper half of the batch, -1 for the lower: the optimal transport to a fair coin."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, pull: float) -> torch.Tensor:
        rank = logits.argsort(dim=0, descending=True).argsort(dim=0)  # [B, b]
        codes = torch.where(rank < len(logits) / 2, 1.0, -1.0)
        ctx.save_for_backward(logits, codes)
        ctx.pull = pull
        return codes

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, codes = ctx.saved_tensors
        return gradient + ctx.pull * (logits - codes) / codes.numel(), None


class BiHalfLoss(nn.Module):
    """Bi-half Net (Li & van Gemert, AAAI 2021, arXiv 2012.12334), unsupervised.

    In a batch each bit is +1 for half of the images, which maximises its entropy; the codes' cosines follow the
    frozen features'. The gradient passes the assignment unchanged, with a pull of the logits to their codes.

    Args:
        pull: weight of that pull; 6 in the paper's setting.
    """

    def __init__(self, pull: float = 6.0):
        super().__init__()
        if pull < 0:
            raise ValueError(f"pull is {pull}: it must not be negative")
        self.pull = pull

    def forward(self, logits: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """logits [B, b], features [B, D] of the same images -> scalar "loss"."""
        codes = _HalfHalf.apply(logits.float(), self.pull)
        return {"loss": F.mse_loss(cosine_matrix(codes), cosine_matrix(features))}
