"""SSKD: self-supervision knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import nn

ROWS = 4  # an image as it is, then its three rotations


class SSKDLoss(nn.Module):
    """Similarities of transformed to plain images follow the teacher's (Xu et al., ECCV 2020, arXiv 2006.07114).

    Each transformed row's cosines to all plain rows of the batch become a distribution by softmax; the student's is
    drawn to the teacher's: T^2 KL, mean over the transformed rows.

    Args:
        temperature: of the softmax, 0.5 as in the paper.

    Example:
        >>> SSKDLoss()(torch.randn(4 * 8, 64), torch.randn(4 * 8, 64))
    """

    def __init__(self, temperature: float = 0.5):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0")
        self.temperature = temperature

    def log_affinities(self, rows: torch.Tensor) -> torch.Tensor:
        """[4 B, b] -> log of distributions [3 B, B]."""
        rows = F.normalize(rows.float(), dim=1, eps=1e-8).unflatten(0, (-1, ROWS))  # [B, 4, b]
        cosines = rows[:, 1:].flatten(0, 1) @ rows[:, 0].T
        return F.log_softmax(cosines / self.temperature, dim=1)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """student, teacher: [4 B, .], four rows an image, the plain one first -> scalar."""
        if len(student) % ROWS or len(student) != len(teacher):
            raise ValueError(f"four rows an image are needed on both sides, not {len(student)} and {len(teacher)} rows")
        log_q, log_p = self.log_affinities(student), self.log_affinities(teacher.detach())
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * self.temperature**2
