"""Plain alignment: the student's bits follow the teacher's, image by image, without other images."""

import torch
import torch.nn.functional as F
from torch import nn


class BCELoss(nn.Module):
    """Binary cross-entropy of the student's logits on the teacher's bits, mean over images and bits.

    Example:
        >>> BCELoss()(torch.randn(8, 64), torch.randn(8, 64).sign())
    """

    def forward(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """logits: [B, b]; teacher: codes [B, b] -> scalar."""
        return F.binary_cross_entropy_with_logits(logits.float(), (teacher > 0).float())


class MSELoss(nn.Module):
    """Squared distance of the student's probabilities from the teacher's bits, mean over images and bits.

    Example:
        >>> MSELoss()(torch.randn(8, 64), torch.randn(8, 64).sign())
    """

    def forward(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """logits: [B, b]; teacher: codes [B, b] -> scalar."""
        return F.mse_loss(logits.float().sigmoid(), (teacher > 0).float())


class CosineLoss(nn.Module):
    """1 - cosine of the student's code and the teacher's, mean over images.

    Example:
        >>> CosineLoss()(torch.randn(8, 64).sign(), torch.randn(8, 64).sign())
    """

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """student, teacher: codes [B, b] -> scalar."""
        return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=1).mean()
