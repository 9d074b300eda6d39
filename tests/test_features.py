"""The feature cache, engines and backbones."""

import errno
import json
import os
import re
import shutil
import signal
import threading
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from data.transforms import eval_transform
from models.backbones import (
    BACKBONES,
    IMAGENET,
    FrozenBackbone,
    batch_norm_statistics,
    build_backbone,
    hash_state,
    recalibrate_batch_norm,
    set_batch_norm_statistics,
)
from models.engines import OpenVINOEngine, TorchEngine, check_precision, choose_engine, make_engine
from models.heads import HashHead, student_head
from utils import devices, distributed
from utils.cache import FeatureCache, entries, prune
from utils.devices import pick_device
from utils.errors import UserError
from utils.options import parse_size
from utils.pipeline import loaded, one_late
from utils.seeds import generator

CPU = torch.device("cpu")


def rows_from(start: int, stop: int, dim: int = 3, step: int = 4):
    """Batches of rows whose every value is the row's number."""
    for first in range(start, stop, step):
        yield torch.arange(first, min(first + step, stop)).float()[:, None].expand(-1, dim)


def test_a_second_reader_extracts_nothing(tmp_path):
    cache, calls = FeatureCache(tmp_path), []

    def extract(start):
        calls.append(start)
        return rows_from(start, 10)

    first = cache.get({"a": 1}, 10, 3, extract, "t")
    second = cache.get({"a": 1}, 10, 3, extract, "t")
    assert (
        calls == [0] and first.dtype == np.float16 and (first[:, 0] == np.arange(10)).all() and (first == second).all()
    )
    assert not first.flags.writeable
    cache.get({"a": 2}, 10, 3, extract, "t")
    assert calls == [0, 0] and len(entries(tmp_path)) == 2


def test_more_rows_are_appended(tmp_path):
    cache, calls = FeatureCache(tmp_path), []

    def extract(start):
        calls.append(start)
        return rows_from(start, 10 if start == 0 else 25)

    cache.get({}, 10, 3, extract, "t")
    assert (cache.get({}, 25, 3, extract, "t")[:, 1] == np.arange(25)).all() and calls == [0, 10]
    assert len(cache.get({}, 7, 3, extract, "t")) == 7 and calls == [0, 10]


def test_fewer_rows_than_asked_for_are_an_error_and_no_entry(tmp_path):
    with pytest.raises(RuntimeError, match="t: 4 rows came, 10 were asked for"):
        FeatureCache(tmp_path).get({"a": 1}, 10, 3, lambda start: [torch.ones(4, 3)], "t")
    calls = []

    def extract(start):
        calls.append(start)
        yield torch.arange(start, 10)[:, None].expand(-1, 3).float()

    assert (FeatureCache(tmp_path).get({"a": 1}, 10, 3, extract, "t")[:, 0] == np.arange(10)).all()
    marker = next(tmp_path.glob("*/rows.json"))
    marker.write_text('{"rows": 10, "checksums": []}')  # sums of fewer blocks than there are rows
    FeatureCache(tmp_path).get({"a": 1}, 10, 3, extract, "t")
    assert calls[-1] == 0 and len(calls) == 2


@pytest.mark.parametrize("marked, started", [(None, 0), (8, 8)])
def test_an_interrupted_extraction_goes_on_and_torn_rows_are_never_read(tmp_path, marked, started):
    cache = FeatureCache(tmp_path)

    def dies(start):
        yield from rows_from(0, 12)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get({}, 20, 3, dies, "t")
    entry = next(tmp_path.iterdir())
    with open(entry / "features.bin", "ab") as file:
        file.write(b"\xff" * 5)  # what a power cut may leave
    if marked:
        kept = (entry / "features.bin").read_bytes()[: marked * 3 * 2]
        (entry / "rows.json").write_text(json.dumps({"rows": marked, "checksums": [zlib.crc32(kept)]}))
    calls = []

    def extract(start):
        calls.append(start)
        return rows_from(start, 20)

    assert (cache.get({}, 20, 3, extract, "t")[:, 2] == np.arange(20)).all() and calls == [started]


