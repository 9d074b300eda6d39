"""CRCD: complementary relation contrastive distillation."""

import torch

from losses.memory import MemoryLoss, similarities

SHIFT = 1e-6  # added to every difference, so that a row less itself has a direction


class CRCDLoss(MemoryLoss):
    """CRCD (Zhu et al., CVPR 2021, arXiv 2103.16367): the *relation* of a row to the batch's anchors is contrasted.

    An anchor is a batch image's row in the other side's memory. The direction from anchor a to row b is compared with
    the directions from a to the K + 1 memory rows that b is contrasted with; NCE over all pairs (b, a), on both sides.
    Arguments as in ``MemoryLoss``; forward as in ``CRDLoss``.
    """

    def exponents(
        self, rows: torch.Tensor, memory: torch.Tensor, index: torch.Tensor, contrast_index: torch.Tensor
    ) -> torch.Tensor:
        """[B, A, K + 1] cosines between the two directions.

        The directions [B, A, K + 1, f] themselves (1 GB for 64 images and 500 negatives) are never made. With b, a, o
        for row, anchor and other, the cosine is (b.o - a.o - b.a + a.a) / |b - a| / |o - a|, and all that knows no b is
        looked up in tables of the whole memory and the A anchors.
        """
        anchor = memory[index] - SHIFT  # [A, f]
        cross = memory @ anchor.T  # [n, A]
        squared = memory.pow(2).sum(dim=1, keepdim=True) + anchor.pow(2).sum(dim=1) - 2 * cross
        inverse = squared.clamp(min=1e-12).rsqrt()
        difference = rows[:, None] - anchor  # [B, A, f]
        scale = 1 / difference.norm(dim=2).clamp(min=1e-12)  # [B, A]
        offset = rows @ anchor.T - anchor.pow(2).sum(dim=1)  # [B, A]
        # [B, K + 1, A]: in this order a look-up copies whole rows of the tables.
        dot = similarities(rows, memory, contrast_index)[:, :, None] - offset[:, None] - cross[contrast_index]
        cosine = dot * inverse[contrast_index] * scale[:, None]
        # Where the other *is* the anchor the difference is SHIFT in every coordinate: written out, not subtracted.
        itself = contrast_index[:, :, None] == index
        along = difference.sum(dim=2) * scale / difference.shape[2] ** 0.5  # [B, A]
        return torch.where(itself, along[:, None], cosine).transpose(1, 2)
