"""ITQ: the training-free control, PCA and a rotation of frozen features."""

import torch

from models.heads import HashHead
from utils.errors import UserError
from utils.seeds import generator

ITQ = "itq"  # its name among the hashing objectives
STEPS = 50


@torch.no_grad()
def itq_head(features: torch.Tensor, bits: int, seed: int = 0) -> HashHead:
    """A linear head whose codes are ITQ's (Gong & Lazebnik, CVPR 2011).

    Args:
        features: [n, D] of the training images.

    Raises:
        UserError: more bits than features, or than images.
    """
    if bits > min(features.shape):
        raise UserError(
            f"--bits {bits}: ITQ gives at most {min(features.shape)} bits here "
            f"({features.shape[0]} images, {features.shape[1]} features)"
        )
    features = features.double()
    mean = features.mean(dim=0)
    directions = torch.linalg.svd(features - mean, full_matrices=False).Vh[:bits].T  # [D, b] principal axes
    projected = (features - mean) @ directions  # [n, b]
    rotation = torch.linalg.qr(torch.randn(bits, bits, generator=generator("itq", seed), dtype=torch.double)).Q
    for _ in range(STEPS):
        codes = torch.where(projected @ rotation >= 0, 1.0, -1.0).double()
        u, _, vh = torch.linalg.svd(codes.T @ projected)
        rotation = (u @ vh).T  # orthogonal Procrustes: the rotation that brings the projections nearest to the codes
    head = HashHead(features.shape[1], bits, "linear")
    weight, bias = head.parameters()
    weight.copy_((directions @ rotation).T)
    bias.copy_(-(mean @ directions @ rotation))
    return head