@pytest.mark.parametrize("marker", ["x", "10", "{}", '{"rows": 10, "checksums": []}', '{"rows": "a"}', "[1]", "-5"])
def test_an_entry_without_its_marker_is_made_again(tmp_path, marker):
    cache = FeatureCache(tmp_path)
    cache.get({}, 10, 3, lambda start: rows_from(start, 10), "t")
    (next(tmp_path.iterdir()) / "rows.json").write_text(marker)
    assert (cache.get({}, 10, 3, lambda start: rows_from(start, 10), "t")[:, 0] == np.arange(10)).all()


def flip(file, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"12345"),
        lambda file: file.unlink(),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: flip(file, 0),
        lambda file: flip(file, -1),
    ],
)
def test_damaged_features_are_refused_also_where_more_are_asked_for(tmp_path, damage, monkeypatch):
    monkeypatch.setattr("utils.cache.BLOCK", 16)
    cache = FeatureCache(tmp_path)
    cache.get({}, 10, 3, lambda start: rows_from(start, 10), "t")
    damage(next(tmp_path.glob("*/features.bin")))
    for rows in (10, 12):
        with pytest.raises(UserError, match=r"features\.bin: damaged, or its rows\.json; delete .*extracted again"):
            cache.get({}, rows, 3, lambda start, rows=rows: rows_from(start, rows), "t")


def test_blocks_are_checked_as_far_as_they_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.cache.BLOCK", 16)
    cache = FeatureCache(tmp_path)
    for rows in (3, 10, 31):  # an entry that grows keeps the checksums of its whole blocks
        cache.get({}, rows, 3, lambda start, rows=rows: rows_from(start, rows), "t")
    assert (cache.get({}, 31, 3, None, "t")[:, 1] == np.arange(31)).all()
    flip(next(tmp_path.glob("*/features.bin")), -1)
    assert (cache.get({}, 20, 3, None, "t")[:, 1] == np.arange(20)).all()
    with pytest.raises(UserError, match="damaged"):
        cache.get({}, 31, 3, None, "t")


