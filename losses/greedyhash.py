"""GreedyHash: hashing through the sign, with its gradient passed on unchanged."""

import torch
import torch.nn.functional as F
from torch import nn

from losses.nt_xent import cosine_matrix


class GreedyHashLoss(nn.Module):
    """GreedyHash (Su et al., NeurIPS 2018), unsupervised: codes' cosines follow the frozen features'.

    loss = mean (cos(z_r, z_s) - cos(f_r, f_s))^2 + penalty * mean | |s| - 1 |^3, with z = sign(s), sign(0) = +1, whose
    gradient is passed on unchanged.

    Args:
        penalty: weight of the second term, which keeps logits near their codes; 0.1 in the paper.
    """

    def __init__(self, penalty: float = 0.1):
        super().__init__()
        if penalty < 0:
            raise ValueError(f"penalty is {penalty}: it must not be negative")
        self.penalty = penalty

    def forward(self, logits: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """logits [B, b], features [B, D] of the same images -> scalars "loss", "similarity" and "quantisation"."""
        logits = logits.float()
        codes = torch.where(logits >= 0, 1.0, -1.0) + (logits - logits.detach())
        similarity = F.mse_loss(cosine_matrix(codes), cosine_matrix(features))
        quantisation = (logits.abs() - 1).abs().pow(3).mean()
        return {
            "loss": similarity + self.penalty * quantisation,
            "similarity": similarity,
            "quantisation": quantisation,
        }
