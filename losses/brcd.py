"""BRCD: bit-mask robust contrastive knowledge distillation, the loss this project exists for."""

import torch
import torch.nn.functional as F
from torch import nn

from losses.nt_xent import TEMPERATURE, cosine_matrix

ALPHA = 0.8  # share of the individual space in the positive


def hard_weights(negatives: torch.Tensor, hardness: float) -> torch.Tensor:
    """Logarithms of weights in proportion to exp(hardness * negative), with mean 1 over a row's negatives.

    As in Robinson et al., ICLR 2021 (arXiv 2010.04592), without its correction for false negatives: BRCD drops these
    by clusters. No gradient passes the weights.

    Args:
        negatives: [rows, n] similarities over the temperature; -inf where there is no negative.

    Returns:
        [rows, n]; 0 where there is no negative.
    """
    there = negatives > float("-inf")
    powers = torch.where(there, hardness * negatives.detach(), float("-inf"))
    means = torch.logsumexp(powers, dim=1, keepdim=True) - there.sum(dim=1, keepdim=True).log()
    return torch.where(there, powers - means, 0.0)


class BRCDLoss(nn.Module):
    """BRCD (He et al., WWW 2024, arXiv 2403.06071): contrast of student codes with the teacher's, robust to noise.

    With m_i the bit mask of image i's cluster, 2B rows are contrasted: m_i * z_i and m_i * t_j. Both rows of image i
    have the positive a_i cos(z_i, t_i) + (1 - a_i) cos(m_i * z_i, m_i * t_ji): the individual space, view by view, and
    the structural semantics of the cluster. a_i is alpha, but 1 for an *offset* augmentation, one that the teacher puts
    into another cluster than its image. Negatives are all other pairs of rows, less those of one cluster (false
    negatives). Cross entropy of [positive, negatives] / temperature, mean over the rows.

    Args:
        temperature: divides the similarities; above 0.
        alpha: share of the individual space in the positive, 0..1.
        drop_same_cluster: leave pairs of one cluster out of the negatives.
        hardness: of the negatives' weights, see ``hard_weights``; at least 0; 0, the paper's, weighs all alike.

    Example:
        >>> z, t_i, t_j = (torch.randn(3, 8, 64) >= 0).float() * 2 - 1
        >>> cluster = torch.randint(10, (8,))
        >>> BRCDLoss(0.3, 0.8)(z, t_i, t_j, cluster, cluster, torch.ones(8, 64))
    """

    def __init__(
        self,
        temperature: float = TEMPERATURE,
        alpha: float = ALPHA,
        drop_same_cluster: bool = True,
        hardness: float = 0.0,
    ):
        super().__init__()
        for name, value, allowed, words in (
            ("temperature", temperature, temperature > 0, "above 0"),
            ("alpha", alpha, 0 <= alpha <= 1, "from 0 to 1"),
            ("hardness", hardness, hardness >= 0, "at least 0"),
        ):
            if not allowed:
                raise ValueError(f"{name} is {value}: it must be {words}")
        self.temperature, self.alpha, self.hardness = temperature, alpha, hardness
        self.drop_same_cluster = drop_same_cluster

    def same_cluster(self, cluster_i: torch.Tensor, cluster_j: torch.Tensor) -> torch.Tensor:
        """[2B, 2B] pairs of rows that are false negatives: the student's rows are of cluster_i, the teacher's of
        cluster_j."""
        cluster = torch.cat([cluster_i, cluster_j])
        return cluster[:, None] == cluster

    def forward(
        self,
        student: torch.Tensor,
        teacher_i: torch.Tensor,
        teacher_j: torch.Tensor,
        cluster_i: torch.Tensor,
        cluster_j: torch.Tensor,
        bit_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of one batch, a scalar.

        Args:
            student: [B, b] student's codes of view i (straight-through).
            teacher_i, teacher_j: [B, b] teacher's codes of views i and j.
            cluster_i: [B] cluster of each clean image.
            cluster_j: [B] cluster of each teacher_j.
            bit_mask: [B, b] of 0/1; row i is of image i, by its cluster.
        """
        if not student.shape == teacher_i.shape == teacher_j.shape == bit_mask.shape:
            shapes = [tuple(t.shape) for t in (student, teacher_i, teacher_j, bit_mask)]
            raise ValueError(f"student, teacher_i, teacher_j and bit_mask must be [B, b] of one shape, not {shapes}")
        batch = len(student)
        student, teacher_i, teacher_j, bit_mask = (t.float() for t in (student, teacher_i, teacher_j, bit_mask))
        rows = torch.cat([bit_mask * student, bit_mask * teacher_j])  # [2B, b] u: masked codes
        similarity = cosine_matrix(rows)  # [2B, 2B] cos(u_r, u_s)

        individual = F.cosine_similarity(student, teacher_i, dim=1)  # [B] cos(z_i, t_i)
        structural = similarity.diagonal(batch)  # [B] cos(m_i * z_i, m_i * t_ji)
        share = torch.where(cluster_i != cluster_j, 1.0, self.alpha)  # [B] a_i: 1 for an offset augmentation
        positive = (share * individual + (1 - share) * structural).repeat(2) / self.temperature  # [2B]

        image = torch.arange(batch, device=student.device).repeat(2)
        dropped = image[:, None] == image  # [2B, 2B] a row with itself and with its positive's row
        if self.drop_same_cluster:
            dropped = dropped | self.same_cluster(cluster_i, cluster_j)
        negatives = (similarity / self.temperature).masked_fill(dropped, float("-inf"))
        if self.hardness:
            negatives = negatives + hard_weights(negatives, self.hardness)
        return (torch.logsumexp(torch.cat([positive[:, None], negatives], dim=1), dim=1) - positive).mean()