def test_two_processes_extract_once(tmp_path):
    calls, barrier = [], threading.Barrier(2)

    def extract(start):
        calls.append(start)
        return rows_from(start, 50)

    def work():
        barrier.wait()
        FeatureCache(tmp_path).get({}, 50, 3, extract, "t")

    threads = [threading.Thread(target=work) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert calls == [0]


def test_not_finite_features_stop_with_a_reason(tmp_path):
    with pytest.raises(UserError, match="NaN or infinite"):
        FeatureCache(tmp_path).get({}, 4, 3, lambda start: [torch.full((4, 3), float("nan"))], "t")
    assert json.loads(next(tmp_path.glob("*/facts.json")).read_text()) == {"title": "t"} and not list(
        tmp_path.glob("*/rows.json")
    )


def test_a_cache_that_can_only_be_read_serves(tmp_path, monkeypatch):
    FeatureCache(tmp_path).get({}, 10, 4, lambda start: rows_from(start, 10, dim=4), "t")

    def refuse(*words):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert len(FeatureCache(tmp_path).get({}, 10, 4, None, "t")) == 10


def test_prune_deletes_the_longest_unused_first(tmp_path):
    cache = FeatureCache(tmp_path)
    for i in range(3):
        cache.get({"i": i}, 10, 4, lambda start: rows_from(start, 10, dim=4), "t")
    for age, entry in enumerate(sorted(entries(tmp_path), key=lambda e: -e["facts"]["i"])):
        os.utime(tmp_path / entry["name"], (age, age))  # entry 2 is the oldest now
    assert [e["facts"]["i"] for e in prune(tmp_path, 170)] == [2]
    assert sorted(e["facts"]["i"] for e in entries(tmp_path)) == [0, 1]
    FeatureCache(tmp_path, limit=80).get({"i": 5}, 10, 4, lambda start: rows_from(start, 10, dim=4), "t")
    assert [e["facts"]["i"] for e in entries(tmp_path)] == [5]


def test_sizes():
    assert [parse_size(t) for t in ("12", "3k", "1.5M", "2G")] == [12, 3000, 1_500_000, 2_000_000_000]


def breaks(number: int) -> int:
    if number == 7:
        raise UserError("what happened")
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_what_processes_make_comes_in_order_and_their_errors_are_said(workers):
    state = torch.get_rng_state()
    assert list(loaded(abs, [(-n,) for n in range(50)], workers)) == list(range(50))
    assert list(loaded(abs, [], workers)) == [] and torch.equal(state, torch.get_rng_state())
    made = loaded(breaks, [(n,) for n in range(10)], workers)
    with pytest.raises(UserError, match=r"^what happened$"):
        list(made)
    with pytest.raises(UserError, match=r"a process that reads images died .*--workers"):
        list(loaded(breaks, [(n,) for n in (11, 12, 13, 14)], workers))
    left = loaded(abs, [(n,) for n in range(1000)], workers)
    assert next(left) == 0
    left.close()  # returns: the processes behind it stop


def test_batches_are_one_late_and_all_there(device):
    made = []

    def batches():
        for i in range(3):
            made.append(i)
            yield torch.full((2, 1), float(i), device=device)

    late = one_late(batches())
    first = next(late)
    assert made == [0, 1] and first.dtype == torch.float16 and first.device == CPU
    assert [first[0, 0].item(), *(b[0, 0].item() for b in late)] == [0, 1, 2]
    assert list(one_late(iter([]))) == []


# Engines and backbones


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=generator("images"), dtype=torch.uint8)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.slow
def test_a_compiled_engine_agrees_or_says_that_it_cannot_compile(device):
    images = torch.rand(5, 3, 16, 16, generator=generator("images"))
    engine = make_engine(small_network(), 16, device, "compile", torch.float32, 4)
    if shutil.which("g++" if device.type == "cpu" else "gcc"):
        known = TorchEngine(small_network(), CPU, torch.float32)(images)
        assert (engine(images).cpu() - known).abs().max() < 1e-5
    else:
        with pytest.raises(UserError, match=r"^--engine compile does not work here \(.+\); use --engine torch$"):
            engine(images)


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    def fails(graph, inputs):
        raise OSError("no working C++ compiler\nand much more")

    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_by(module, backend=fails))
    engine = make_engine(small_network(), 16, CPU, "compile", torch.float32, 4)
    said = r"^--engine compile does not work here \(no working C\+\+ compiler\); use --engine torch$"
    with pytest.raises(UserError, match=said):
        engine(torch.zeros(5, 3, 16, 16))


def test_every_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(devices, "be_exact", lambda: None)
    monkeypatch.setattr(distributed, "local_rank", lambda: 3)
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:3",
        "cuda:1",
        "cpu",
    ]


