"""The device to compute on, and how exactly it is asked to compute."""

import os

import torch

from utils import distributed
from utils.errors import UserError

KINDS = ("cpu", "cuda", "mps")
CHOICES = "auto, cpu, cuda, cuda:N or mps"


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else Apple's GPU, else the CPU. CUDA is set up exact.

    Raises:
        UserError: no such device, or more processes than GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; use {CHOICES}") from None
    if device.type not in KINDS:
        raise UserError(f"device '{name}' is not supported; use {CHOICES}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: no Apple GPU can be used here; use --device auto or cpu")
    return _cuda(name, device) if device.type == "cuda" else device


def _cuda(name: str, device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA GPU can be used here; use --device auto or cpu")
    count = torch.cuda.device_count()
    index = distributed.local_rank() if device.index is None else device.index  # not all processes on the first GPU
    if device.index is None and distributed.local_size() > count:
        raise UserError(
            f"{distributed.local_size()} processes share {count} GPUs; use --nproc_per_node gpu, or --device cpu"
        )
    if index >= count:
        raise UserError(f"--device {name}: this machine's GPUs are cuda:0 to cuda:{count - 1}")
    be_exact()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def be_exact() -> None:
    """CUDA computes float32 in float32 (its convolutions take TF32 by default) and by kernels that give the same bits
    each time; PyTorch warns of an operation that has none. Called before the first use of a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A launch for every tensor, and none is read unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def numerics() -> dict:
    """How CUDA is asked to compute, for a run's record."""
    return {
        "float32_matmul": torch.backends.cuda.matmul.fp32_precision,
        "float32_convolution": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` there; a CUDA GPU is sent it through pinned memory, so that Python does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
