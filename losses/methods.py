"""Distillation methods: each takes a batch and returns its named terms, to be added to the student's own objective."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from losses.binarize import binarize
from losses.brcd import BRCDLoss


@dataclass(frozen=True)
class Batch:
    """What a method sees of B images, two views each.

    Attributes:
        index: [B] positions among the training images.
        student, teacher: [2, B, b] logits of views i and j; the teacher's carry no gradient.
    """

    index: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor


@dataclass(frozen=True)
class Knowledge:
    """What the teacher knows of the training images before training starts.

    Attributes:
        cluster: [n] cluster of each image's code.
        centroids: [K, b].
        bit_masks: [K, b] of 0/1.
    """

    cluster: torch.Tensor
    centroids: torch.Tensor
    bit_masks: torch.Tensor


class NoDistillation(nn.Module):
    """The student learns from its own objective alone."""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {}


def nearest_centroid(codes: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """[B, b], [K, b] -> [B], Euclidean; the first of equals."""
    return torch.cdist(codes.float(), centroids.float()).argmin(dim=1)


class BRCD(nn.Module):
    """BRCD with its parts, each of which can be switched off.

    Args:
        knowledge: the teacher's clusters and masks.
        temperature, alpha: of the loss.
        mask: contrast masked codes; off, all bits count.
        offset: augmentations in another cluster than their image lose the structural term.
        false_negatives: pairs of one cluster are no negatives.
        individual, structural: the two parts of the positive; off means alpha 0 or 1. Without the individual part an
            offset augmentation, having no structural part, still keeps it.
        released: the released code's behaviour: an all-zero mask, offsets judged on masked codes, and the repeated
            half of the same-cluster matrix.
    """

    def __init__(self, knowledge: Knowledge, temperature: float = 0.3, alpha: float = 0.8, mask: bool = True,
                 offset: bool = True, false_negatives: bool = True, individual: bool = True, structural: bool = True,
                 released: bool = False):
        super().__init__()
        alpha = 0.0 if not individual else 1.0 if not structural else alpha
        self.loss = BRCDLoss(temperature, alpha, false_negatives, repeat_upper_half=released)
        masks = knowledge.bit_masks
        masks = torch.zeros_like(masks) if released else masks if mask else torch.ones_like(masks)
        self.offset, self.released = offset, released
        for name, tensor in (("cluster", knowledge.cluster), ("centroids", knowledge.centroids), ("masks", masks)):
            self.register_buffer(name, tensor, persistent=False)  # saved with the run, not with every checkpoint

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        cluster_i = self.cluster[batch.index]  # [B]
        bit_mask = self.masks[cluster_i].float()  # [B, b]
        teacher_i, teacher_j = binarize(batch.teacher)
        judged = teacher_j * bit_mask if self.released else teacher_j
        cluster_j = nearest_centroid(judged, self.centroids) if self.offset else cluster_i
        return {
            "distillation": self.loss(binarize(batch.student[0]), teacher_i, teacher_j, cluster_i, cluster_j, bit_mask)
        }


# Each builds its method from the command line's arguments and the teacher's knowledge.
METHODS: dict[str, Callable[..., nn.Module]] = {
    "none": lambda args, knowledge: NoDistillation(),
    "brcd": lambda args, knowledge: BRCD(
        knowledge, args.temperature, args.alpha, mask=args.mask, offset=args.cluster and args.offset,
        false_negatives=args.cluster and args.false_negatives, individual=args.individual,
        structural=args.structural, released=args.variant == "released",
    ),
}  # fmt: skip
NEEDS_CLUSTERS = {"brcd"}
