"""From logits to bits, with a gradient."""

import torch


def binarize(logits: torch.Tensor) -> torch.Tensor:
    """Codes in {-1, +1} of logits [B, b]: z = sign(sigmoid(s) - 0.5), sign(0) = +1.

    The gradient passes the sign unchanged and goes through the sigmoid: the straight-through estimator (Bengio et al.,
    arXiv 1308.3432) as CIBHash uses it (arXiv 2105.06138).
    """
    p = torch.sigmoid(logits)
    return torch.where(logits >= 0, 1.0, -1.0).to(p.dtype) + (p - p.detach())
