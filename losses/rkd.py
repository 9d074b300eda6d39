"""RKD: relational knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import nn


def distances(rows: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of every two rows, [B, b] -> [B, B], divided by the mean of the positive ones."""
    squares = rows.pow(2).sum(dim=1)
    squared = (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=1e-12)
    distance = squared.sqrt() * (1 - torch.eye(len(rows), device=rows.device))
    positive = distance > 0
    return distance / (distance.sum() / positive.sum().clamp(min=1)).clamp(min=1e-12)


def angles(rows: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle at k between i and j for all triples, [B, b] -> [B, B, B] (k, i, j).

    Equal rows have no direction between them: their cosines are 0 and so is their gradient. (Dividing by a small
    epsilon would multiply it by a trillion, and codes of a batch are often equal.)
    """
    edges = rows[None] - rows[:, None]  # [B, B, b]
    squared = edges.pow(2).sum(dim=2, keepdim=True)
    edges = edges * (squared > 0) * squared.clamp(min=1e-12).rsqrt()
    return edges @ edges.transpose(1, 2)


class RKDLoss(nn.Module):
    """Distances and angles among a batch's rows follow the teacher's (Park et al., CVPR 2019, arXiv 1904.05068).

    Args:
        distance_weight, angle_weight: 25 and 50, as in the paper.

    Example:
        >>> RKDLoss()(torch.randn(8, 64), torch.randn(8, 64))
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0):
        super().__init__()
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """student, teacher: [B, .] -> scalar; their widths may differ."""
        student, teacher = student.float(), teacher.float()
        with torch.no_grad():
            known_distances, known_angles = distances(teacher), angles(teacher)
        distance = F.smooth_l1_loss(distances(student), known_distances)
        return self.distance_weight * distance + self.angle_weight * F.smooth_l1_loss(angles(student), known_angles)