@pytest.mark.parametrize(
    "name, count, local, said",
    [
        ("cuda:5", 1, 1, "--device cuda:5: this machine's GPUs are cuda:0 to cuda:0"),
        ("auto", 2, 3, "3 processes share 2 GPUs; use --nproc_per_node gpu, or --device cpu"),
    ],
)
def test_gpus_that_are_not_there_are_refused_in_a_line(monkeypatch, name, count, local, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(distributed, "local_size", lambda: local)
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        pick_device(name)
    assert pick_device("cpu").type == "cpu"  # with any number of processes


def test_half_precision_is_held_against_float32():
    images, good = random_images(3, 3, 16, 16), small_network()

    class Scaled(nn.Module):
        def __init__(self, by: float):
            super().__init__()
            self.network, self.by, self.name = good, by, "net"

        def forward(self, images):
            return self.network(images.float()) * self.by

    check_precision(lambda x: 1.05 * good(x.float()), Scaled(1), CPU, images)
    for bad in (0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"in half precision the features of net are .* use --precision float32"):
            check_precision(lambda x, bad=bad: bad * good(x.float()), Scaled(1), CPU, images)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_weights_cast_once_give_what_autocast_gives(precision):
    backbone, images = build_backbone("efficientnet_lite0"), random_images(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", precision):
        known = backbone.to(memory_format=torch.channels_last)(images).float()
    assert torch.equal(TorchEngine(backbone, CPU, precision)(images), known)
    assert all(p.dtype == torch.float32 for p in backbone.parameters())


@pytest.mark.slow
def test_engines_agree(device):
    backbone = build_backbone("efficientnet_lite0")
    images = random_images(5, 3, 64, 64)
    with torch.inference_mode():
        known = backbone(images)
    name, precision = choose_engine("auto", "auto", device)
    auto = make_engine(backbone, 64, device, name, precision, 4)
    assert isinstance(auto, OpenVINOEngine) == (device.type == "cpu")
    half = precision == torch.float16
    for engine, apart in ((TorchEngine(backbone, device, torch.float32), 1e-4), (auto, 0.02 if half else 1e-4)):
        features = engine(images).cpu()
        assert features.shape == (5, 1000) and features.dtype == torch.float32
        assert (features - known).norm() / known.norm() < apart
        assert (engine(images[3:4])[0].cpu() - features[3]).abs().max() < 10 * apart


def test_automatic_choices():
    assert choose_engine("auto", "auto", CPU) == ("openvino", torch.float32)
    assert choose_engine("auto", "auto", torch.device("cuda")) == ("torch", torch.float16)
    assert choose_engine("torch", "bfloat16", CPU) == ("torch", torch.bfloat16)
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for call, words in (
        (
            lambda: choose_engine("openvino", "auto", torch.device("cuda")),
            "^--engine openvino runs on the CPU; use --device cpu with it, or --engine torch$",
        ),
        (lambda: pick_device("tpu9"), "^unknown device 'tpu9'; use auto, cpu, cuda, cuda:N or mps$"),
        (lambda: pick_device("meta"), "^device 'meta' is not supported; use auto, cpu, cuda, cuda:N or mps$"),
    ):
        with pytest.raises(UserError, match=words):
            call()


WIDTHS = {
    "vit_b_32": 768,
    "efficientnet_b0": 1000,
    "resnet18": 512,
    "resnet50": 2048,
    "mobilenet_v2": 1000,
    "vgg16": 4096,
    "efficientnet_lite1": 1000,
}


@pytest.mark.parametrize("name", WIDTHS)
def test_backbones_give_the_papers_features(name):
    backbone = build_backbone(name, weights="random")
    images = random_images(2, 3, 224, 224)
    with torch.inference_mode():
        features = backbone(images)
    assert features.shape == (2, WIDTHS[name]) == (2, backbone.dim) and torch.isfinite(features).all()
    assert student_head(backbone) == ("mlp" if WIDTHS[name] == 1000 else "linear")
    backbone.train()
    assert not any(m.training for m in backbone.modules()) and not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_cut_where_its_dim_says(name):
    spec = BACKBONES[name]
    with torch.device("meta"):  # shapes alone: the largest has 632 million weights
        network = spec.build()
    last = [m for m in network.get_submodule(spec.last).modules() if isinstance(m, nn.Linear)][-1]
    assert (last.in_features, last.out_features) == (spec.dim, 1000)


def test_pooled_features_enter_the_last_layer():
    whole, pooled = (build_backbone("efficientnet_lite0", features=f) for f in ("logits", "pooled"))
    images = random_images(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(whole.network.classifier(pooled(images)), whole(images))
    assert whole.sha256 != pooled.sha256 and pooled.dim == 1280


def test_lite_scaling_is_its_own():
    backbone = build_backbone("efficientnet_lite0")
    seen = []
    backbone.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    backbone(torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 3, 3, 32).contiguous())
    torch.testing.assert_close(seen[0][0, 0, :, 0], torch.tensor([-127 / 128, 0, 1]))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_the_lite_weights_are_in_the_right_places(name):
    """scikit-learn's photograph of a Chinese palace is ImageNet's class 698, palace."""
    from sklearn.datasets import load_sample_image

    image = eval_transform(torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1), 224, crop=True)
    with torch.inference_mode():
        assert build_backbone(name)(image[None]).argmax().item() == 698


def test_random_weights_are_always_the_same_and_marked():
    a, b = build_backbone("resnet18", "random"), build_backbone("resnet18", "random")
    assert a.sha256 == b.sha256 and not a.pretrained and build_backbone("efficientnet_lite0").pretrained


def test_weights_from_a_file(tmp_path):
    torch.save(
        build_backbone("resnet18", "random").network.state_dict()
        | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)},
        tmp_path / "w.pth",
    )
    assert build_backbone("resnet18", str(tmp_path / "w.pth")).sha256 == build_backbone("resnet18", "random").sha256
    for name, words in (
        ("resnet34", "does not fit resnet34"),
        ("nonet", "unknown backbone 'nonet'; there are: vit_b_16"),
    ):
        with pytest.raises(UserError, match=words):
            build_backbone(name, str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match="no such weights file"):
        build_backbone("resnet18", str(tmp_path / "none.pth"))
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a weights file"):
        build_backbone("resnet18", str(tmp_path / "bad.pth"))


