"""KL: classic knowledge distillation on softened outputs."""

import torch
import torch.nn.functional as F
from torch import nn

KD_TEMPERATURE = 2.0  # of the softened outputs, tuned; the released code has 4


class KLLoss(nn.Module):
    """KL divergence of softened outputs (Hinton et al., arXiv 1503.02531): T^2 KL(softmax(t/T) || softmax(s/T)), mean
    over the batch.

    Args:
        temperature: T, above 0.

    Example:
        >>> KLLoss(temperature=4)(torch.randn(8, 64), torch.randn(8, 64))
    """

    def __init__(self, temperature: float = KD_TEMPERATURE):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0")
        self.temperature = temperature

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """student, teacher: [B, b] -> scalar."""
        log_q = F.log_softmax(student.float() / self.temperature, dim=1)
        log_p = F.log_softmax(teacher.detach().float() / self.temperature, dim=1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * self.temperature**2
