"""CRD: contrastive representation distillation."""

import torch

from losses.memory import MemoryLoss, similarities


class CRDLoss(MemoryLoss):
    """CRD (Tian et al., ICLR 2020, arXiv 1910.10699): each side's embedding finds its image among K others in the other
    side's memory; NCE on both sides, added. Arguments as in ``MemoryLoss``.

    Example:
        >>> loss = CRDLoss(student_dim=64, teacher_dim=64, n_data=5000, n_negatives=500)
        >>> index = torch.arange(8)
        >>> contrast_index = torch.cat([index[:, None], torch.randint(8, 5000, (8, 500))], dim=1)
        >>> loss(torch.randn(8, 64), torch.randn(8, 64), index, contrast_index)
    """

    def exponents(
        self, rows: torch.Tensor, memory: torch.Tensor, index: torch.Tensor, contrast_index: torch.Tensor
    ) -> torch.Tensor:
        """[B, K + 1] cosines of each row with its image and its K others."""
        return similarities(rows, memory, contrast_index)
