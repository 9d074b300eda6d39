"""Distillation methods: each takes a batch and returns its named terms, to be added to the student's own objective."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import nn

from losses.binarize import binarize
from losses.brcd import ALPHA, BRCDLoss
from losses.crcd import CRCDLoss
from losses.crd import CRDLoss
from losses.kl import KD_TEMPERATURE, KLLoss
from losses.masks import MASK_RULES
from losses.memory import MemoryLoss
from losses.nt_xent import TEMPERATURE
from losses.packd import PACKDLoss
from losses.pkt import PKTLoss
from losses.plain import BCELoss, CosineLoss, MSELoss
from losses.released import ReleasedBRCDLoss
from losses.rkd import RKDLoss
from losses.sp import SPLoss
from losses.sskd import SSKDLoss
from utils.devices import to_device

VARIANTS = ("paper", "released")


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
    alpha: float = ALPHA
    margin: float = 0.5
    clusters: int | str = 10
    mask_rule: str = MASK_RULES[0]
    variant: str = VARIANTS[0]
    hardness: float = 0.0
    mask: bool = True
    cluster: bool = True
    offset: bool = True
    false_negatives: bool = True
    individual: bool = True
    structural: bool = True


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
    """BRCD on a batch: the masks of the images' clusters, and the clusters of their augmentations."""

    cluster: torch.Tensor
    centroids: torch.Tensor
    masks: torch.Tensor

    def __init__(self, knowledge: Knowledge, options: BRCDOptions = BRCDOptions()):
        super().__init__()
        alpha = 0.0 if not options.individual else 1.0 if not options.structural else options.alpha
        self.released = options.variant == "released"
        self.offset = options.cluster and options.offset
        drop = options.cluster and options.false_negatives
        loss = ReleasedBRCDLoss if self.released else BRCDLoss
        self.loss = loss(options.temperature, alpha, drop, options.hardness)
        masks = knowledge.bit_masks
        masks = torch.zeros_like(masks) if self.released else masks if options.mask else torch.ones_like(masks)
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
    """A loss of the two networks' codes of view i, or its mean over both views: RKD, PKT, SP, KL and plain alignment.

    Args:
        relaxed: the student's logits in place of its codes.
    """

    def __init__(self, loss: nn.Module, both_views: bool, relaxed: bool):
        super().__init__()
        self.loss, self.views, self.relaxed = loss, (0, 1)[: 1 + both_views], relaxed

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        seen = [(batch.student[v], binarize(batch.teacher[v])) for v in self.views]
        terms = [self.loss(student if self.relaxed else binarize(student), teacher) for student, teacher in seen]
        return {"distillation": torch.stack(terms).mean()}


def draw_others(index: torch.Tensor, count: int, n_data: int, draw: torch.Generator | None) -> torch.Tensor:
    """[B] -> [B, count] positions among the training images, uniform, never the image's own."""
    others = to_device(torch.randint(n_data - 1, (len(index), count), generator=draw), index.device)
    return others + (others >= index[:, None])


class WithMemory(nn.Module):
    """A loss that contrasts codes of view i with memories of other images: CRD, CRCD and PACKD.

    Args:
        own_first: whether the loss wants each image's own position before those of the others.
    """

    def __init__(self, loss: MemoryLoss | PACKDLoss, n_negatives: int, own_first: bool):
        super().__init__()
        self.loss, self.n_negatives, self.own_first = loss, n_negatives, own_first

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        others = draw_others(batch.index, self.n_negatives, self.loss.n_data, batch.draw)
        contrast = torch.cat([batch.index[:, None], others], dim=1) if self.own_first else others
        student, teacher = binarize(batch.student[0]), binarize(batch.teacher[0])
        return {"distillation": self.loss(student, teacher, batch.index, contrast)}


class OnRotations(nn.Module):
    """SSKD: codes of a view and its three rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = SSKDLoss()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student, teacher = (
            binarize(rotated).transpose(0, 1).flatten(0, 1)  # [4, B, b] -> [4 B, b]
            for rotated in (batch.student_rotated, batch.teacher_rotated)
            if rotated is not None
        )
        return {"distillation": self.loss(student, teacher)}


@dataclass(frozen=True)
class Method:
    """How a method is built, and what it needs prepared.

    Attributes:
        build: keywords of ``build_method`` -> module from Batch to its terms.
        clusters: it needs the teacher's clusters and masks.
        rotations: it needs rotated views.
        own: options of the command line that no other method heeds.
        kd_weight: of its term, unless told otherwise: the best on validation queries (results/details/tuning.md).
    """

    build: Callable[..., nn.Module]
    clusters: bool = False
    rotations: bool = False
    own: frozenset[str] = frozenset()
    kd_weight: float = 1.0


def _on_codes(
    loss: Callable[..., nn.Module], kd_weight: float, relaxed: bool = False, own: frozenset[str] = frozenset()
) -> Method:
    return Method(
        lambda both_views, **more: OnCodes(loss(**{name: more[name] for name in own}), both_views, relaxed),
        own=own | {"both_views"},
        kd_weight=kd_weight,
    )


def _with_memory(
    loss: Callable[..., MemoryLoss | PACKDLoss], kd_weight: float, own_first: bool, **fixed: int
) -> Method:
    return Method(
        lambda bits, n_data, **_: WithMemory(loss(bits, bits, n_data, **fixed), NEGATIVES, own_first),
        kd_weight=kd_weight,
    )


NEGATIVES = 500
METHODS: dict[str, Method] = {
    "none": Method(lambda **_: NoDistillation()),
    "rkd": _on_codes(RKDLoss, 3),
    "pkt": _on_codes(PKTLoss, 3000),
    "sp": _on_codes(SPLoss, 300),
    "kl": _on_codes(lambda kd_temperature: KLLoss(kd_temperature), 3, own=frozenset({"kd_temperature"})),
    "bce": _on_codes(BCELoss, 1, relaxed=True),
    "mse": _on_codes(MSELoss, 10, relaxed=True),
    "cosine": _on_codes(CosineLoss, 10),
    "crd": _with_memory(CRDLoss, 0.03, own_first=True, n_negatives=NEGATIVES),
    "sskd": Method(lambda **_: OnRotations(), rotations=True, own=frozenset({"rotated_views"}), kd_weight=100),
    "crcd": _with_memory(CRCDLoss, 0.1, own_first=True, n_negatives=NEGATIVES),
    "packd": _with_memory(PACKDLoss, 0.03, own_first=False),
    "brcd": Method(
        lambda knowledge, options, **_: BRCD(knowledge, options),
        clusters=True,
        own=frozenset(f.name for f in fields(BRCDOptions)) - {"temperature"},  # which is the student's own too
    ),
}


def build_method(
    name: str,
    bits: int,
    n_data: int,
    knowledge: Knowledge | None = None,
    options: BRCDOptions = BRCDOptions(),
    both_views: bool = False,
    kd_temperature: float = KD_TEMPERATURE,
) -> nn.Module:
    """The method ``name`` for codes of ``bits`` and ``n_data`` training images; ``options`` are BRCD's."""
    return METHODS[name].build(
        bits=bits,
        n_data=n_data,
        knowledge=knowledge,
        options=options,
        both_views=both_views,
        kd_temperature=kd_temperature,
    )
