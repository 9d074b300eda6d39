"""The trained part: a small head from frozen features to bits, and the checkpoint that describes itself."""

from pathlib import Path

import torch
from torch import nn

from models.backbones import FrozenBackbone, build_backbone, set_batch_norm_statistics
from utils.errors import UserError
from utils.files import read_checkpoint, save_atomically
from utils.runs import read_args
from utils.seeds import seeded

KIND, FORMAT = "brcd-hash-head", 1
TEACHER_FILE = "best_map.pt"  # in a teacher's run folder


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
        self.config = {"dim": dim, "bits": bits, "kind": kind}
        with seeded("head", seed):
            layers = {
                "linear": lambda: [nn.Linear(dim, bits)],
                "mlp": lambda: [nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, bits)],
            }
            if kind not in layers:
                raise UserError(f"unknown head '{kind}'; there are: auto, {', '.join(layers)}")
            self.layers = nn.Sequential(*layers[kind]())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)

    @torch.no_grad()
    def encode(self, features, batch_size: int = 8192) -> torch.Tensor:
        """Features [n, dim] (tensor, array or memory map) -> codes int8 [n, bits] in {-1, +1}, on the CPU."""
        device = next(self.parameters()).device
        codes = []
        for start in range(0, len(features), batch_size):
            rows = torch.as_tensor(features[start : start + batch_size]).to(device).float()
            codes.append(torch.where(self(rows) >= 0, 1, -1).to(torch.int8).cpu())
        return torch.cat(codes)


def student_head(backbone: FrozenBackbone) -> str:
    """The paper's head: an MLP on the class logits of EfficientNet and MobileNet, one layer on pooled features."""
    return "mlp" if backbone.features == "logits" else "linear"


def save_head(path: Path, head: HashHead, **facts) -> None:
    """Write a checkpoint: the head, its configuration, and whatever else describes it (plain values)."""
    state = {name: tensor.detach().cpu() for name, tensor in head.state_dict().items()}
    save_atomically(path, {"kind": KIND, "format": FORMAT, "config": head.config, "state": state, **facts})


def load_head(path: Path) -> tuple[HashHead, dict]:
    """(head in eval mode, the checkpoint's facts). Raises UserError as ``read_checkpoint`` does."""
    content = read_checkpoint(path, KIND)
    try:
        head = HashHead(**content["config"])
        head.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: incomplete checkpoint ({error})") from None
    return head.eval(), content


def load_teacher(folder: Path) -> tuple[HashHead, dict]:
    """A finished teacher run's best head and its facts.

    Raises:
        UserError: no run there, unfinished, not a teacher's, or a damaged checkpoint.
    """
    read_args(folder)
    head, facts = load_head(Path(folder) / TEACHER_FILE)
    if facts.get("role") != "teacher":
        raise UserError(f"{folder}: a {facts.get('role')}'s run, not a teacher's")
    return head, facts


def rebuild_backbone(facts: dict, weights: str) -> FrozenBackbone:
    """The backbone that a checkpoint's head was trained on.

    Raises:
        UserError: the weights found now are not those (by hash).
    """
    known = facts["backbone"]
    backbone = build_backbone(known["name"], weights, known["features"])
    if facts.get("batch_norm"):
        set_batch_norm_statistics(backbone, facts["batch_norm"])
    if backbone.sha256 != known["sha256"]:
        raise UserError(
            f"the weights of {known['name']} ({weights}) are not those that its head was trained on "
            f"(hash {backbone.sha256[:12]}, then {known['sha256'][:12]}); pass the right file"
        )
    return backbone
