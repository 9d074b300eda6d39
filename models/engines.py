"""What runs a frozen backbone: PyTorch, torch.compile or OpenVINO, on the device that there is."""

import copy
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from models.backbones import FrozenBackbone
from utils import distributed
from utils.devices import to_device
from utils.errors import UserError
from utils.machine import cores

ENGINES = ("auto", "torch", "compile", "openvino")
CHECKED, FAR = 16, 0.2  # images, and the relative distance from float32 that half precision may have
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class TorchEngine:
    """uint8 [B, 3, S, S] -> features float32 [B, D], by PyTorch in channels_last, autocast to ``precision``.

    Autocast would cast frozen weights anew for every batch, so a copy of the network has them cast once.
    ``compiled``: by torch.compile, which takes a minute at the first batch and needs a C++ compiler (CPU) or Triton.

    Raises:
        UserError: torch.compile cannot compile here.
    """

    def __init__(self, backbone: nn.Module, device: torch.device, precision: torch.dtype, compiled: bool = False):
        if precision != torch.float32:
            backbone = with_weights_in(backbone, precision)
        self.module = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.precision = device, precision
        if compiled:
            self.module = torch.compile(self.module)

    @torch.no_grad()  # not inference_mode, whose tensors no head could be trained on
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = to_device(images, self.device).to(memory_format=torch.channels_last)
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                return self.module(images).float()
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise UserError(f"--engine compile does not work here ({reason}); use --engine torch") from None


def with_weights_in(backbone: nn.Module, precision: torch.dtype) -> nn.Module:
    """A copy whose linear and convolution weights have ``precision``; what autocast keeps in float32 stays."""
    network = copy.deepcopy(backbone)
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(precision)
    return network


class OpenVINOEngine:
    """The same by OpenVINO, on a CPU several times faster than eager PyTorch; batches of one fixed size inside."""

    def __init__(self, backbone: nn.Module, size: int, precision: torch.dtype, batch_size: int):
        import openvino

        example = torch.zeros(2, 3, size, size, dtype=torch.uint8)  # small: tracing runs it in eager mode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter traces, and tracing warns of what it is
            model = openvino.convert_model(backbone.cpu(), example_input=example)
        model.reshape([batch_size, 3, size, size])
        self.model, self.batch_size = model, batch_size
        self.compiled = openvino.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[
                    precision
                ],
                "PERFORMANCE_HINT": "LATENCY",  # one stream that uses every core, or this process's share of them
                "INFERENCE_NUM_THREADS": max(1, cores() // distributed.local_size()) if distributed.size() > 1 else 0,
            },
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in images.cpu().split(self.batch_size):
            short = self.batch_size - len(part)
            padded = torch.cat([part, part[:1].expand(short, -1, -1, -1)]) if short else part
            features = self.compiled(padded.contiguous().numpy())[0]
            parts.append(torch.from_numpy(features[: len(part)].copy()))
        return torch.cat(parts)


def check_precision(
    engine: Callable[[torch.Tensor], torch.Tensor], backbone: FrozenBackbone, device: torch.device, images: torch.Tensor
) -> None:
    """Hold an engine of half precision against float32 on a few images.

    Raises:
        UserError: features that are not finite, or ``FAR`` from those in float32.
    """
    images = images[:CHECKED]
    exact, half = (run(images).cpu() for run in (TorchEngine(backbone, device, torch.float32), engine))
    apart = ((half - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-12)).max().item()  # NaN where one is
    if not apart < FAR:
        raise UserError(
            f"in half precision the features of {backbone.name} are {apart:.0%} from those in float32 (most that is "
            f"taken: {FAR:.0%}); use --precision float32"
        )


def choose_engine(engine: str, precision: str, device: torch.device) -> tuple[str, torch.dtype]:
    """What "auto" means here: (engine, dtype). On a CPU that is OpenVINO where it is installed, elsewhere PyTorch.

    On CUDA auto is float16, elsewhere float32: on a CPU bfloat16 is faster, but moves EfficientNet-Lite's features by
    5 % (results/benchmarks/features.json).
    """
    if engine == "openvino" and device.type != "cpu":
        raise UserError("--engine openvino runs on the CPU; use --device cpu with it, or --engine torch")
    there = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and not there:
        raise UserError("--engine openvino: it is not installed; pip install openvino, or use --engine torch")
    if engine == "auto":
        engine = "openvino" if device.type == "cpu" and there else "torch"
    if precision == "auto":
        precision = "float16" if device.type == "cuda" else "float32"
    return engine, getattr(torch, precision)


def engine_version(engine: str) -> str:
    """Name and version: another version's features differ in their last bits."""
    package = "torch" if engine == "compile" else engine
    return f"{engine} {importlib.metadata.version(package)}"


def make_engine(
    backbone: nn.Module, size: int, device: torch.device, engine: str, precision: torch.dtype, batch_size: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    if engine == "openvino":
        return OpenVINOEngine(backbone, size, precision, batch_size)
    return TorchEngine(backbone, device, precision, engine == "compile")
