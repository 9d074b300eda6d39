"""PKT: probabilistic knowledge transfer."""

import torch
from torch import nn

from losses.nt_xent import cosine_matrix

EPS = 1e-7


def affinities(rows: torch.Tensor) -> torch.Tensor:
    """Rows of probabilities [B, B]: how near each other row is, by cosine moved to 0..1."""
    near = (cosine_matrix(rows) + 1) / 2
    return near / near.sum(dim=1, keepdim=True)


class PKTLoss(nn.Module):
    """The distribution of cosine affinities in a batch follows the teacher's (Passalis & Tefas, ECCV 2018,
    arXiv 1803.10837): KL divergence, mean over the pairs.

    Example:
        >>> PKTLoss()(torch.randn(8, 64), torch.randn(8, 64))
    """

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """student, teacher: [B, .] -> scalar; their widths may differ."""
        q, p = affinities(student), affinities(teacher.detach())
        return (p * torch.log((p + EPS) / (q + EPS))).mean()
