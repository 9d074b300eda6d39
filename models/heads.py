"""The trained part: a small head from frozen features to bits, and the checkpoint that describes itself."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from models.backbones import FrozenBackbone
from utils.checkpoints import read_checkpoint, save_atomically
from utils.errors import UserError, first_line
from utils.seeds import seeded

KIND, FORMAT = "brcd-hash-head", 1
HEADS = ("linear", "mlp")
MOST_BITS = 1 << 16


class Sliceable(Protocol):
    """Features [n, dim] in order: a tensor, an array, a memory map, or what slices like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> torch.Tensor | np.ndarray: ...


class HashHead(nn.Module):
    """Features [B, dim] -> logits [B, bits]: one linear layer, or the 1000 class logits' Linear-ReLU-Linear.

    Args:
        dim: width of the features.
        bits: code length.
        kind: "linear", or "mlp" (a hidden layer as wide as the features).
    """

    def __init__(self, dim: int, bits: int, kind: str = "linear", seed: int = 0):
        super().__init__()
        if bits < 1:
            raise UserError(f"--bits {bits}: a code needs at least 1 bit")
        if dim < 1:
            raise UserError(f"a head needs at least 1 feature, not {dim}")
        if kind not in HEADS:
            raise UserError(f"unknown head '{kind}'; there are: {', '.join(HEADS)}")
        self.config = {"dim": dim, "bits": bits, "kind": kind}
        with seeded("head", seed):
            hidden = [nn.Linear(dim, dim), nn.ReLU()] if kind == "mlp" else []
            self.layers = nn.Sequential(*hidden, nn.Linear(dim, bits))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)

    @torch.no_grad()
    def encode(self, features: Sliceable, batch_size: int = 8192) -> torch.Tensor:
        """Features [n, dim] -> codes int8 [n, bits] in {-1, +1}, on the CPU."""
        device = next(self.parameters()).device
        codes = []
        for start in range(0, len(features), batch_size):
            rows = torch.as_tensor(features[start : start + batch_size]).to(device).float()
            codes.append(torch.where(self(rows) >= 0, 1, -1).to(torch.int8).cpu())
        return torch.cat(codes)


def student_head(backbone: FrozenBackbone) -> str:
    """The paper's head: an MLP on the class logits of EfficientNet and MobileNet, one layer on pooled features."""
    return "mlp" if backbone.features == "logits" else "linear"


def save_head(path: Path, head: HashHead, **facts: object) -> None:
    """Write a checkpoint: the head, its configuration, and whatever else describes it (plain values)."""
    state = {name: tensor.detach().cpu() for name, tensor in head.state_dict().items()}
    save_atomically(path, {"kind": KIND, "format": FORMAT, "config": head.config, "state": state, **facts})


def load_head(path: Path) -> tuple[HashHead, dict]:
    """(head in eval mode, the checkpoint's facts). Raises UserError as ``read_checkpoint`` does."""
    content = read_checkpoint(path, KIND, FORMAT)
    try:
        head = HashHead(**content["config"])
        head.load_state_dict(content["state"])
    except (KeyError, TypeError, AttributeError, RuntimeError, UserError) as error:
        raise UserError(f"{path}: incomplete checkpoint ({first_line(error)}); train again, or copy it again") from None
    if not all(tensor.isfinite().all() for tensor in content["state"].values()):
        raise UserError(f"{path}: its head has weights that are not finite; train it again")
    return head.eval(), content
