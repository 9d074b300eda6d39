"""Any network of timm's as a backbone, by its pretrained_cfg; random weights, tiny networks."""

import hashlib
import json

import numpy as np
import pytest
import timm
import torch
from conftest import digits
from safetensors.torch import save_file
from torch import nn

from data import digits as digits_data
from data.features import Extractor
from models.backbones import IMAGENET, FrozenBackbone, backbone_name, build_backbone, check_size
from models.trained import read_run
from utils.errors import UserError

VIT, CONV = "timm:test_vit", "timm:test_efficientnet"


class Keys:
    """A cache that keeps the names of its entries and nothing else."""

    def __init__(self):
        self.names = []

    def get(self, facts: dict, rows: int, dim: int, *_):
        self.names.append(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32])
        return np.zeros((rows, dim))


def keys_of(monkeypatch, name: str, **how) -> list[str]:
    """The cache's keys of evaluation features and of two views."""
    monkeypatch.setattr("data.features.engine_version", lambda engine: "engine")
    network = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
    backbone = FrozenBackbone(name, network, IMAGENET, "pooled", 4, pretrained=False, **how)
    cache = Keys()
    extractor = Extractor(digits_data.load(limit=12), backbone, torch.device("cpu"), cache, 64, "torch", "float32")
    extractor.evaluation(extractor.data.train), extractor.bank(2)
    return cache.names


def test_keys_of_the_other_networks_are_those_before_there_was_timm(monkeypatch):
    """Made by commit a17760f: whoever has features in a cache keeps them."""
    assert keys_of(monkeypatch, "resnet18") == ["eb521d8e022a11d80939158155b400e1", "a84d443ae78b088b1f414deffbb941b7"]


def test_keys_differ_where_transforms_do(monkeypatch):
    keys = [keys_of(monkeypatch, "timm:net", crop_pct=crop) for crop in (0.875, 0.9, 0.875)]
    assert keys[0] == keys[2] and keys[0][0] != keys[1][0]


@pytest.mark.parametrize("name", [VIT, CONV, "timm:test_convnext2", "timm:vit_small_patch14_dinov2"])
def test_a_network_is_prepared_as_its_pretrained_cfg_says(name):
    cfg, backbone = timm.get_pretrained_cfg(name.removeprefix("timm:")), build_backbone(name, "random")
    assert (backbone.size, backbone.crop_pct, backbone.pretrained) == (cfg.input_size[1], cfg.crop_pct, False)
    known = backbone.describe()
    assert (known["mean"], known["std"], known["crop_pct"]) == (list(cfg.mean), list(cfg.std), cfg.crop_pct)
    seen = []
    backbone.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        rows = backbone(torch.full((2, 3, 224, 224), 51, dtype=torch.uint8))
    assert rows.shape == (2, backbone.dim) and torch.isfinite(rows).all()
    torch.testing.assert_close(seen[0][0, :, 0, 0], (0.2 - torch.tensor(cfg.mean)) / torch.tensor(cfg.std))


def test_pooled_features_enter_timms_classifier():
    whole, pooled = (build_backbone(CONV, "random", features) for features in ("logits", "auto"))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(whole.network.classifier(pooled(images)), whole(images))
    assert (whole.dim, pooled.dim, pooled.features) == (1000, 256, "pooled")


def test_weights_from_files(tmp_path):
    state = timm.create_model("test_efficientnet").state_dict()
    torch.save(state, tmp_path / "w.pth"), save_file(state, tmp_path / "w.safetensors")
    one, two = (build_backbone(CONV, str(tmp_path / f)) for f in ("w.pth", "w.safetensors"))
    assert one.sha256 == two.sha256 != build_backbone(CONV, "random").sha256 and one.pretrained
    for name in (VIT, "timm:test_convnext", "timm:dla34"):  # timm's own loader would take anything for a DLA
        with pytest.raises(UserError, match=f"w.pth: does not fit {name}"):
            build_backbone(name, str(tmp_path / "w.pth"))
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"bad.safetensors: not a weights file"):
        build_backbone(CONV, str(tmp_path / "bad.safetensors"))


def test_without_a_network_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = r"timm:test_vit could not be downloaded .*huggingface.co/timm/test_vit.r160_in1k\).*--weights FILE"
    with pytest.raises(UserError, match=said):
        build_backbone(VIT)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: build_backbone("timm:nonet"), "timm .* has no network 'nonet'; near: "),
        (lambda: build_backbone("timm:resnet50.bad"), "has no network 'resnet50.bad'"),
        (
            lambda: build_backbone("timm:vit_small_patch14_dinov2", "random", "logits"),
            "has no classifier, so no logits",
        ),
        (lambda: check_size("timm:beit_base_patch16_224", 64), "cannot take images of 64 pixels .*224 always works"),
        (lambda: check_size("timm:deepseek_vit_412m_enc", 392), "does not give one row of features an image"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_names_and_sizes_that_are_taken():
    assert backbone_name(VIT) == VIT and backbone_name("resnet18") == "resnet18"
    check_size(VIT, 96), check_size(CONV, 160)


@pytest.mark.slow
def test_from_training_to_an_exported_card(cli, shared, tmp_path):
    """Each network at its own size, where nothing else is said: it is in the run and on the card."""
    common = [word for word in digits(shared, "--epochs", 2) if word not in ("--size", "64")]
    words = ["--backbone", VIT, "--weights", "random", "--bits", 16, "--run-dir", tmp_path / "t"]
    student = ["--teacher", tmp_path / "t", "--student", CONV, "--student-weights", "random", "--clusters", 3]
    for command in (
        ["train_teacher.py", *common, *words],
        ["distill.py", *common, *student, "--run-dir", tmp_path / "s"],
        ["evaluate.py", "--run", tmp_path / "s", "--pictures", 0],
        ["export.py", "--run", tmp_path / "s", "--out", tmp_path / "e"],
    ):
        code, out = cli(*command)
        assert code == 0, out
        assert "evaluate" not in command[0] or "random backbone weights" in out
    run, card = read_run(tmp_path / "s"), json.loads((tmp_path / "e/card.json").read_text())
    assert run.size == run.teacher.size == card["size"] == 160 and card["crop_pct"] == 0.95
    assert run.facts["backbone"]["mean"] == [0.485, 0.456, 0.406] and run.teacher.facts["backbone"]["mean"] == [0.5] * 3
    assert card["backbone"] == CONV and card["licence"] == "none: random weights"
    assert json.loads((tmp_path / "s/test.json").read_text())["pretrained"] is False
