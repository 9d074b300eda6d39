"""NT-Xent: the normalised temperature-scaled cross entropy of contrastive learning."""

import torch
import torch.nn.functional as F
from torch import nn

TEMPERATURE = 0.3  # of CIBHash and of BRCD


def cosine_matrix(rows: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of every two rows, [n, b] -> float32 [n, n]; a row of zeros has similarity 0 to all."""
    rows = F.normalize(rows.float(), dim=1, eps=1e-8)
    return rows @ rows.T


class NTXentLoss(nn.Module):
    """NT-Xent (Chen et al., "A Simple Framework for Contrastive Learning", arXiv 2002.05709, equation 1).

    For 2B rows, two of each image, a row's positive is the image's other row and its negatives are the 2B - 2 rows of
    other images: cross entropy of cos / temperature, mean over the rows. Two codes that are all the same give
    log(2B - 1).

    Args:
        temperature: divides the similarities; above 0.

    Example:
        >>> loss = NTXentLoss(temperature=0.3)(torch.randn(8, 64), torch.randn(8, 64))
    """

    def __init__(self, temperature: float = TEMPERATURE):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0")
        self.temperature = temperature

    def forward(self, z_i: torch.Tensor, z_j: torch.Tensor) -> torch.Tensor:
        """z_i, z_j: [B, b], two views of the same images in the same order -> scalar."""
        if z_i.shape != z_j.shape or z_i.dim() != 2:
            raise ValueError(
                f"two [B, b] tensors of one shape are needed, not {tuple(z_i.shape)} and {tuple(z_j.shape)}"
            )
        batch = len(z_i)
        logits = cosine_matrix(torch.cat([z_i, z_j])) / self.temperature  # [2B, 2B]
        logits.fill_diagonal_(float("-inf"))
        partner = torch.arange(2 * batch, device=logits.device).roll(batch)  # [2B]
        return F.cross_entropy(logits, partner)
