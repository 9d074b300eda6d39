"""Distillation methods: each takes a batch and returns its named terms, to be added to the student's own objective."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from losses.binarize import binarize
from losses.brcd import BRCDLoss
from losses.crcd import CRCDLoss
from losses.crd import CRDLoss
from losses.kl import KLLoss
from losses.packd import PACKDLoss
from losses.pkt import PKTLoss
from losses.rkd import RKDLoss
from losses.sp import SPLoss
from losses.sskd import SSKDLoss


@dataclass(frozen=True)
class Batch:
    """What a method sees of B images, two views each.

    Attributes:
        index: [B] positions among the training images.
        student, teacher: [2, B, b] logits of views i and j; the teacher's carry no gradient.
        draw: the epoch's generator, for methods that sample.
        student_rotated, teacher_rotated: [4, B, b] logits of a view and its three rotations, where asked for.
    """

    index: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor
    draw: torch.Generator | None = None
    student_rotated: torch.Tensor | None = None
    teacher_rotated: torch.Tensor | None = None


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

    def __init__(
        self,
        knowledge: Knowledge,
        temperature: float = 0.3,
        alpha: float = 0.8,
        mask: bool = True,
        offset: bool = True,
        false_negatives: bool = True,
        individual: bool = True,
        structural: bool = True,
        released: bool = False,
    ):
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


class OnCodes(nn.Module):
    """A loss of the two networks' codes of view i: RKD, PKT, SP and KL."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"distillation": self.loss(binarize(batch.student[0]), binarize(batch.teacher[0]))}


def draw_others(index: torch.Tensor, count: int, n_data: int, draw: torch.Generator) -> torch.Tensor:
    """[B] -> [B, count] positions among the training images, uniform, never the image's own."""
    others = torch.randint(n_data - 1, (len(index), count), generator=draw).to(index.device)
    return others + (others >= index[:, None])


class WithMemory(nn.Module):
    """A loss that contrasts codes of view i with memories of other images: CRD, CRCD and PACKD.

    Args:
        own_first: whether the loss wants each image's own position before those of the others.
    """

    def __init__(self, loss: nn.Module, n_negatives: int, own_first: bool):
        super().__init__()
        self.loss, self.n_negatives, self.own_first = loss, n_negatives, own_first

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        others = draw_others(batch.index, self.n_negatives, self.loss.n_data, batch.draw)
        contrast = torch.cat([batch.index[:, None], others], dim=1) if self.own_first else others
        student, teacher = binarize(batch.student[0]), binarize(batch.teacher[0])
        return {"distillation": self.loss(student, teacher, batch.index, contrast)}


class OnRotations(nn.Module):
    """SSKD: codes of a view and its three rotations."""

    def __init__(self):
        super().__init__()
        self.loss = SSKDLoss()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student, teacher = (
            binarize(rotated).transpose(0, 1).flatten(0, 1)  # [4, B, b] -> [4 B, b]
            for rotated in (batch.student_rotated, batch.teacher_rotated)
        )
        return {"distillation": self.loss(student, teacher)}


@dataclass(frozen=True)
class Method:
    """How a method is built, and what it needs prepared.

    Attributes:
        build: (command line's arguments, Setting) -> module from Batch to its terms.
        clusters: it needs the teacher's clusters and masks.
        rotations: it needs rotated views.
    """

    build: Callable[..., nn.Module]
    clusters: bool = False
    rotations: bool = False


@dataclass(frozen=True)
class Setting:
    """What a method is built for: code length, number of training images, and the teacher's knowledge if it asked."""

    bits: int
    n_data: int
    knowledge: Knowledge | None = None


def _brcd(args, setting: Setting) -> nn.Module:
    return BRCD(
        setting.knowledge,
        args.temperature,
        args.alpha,
        mask=args.mask,
        offset=args.cluster and args.offset,
        false_negatives=args.cluster and args.false_negatives,
        individual=args.individual,
        structural=args.structural,
        released=args.variant == "released",
    )


def _memory(loss: Callable[..., nn.Module], own_first: bool, **options) -> Callable[..., nn.Module]:
    return lambda args, setting: WithMemory(
        loss(setting.bits, setting.bits, setting.n_data, **options), NEGATIVES, own_first
    )


NEGATIVES = 500
METHODS: dict[str, Method] = {
    "none": Method(lambda args, setting: NoDistillation()),
    "rkd": Method(lambda args, setting: OnCodes(RKDLoss())),
    "pkt": Method(lambda args, setting: OnCodes(PKTLoss())),
    "sp": Method(lambda args, setting: OnCodes(SPLoss())),
    "kl": Method(lambda args, setting: OnCodes(KLLoss())),
    "crd": Method(_memory(CRDLoss, own_first=True, n_negatives=NEGATIVES)),
    "sskd": Method(lambda args, setting: OnRotations(), rotations=True),
    "crcd": Method(_memory(CRCDLoss, own_first=True, n_negatives=NEGATIVES)),
    "packd": Method(_memory(PACKDLoss, own_first=False)),
    "brcd": Method(_brcd, clusters=True),
}
