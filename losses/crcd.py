"""CRCD: complementary relation contrastive distillation."""

import torch
import torch.nn.functional as F

from losses.memory import MemoryLoss

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

        The directions [B, A, K + 1, f] themselves (1 GB for 64 images and 500 negatives) are never made: dot products
        and norms of differences come from matrix products.
        """
        origin = memory[index] - SHIFT  # [A, f]
        others = memory[contrast_index]  # [B, K + 1, f]
        relation = F.normalize(rows[:, None] - origin, dim=2)  # [B, A, f]
        dot = relation @ others.transpose(1, 2) - (relation * origin).sum(dim=2, keepdim=True)  # [B, A, K + 1]
        cross = origin @ others.transpose(1, 2)  # [B, A, K + 1]
        squared = others.pow(2).sum(dim=2)[:, None] + origin.pow(2).sum(dim=1)[:, None] - 2 * cross
        # Where the other *is* the anchor the difference is SHIFT in every coordinate: written out, not subtracted.
        itself = contrast_index[:, None] == index[:, None]  # [B, A, K + 1]
        along = relation.sum(dim=2, keepdim=True) / relation.shape[2] ** 0.5
        return torch.where(itself, along, dot / squared.clamp(min=1e-12).sqrt())