def test_a_download_that_fails_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match=r"resnet18 could not be downloaded.*https://download.*--weights FILE"):
        build_backbone("resnet18")


def test_recalibration_is_the_same_on_any_number_of_threads():
    batches, hashes, before = torch.randint(256, (2, 20, 3, 32, 32), dtype=torch.uint8), set(), torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        backbone = build_backbone("efficientnet_lite0")
        recalibrate_batch_norm(backbone, batches, CPU)
        assert torch.get_num_threads() == threads
        hashes.add(backbone.sha256)
    torch.set_num_threads(before)
    assert len(hashes) == 1


def test_recalibration_is_the_plain_mean_over_the_batches_and_changes_the_hash(device):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9))
    backbone = FrozenBackbone("tiny", network, IMAGENET, "pooled", 4, pretrained=False)
    before = backbone.sha256
    batches = random_images(3, 6, 3, 8, 8)
    with torch.no_grad():
        seen = torch.stack(
            [network[0]((b.float() - backbone.mean) / backbone.std).mean(dim=(0, 2, 3)) for b in batches]
        )
    recalibrate_batch_norm(backbone, batches, device)
    torch.testing.assert_close(network[1].running_mean.cpu(), seen.mean(dim=0), rtol=1e-4, atol=1e-5)
    assert backbone.sha256 != before and backbone.sha256 == hash_state(backbone)
    assert not any(m.training for m in backbone.modules())
    kept, recalibrated = batch_norm_statistics(backbone), backbone.sha256
    network[1].reset_running_stats()
    set_batch_norm_statistics(backbone, kept)
    assert backbone.sha256 == recalibrated
    with pytest.raises(UserError, match="no BatchNorm"):
        recalibrate_batch_norm(build_backbone("vgg16", "random"), [], CPU)


def test_heads(device):
    assert [m.out_features for m in HashHead(1000, 12, "mlp").modules() if isinstance(m, nn.Linear)] == [1000, 12]
    assert len(list(HashHead(768, 64).parameters())) == 2
    assert (HashHead(8, 4, seed=1)(torch.ones(1, 8)) == HashHead(8, 4, seed=1)(torch.ones(1, 8))).all()
    rows = np.random.RandomState(0).randn(100, 8).astype(np.float16)
    codes = HashHead(8, 4).to(device).encode(rows, batch_size=33)
    assert codes.shape == (100, 4) and codes.device == CPU and codes.dtype == torch.int8
    logits = HashHead(8, 4)(torch.from_numpy(rows).float())
    assert logits.abs().min() > 1e-5 and (codes == torch.where(logits >= 0, 1, -1)).all()
    for bits, kind, words in (
        (0, "linear", "^--bits 0: a code needs at least 1 bit$"),
        (-1, "linear", "^--bits -1: a code needs at least 1 bit$"),
        (8, "deep", "^unknown head 'deep'; there are: linear, mlp$"),
    ):
        with pytest.raises(UserError, match=words):
            HashHead(8, bits, kind)
