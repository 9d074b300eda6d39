"""BRCD: bit-mask robust contrastive knowledge distillation, the loss this project exists for."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from losses.nt_xent import TEMPERATURE, cosine_matrix

VARIANTS = ("paper", "released")
MASKED = ("rows", "pairs", "positives")


@dataclass(frozen=True)
class BRCDOptions:
    """BRCD's hyperparameters, at the paper's values, and its parts, each of which an ablation switches off.

    Attributes:
        temperature, alpha: of the loss.
        margin, clusters, mask_rule: of the bit masks; see ``losses.masks``; clusters may be "auto".
        variant: "paper", or "released": the released code's slips, which are an all-zero mask, offsets judged on masked
            codes, and a repeated half of the same-cluster matrix.
        hardness: of the negatives' weights; 0, the paper's, weighs all alike.
        mask: contrast masked codes; off, all bits count.
        cluster: off, both of the next two are.
        offset: augmentations in another cluster than their image lose the structural term.
        false_negatives: pairs of one cluster are no negatives.
        individual, structural: the two parts of the positive; off means alpha 0 or 1. Without the individual part an
            offset augmentation, having no structural part, still keeps it.
    """

    temperature: float = TEMPERATURE
    alpha: float = 0.8
    margin: float = 0.5
    clusters: int | str = 10
    mask_rule: str = "decided"
    variant: str = "paper"
    hardness: float = 0.0
    mask: bool = True
    cluster: bool = True
    offset: bool = True
    false_negatives: bool = True
    individual: bool = True
    structural: bool = True


def masked_cosines(rows: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """cos(m_r * u_r, m_r * u_s) of every two rows [n, b] -> [n, n], both under the first one's mask."""
    own = F.normalize(masks * rows, dim=1, eps=1e-8)
    lengths = (masks**2 @ (rows**2).T).clamp_min(1e-16).sqrt()  # [n, n] of m_r * u_s
    return (own * masks) @ rows.T / lengths


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
        repeat_upper_half: the released code's slip: rows of the teacher's half drop what the student's rows drop
            (for ``--variant released``).
        masked: what masks fall on: "rows", each row its own (the method); "pairs", both rows of a pair the mask of the
            one that contrasts; "positives", none on negatives.
        hardness: weighs negatives by how near they are, see ``hard_weights``; at least 0.

    Example:
        >>> z, t_i, t_j = (torch.randn(3, 8, 64) >= 0).float() * 2 - 1
        >>> cluster = torch.randint(10, (8,))
        >>> BRCDLoss(0.3, 0.8)(z, t_i, t_j, cluster, cluster, torch.ones(8, 64))
    """

    def __init__(
        self,
        temperature: float = BRCDOptions.temperature,
        alpha: float = BRCDOptions.alpha,
        drop_same_cluster: bool = True,
        repeat_upper_half: bool = False,
        masked: str = "rows",
        hardness: float = BRCDOptions.hardness,
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: it must be above 0")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: it must be from 0 to 1")
        if masked not in MASKED:
            raise ValueError(f"masked is {masked!r}: it must be one of {', '.join(MASKED)}")
        if hardness < 0:
            raise ValueError(f"hardness is {hardness}: it must be at least 0")
        self.temperature, self.alpha, self.masked, self.hardness = temperature, alpha, masked, hardness
        self.drop_same_cluster, self.repeat_upper_half = drop_same_cluster, repeat_upper_half

    def forward(
        self,
        student: torch.Tensor,
        teacher_i: torch.Tensor,
        teacher_j: torch.Tensor,
        cluster_i: torch.Tensor,
        cluster_j: torch.Tensor,
        bit_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of one batch.

        Args:
            student: [B, b] student's codes of view i (straight-through).
            teacher_i, teacher_j: [B, b] teacher's codes of views i and j.
            cluster_i: [B] cluster of each clean image.
            cluster_j: [B] cluster of each teacher_j.
            bit_mask: [B, b] of 0/1, or of weights; row i is of image i, by its cluster.

        Returns:
            scalar.
        """
        if not student.shape == teacher_i.shape == teacher_j.shape == bit_mask.shape:
            raise ValueError(
                "student, teacher_i, teacher_j and bit_mask must all be [B, b] of one shape, not "
                f"{[tuple(t.shape) for t in (student, teacher_i, teacher_j, bit_mask)]}"
            )
        batch = len(student)
        student, teacher_i, teacher_j, bit_mask = (t.float() for t in (student, teacher_i, teacher_j, bit_mask))
        similarity = cosine_matrix(torch.cat([bit_mask * student, bit_mask * teacher_j]))  # [2B, 2B]

        individual = F.cosine_similarity(student, teacher_i, dim=1)  # [B]
        structural = similarity.diagonal(batch)  # [B] cos(m * z_i, m * t_ji)
        if self.masked == "pairs":
            similarity = masked_cosines(torch.cat([student, teacher_j]), bit_mask.repeat(2, 1))
        elif self.masked == "positives":
            similarity = cosine_matrix(torch.cat([student, teacher_j]))
        share = torch.where(cluster_i != cluster_j, 1.0, self.alpha)
        positive = share * individual + (1 - share) * structural

        image = torch.arange(batch, device=student.device).repeat(2)
        dropped = image[:, None] == image  # [2B, 2B] a row with itself and with its positive's row
        if self.drop_same_cluster:
            cluster = torch.cat([cluster_i, cluster_j])
            same = cluster[:, None] == cluster
            dropped = dropped | (torch.cat([same[:batch], same[:batch]]) if self.repeat_upper_half else same)
        positive = torch.cat([positive, positive]) / self.temperature  # [2B]
        negatives = (similarity / self.temperature).masked_fill(dropped, float("-inf"))
        if self.hardness:
            negatives = negatives + hard_weights(negatives, self.hardness)
        return (torch.logsumexp(torch.cat([positive[:, None], negatives], dim=1), dim=1) - positive).mean()
