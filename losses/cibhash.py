"""CIBHash's objective: contrast binarized views, keep their bit probabilities close."""

import torch
import torch.nn.functional as F
from torch import nn

from losses.binarize import binarize
from losses.nt_xent import TEMPERATURE, NTXentLoss

KL_WEIGHT = 0.001


def bernoulli_kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """KL(sigmoid(p) || sigmoid(q)), summed over bits, averaged over images; [B, b] twice -> scalar."""
    # log p = s + log(1 - p) for a logit s, and log(1 - p) = -softplus(s): finite for any logits.
    kl = torch.sigmoid(p_logits) * (p_logits - q_logits) - F.softplus(p_logits) + F.softplus(q_logits)
    return kl.sum(dim=1).mean()


class CIBHashLoss(nn.Module):
    """CIBHash (Qiu et al., "Unsupervised Hashing with Contrastive Information Bottleneck", arXiv 2105.06138).

    loss = NT-Xent(z_i, z_j) + kl_weight * (KL(p_i || p_j) + KL(p_j || p_i)) / 2, with z the binarized logits
    (straight-through), p = sigmoid(logits), and each KL's second argument detached.

    Args:
        temperature: of NT-Xent.
        kl_weight: weight of the KL term; not negative.

    Example:
        >>> terms = CIBHashLoss()(torch.randn(8, 64), torch.randn(8, 64))
        >>> terms["loss"], terms["contrastive"], terms["kl"]
    """

    def __init__(self, temperature: float = TEMPERATURE, kl_weight: float = KL_WEIGHT):
        super().__init__()
        if kl_weight < 0:
            raise ValueError(f"kl_weight is {kl_weight}: it must not be negative")
        self.nt_xent = NTXentLoss(temperature)
        self.kl_weight = kl_weight

    def forward(self, logits_i: torch.Tensor, logits_j: torch.Tensor) -> dict[str, torch.Tensor]:
        """logits_i, logits_j: [B, b] of two views -> scalars "loss", "contrastive" and "kl"."""
        logits = torch.cat([logits_i, logits_j]).float()  # [2B, b]
        contrastive = self.nt_xent(*binarize(logits).chunk(2))
        kl = bernoulli_kl(logits, logits.detach().roll(len(logits_i), dims=0))  # both directions; mean over 2B rows
        return {"loss": contrastive + self.kl_weight * kl, "contrastive": contrastive, "kl": kl}
