"""SP: similarity-preserving knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import nn


class SPLoss(nn.Module):
    """The batch's similarity matrix follows the teacher's (Tung & Mori, ICCV 2019, arXiv 1907.09682, equation 4).

    Example:
        >>> SPLoss()(torch.randn(8, 64), torch.randn(8, 64))
    """

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """student, teacher: [B, .] -> scalar; their widths may differ."""
        student, teacher = student.float(), teacher.detach().float()
        gram_s, gram_t = F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1)  # [B, B]
        return F.mse_loss(gram_s, gram_t)
