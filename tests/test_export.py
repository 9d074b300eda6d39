"""An exported run: the same codes as PyTorch's, of any picture, and clear words where something does not belong."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, STUDENT, TEACHER, digits, run_here
from PIL import Image
from test_data import make_folder
from test_resize import picture

import export
from data.decode import pixels_of
from data.digits import load
from data.transforms import eval_transform
from models.backbones import build_backbone
from models.exported import Exported, may_ask
from models.heads import HashHead, student_head
from models.trained import read_run
from retrieval.codes import pack
from utils.errors import UserError
from utils.files import folder_aside


@pytest.fixture(scope="session")
def student(shared, measured):
    folder = shared / "exported_student"
    code, out = run_here("export.py", "--run", measured / "run", "--out", folder, "--logits")
    assert code == 0, out
    return folder


@pytest.fixture(scope="session")
def taught_by(shared, teacher):
    folder = shared / "exported_teacher"
    code, out = run_here("export.py", "--run", teacher, "--out", folder)
    assert code == 0, out
    return folder


def test_codes_are_pytorchs_for_pictures_of_any_size(student, measured):
    run = read_run(measured / "run")
    backbone, head = run.backbone(), run.heads["sshp"]
    exported = Exported(student)
    for n, (height, width) in enumerate([(1, 1), (1, 90), (8, 8), (64, 64), (75, 301), (480, 640), (1200, 900)]):
        image = picture(height, width, n)
        pixels = eval_transform(image.permute(2, 0, 1), run.size, False)[None]
        with torch.no_grad():
            logits = head(backbone(pixels))
        assert np.allclose(exported.logits(image.numpy()), logits[0].numpy(), atol=1e-3 * logits.abs().max().item())
        sure = logits[0].abs().numpy() > 1e-4
        code, own = exported.code(image.numpy()), pack(logits)[0]
        assert code.dtype == np.uint8 and code.shape == (exported.width,)
        assert not (np.unpackbits(code ^ own)[: exported.bits] & sure).any(), (height, width)


def test_a_run_is_exported_where_its_images_are_not(student, measured, photo, tmp_path, cli):
    """A published one, checked with the pictures that there are; the network is the same."""
    there = ["--dataset", "folder", "--data-dir", make_folder(tmp_path / "mine", photo), "--cache-dir", tmp_path / "c"]
    words = ["export.py", "--run", measured / "run", "--out", tmp_path / "out", "--logits"]
    code, out = cli(*words, "--skip-broken")
    assert "name their --dataset too" in code
    code, out = cli(*words, *there)
    assert code == 0, out
    card, own = (json.loads((folder / "card.json").read_text()) for folder in (tmp_path / "out", student))
    assert card["data"] == own["data"] and card["head"] == own["head"] and "chosen on" in card["metrics"]["measure"]
    assert card["checked"]["images"] != own["checked"]["images"] and card["checked"]["differs_from_evaluation"] <= 0.005


def test_the_card_says_what_it_is(student, taught_by, measured):
    card, big = (json.loads((folder / "card.json").read_text()) for folder in (student, taught_by))
    run = read_run(measured / "run")
    assert (card["role"], card["bits"], card["size"], card["crop"], card["method"]) == (
        "student",
        16,
        64,
        False,
        "brcd",
    )
    assert card["teacher_head"] == big["head"] == run.teacher.head_hash and big["teacher_head"] is None
    assert (big["role"], big["backbone"], card["licence"]) == ("teacher", TEACHER, "Apache-2.0")
    assert card["data"] == {"title": "digits", "fingerprint": run.facts["data"]} == big["data"]
    assert (
        card["metrics"]["validation"]["sshp"]["value"]
        == json.loads((measured / "run/summary.json").read_text())["best"]["sshp"]["value"]
    )
    assert card["checked"]["differs_from_evaluation"] <= 0.005 and card["checked"]["images"] > 50
    assert (card["precision"], card["flipped_bits"], card["map_kept"]) == ("float32", 0, 1)
    assert str(ROOT).encode() not in (student / "model.onnx").read_bytes()


def test_accuracy_is_drawn_against_what_the_exported_file_costs(cli, measured, tmp_path):
    out, run = tmp_path / "tradeoff.json", tmp_path / "run"
    shutil.copytree(measured / "run", run)
    shutil.copy(measured / "out.json", run / "test.json")
    code, said = cli("benchmarks/tradeoff.py", "--runs", run, "--pictures", 10, "--out", out)
    assert code == 0, said
    (row,) = json.loads(out.read_text())["rows"]
    result = json.loads((run / "test.json").read_text())
    assert row["map"] == {name: result[name]["map"]["stable/retrieved"] for name in ("sshp", "ashp")}
    assert 10 < row["megabytes"] < 30 and row["milliseconds"] > 0
    assert 0.1 < row["map_by_features"] < 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_student_asks_itself_and_its_teacher_and_nobody_else(student, taught_by):
    card, big = Exported(student).card, Exported(taught_by).card
    may_ask(card, card)
    may_ask(card, big)
    for asking, asked in ((big, card), (card, big | {"head": "0" * 64}), (card, card | {"model_sha256": "0" * 64})):
        with pytest.raises(UserError, match="their bits mean different things"):
            may_ask(asking, asked)


def test_reading_an_export_needs_no_pytorch(student):
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import numpy as np, models.exported as e, data.decode\n"
        f"code = e.Exported({str(student)!r}).code(np.zeros((9, 7, 3), np.uint8))\n"
        "assert 'torch' not in sys.modules and code.shape == (2,)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.slow
def test_a_reduced_precision_says_what_it_costs(cli, shared, measured, student):
    """float16 and int8 are smaller and flip bits; how many, and what mAP that keeps, is measured and on the card."""
    sizes, pictures = [(student / "model.onnx").stat().st_size], [picture(50, 40, n).numpy() for n in range(8)]
    plain = Exported(student)
    for precision, most in (("float16", 0.02), ("int8", 0.3)):
        folder = shared / precision
        code, out = cli("export.py", "--run", measured / "run", "--out", folder, "--precision", precision, "--logits")
        assert code == 0 and f"{precision}: " in out and "of the bits flip" in out, out
        exported = Exported(folder)
        card = exported.card
        assert card["precision"] == precision and 0 <= card["flipped_bits"] < most and 0.5 < card["map_kept"] < 1.5
        assert card["map_kept"] == card["maps"]["map"] / card["maps"]["map_float32"] and card["maps"]["searched"] > 10
        assert card["head"] == plain.card["head"] and card["checked"]["differs_from_evaluation"] <= 0.005
        for image in pictures:
            logits = exported.logits(image)
            assert np.array_equal(exported.code(image), pack(logits[None])[0])
            assert not np.array_equal(logits, plain.logits(image))
            assert np.abs(logits - plain.logits(image)).max() < 0.5 * np.abs(plain.logits(image)).max()
        with pytest.raises(UserError, match="their bits mean different things"):
            may_ask(card, plain.card)
        sizes.append((folder / "model.onnx").stat().st_size)
    assert sizes[0] > 1.9 * sizes[1] > 3 * sizes[2]


@pytest.mark.slow
def test_the_same_run_gives_the_same_file(cli, shared, teacher, taught_by, tmp_path):
    code, out = cli("export.py", "--run", teacher, "--out", tmp_path / "again")
    assert code == 0, out
    names = ("model.onnx", "card.json")
    assert all((tmp_path / "again" / n).read_bytes() == (taught_by / n).read_bytes() for n in names)


def test_pictures_of_every_kind_have_one_code_wherever_they_come_from(student, photo, tmp_path):
    """As a client has them: EXIF-turned, grayscale, with alpha, CMYK, 16 bits; files and bytes."""
    exported, base = Exported(student), Image.fromarray(picture(60, 90, 4).numpy())
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    files = {name: tmp_path / name for name in ("cmyk.jpg", "turned.jpg", "upright.png")}
    base.convert("CMYK").save(files["cmyk.jpg"])
    base.save(files["turned.jpg"], exif=turned, quality=95)
    Image.fromarray(pixels_of(files["turned.jpg"], upright=True)).save(files["upright.png"])
    for mode in ("L", "LA", "RGBA", "I;16"):
        files[mode] = photo(tmp_path / f"{mode.replace(';', '')}.png", mode)
    codes = {}
    for name, file in files.items():
        pixels = pixels_of(file, upright=True)
        codes[name] = exported.code(pixels)
        assert np.array_equal(codes[name], exported.code(pixels_of(io.BytesIO(file.read_bytes()), name, upright=True)))
    assert np.array_equal(codes["turned.jpg"], codes["upright.png"])
    assert exported.code(pixels_of(files["turned.jpg"], upright=True)[:, ::-1]).shape == (2,)  # rows that run backwards


@pytest.mark.parametrize("pixels", [(5, 5), (5, 5, 4), (3, 5, 5), (0, 5, 3)])
def test_what_is_no_picture_is_refused(student, pixels):
    with pytest.raises(ValueError, match="a picture is uint8"):
        Exported(student).code(np.zeros(pixels, np.uint8))
    with pytest.raises(ValueError, match="float64"):
        Exported(student).code(np.zeros((5, 5, 3)))


def test_a_damaged_export_is_one_clear_line(student, taught_by, tmp_path):
    def of(**changes) -> str:
        """What is said of an export whose card has other values, or none where None."""
        folder = tmp_path / "e"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(taught_by, folder)
        card = json.loads((folder / "card.json").read_text()) | changes
        (folder / "card.json").write_text(
            json.dumps({k: v for k, v in card.items() if v is not None or k == "teacher_head"})
        )
        with pytest.raises(UserError) as error:
            Exported(folder)
        return str(error.value)

    with pytest.raises(UserError, match=r"no export there .* python export.py"):
        Exported(tmp_path / "nothing")
    assert "of format 2" in of(format=2) and "of format None" in of(format=None)
    assert "no usable bits" in of(bits="64") and "no usable bits" in of(bits=0) and "no usable bits" in of(bits=True)
    assert "no usable role" in of(role="oracle") and "no usable licence, head" in of(licence=None, head=None)
    assert "not the model that card.json describes" in of(model_sha256="0" * 64)
    folder = tmp_path / "e"
    (folder / "card.json").write_text("{")
    with pytest.raises(UserError, match=r"card.json: damaged"):
        Exported(folder)
    shutil.copy(taught_by / "card.json", folder)
    model = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model.onnx: damaged"):
        Exported(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model.onnx: no such file; export that run again"):
        Exported(folder)
    assert "can't run it" in self_consistent(folder, b"no model at all")
    with pytest.raises(UserError, match="exported without logits"):
        Exported(taught_by).logits(np.zeros((5, 5, 3), np.uint8))


def self_consistent(folder, model: bytes) -> str:
    """What is said of a model that its card describes and that is none."""
    (folder / "model.onnx").write_bytes(model)
    card = json.loads((folder / "card.json").read_text()) | {"model_sha256": hashlib.sha256(model).hexdigest()}
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError) as error:
        Exported(folder)
    return str(error.value)


def test_nothing_but_an_export_is_overwritten(cli, measured, taught_by, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    for name, why in (("thesis", "holds no card.json"), ("file", "is no folder"), ("link", "is no folder")):
        code, out = cli("export.py", "--run", measured / "run", "--out", tmp_path / name)
        assert why in str(code) and "validation" not in out, out
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "x"
    shutil.copytree(taught_by, tmp_path / "old")
    with folder_aside(tmp_path / "old", "card.json") as folder:
        (folder / "card.json").write_text("new")
    assert [f.name for f in (tmp_path / "old").iterdir()] == ["card.json"] and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_an_export_that_fails_leaves_what_was_there(cli, taught_by, teacher, tmp_path, monkeypatch):
    shutil.copytree(taught_by, tmp_path / "old")
    before = (tmp_path / "old" / "card.json").read_bytes()
    real = HashHead.encode
    monkeypatch.setattr(HashHead, "encode", lambda self, features: -real(self, features))
    code, _ = cli("export.py", "--run", teacher, "--out", tmp_path / "old")
    assert "bits differ from PyTorch's in float32, more than 0.5%; nothing is written" in str(code)
    assert (tmp_path / "old" / "card.json").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_refusals(cli, teacher, tmp_path):
    for words, why in (
        (["--head", "sshp"], "a teacher's run, which has one head"),
        (["--head", "map"], "'map' is not known; there are: sshp, ashp"),
        (["--precision", "int4"], "'int4' is not known; there are: float32, float16, int8"),
    ):
        code, _ = cli("export.py", "--run", teacher, "--out", tmp_path / "x", *words)
        assert why in str(code)
    code, _ = cli("export.py", "--run", tmp_path, "--out", tmp_path / "x")
    assert "no run folder" in str(code) and not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, precision",
    [
        ("resnet18", "int8"),
        ("mobilenet_v2", "float16"),
        ("efficientnet_b0", "float32"),
        ("vit_b_32", "int8"),
        ("timm:test_vit", "int8"),
        ("timm:convnext_atto", "float32"),
        ("timm:mobilenetv4_conv_small", "float16"),
        ("timm:efficientvit_b0", "float32"),
    ],
)
def test_every_kind_of_backbone_can_be_exported(name, precision, tmp_path):
    """Random weights: linear heads on pooled features, MLPs on logits, SiLU, attention; 12 bits, which fill no byte."""
    size = 224 if name.startswith("vit") else 64
    backbone = build_backbone(name, "random")
    head = HashHead(backbone.dim, 12, student_head(backbone))
    before, after = export.preprocessing(size, True), export.network(backbone, head, size)
    images = load(limit=20)
    with torch.no_grad():
        pixels = torch.stack([eval_transform(images.source[i], size, True) for i in images.train[:5]])
        own = head(backbone(pixels)).numpy()
    if precision == "int8":
        calibration = export.Pixels(replace(images, crop=True), images.train[:8], size)
        after = export.in_bytes(after, calibration)
    model = export.joined(before, export.in_half(after) if precision == "float16" else after, True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as models/exported.py runs it
    session = onnxruntime.InferenceSession(model, options)
    for i, logits in zip(images.train[:5], own, strict=True):
        code, found = session.run(None, {"image": images.source[i].permute(1, 2, 0).numpy()})
        assert np.array_equal(code, pack(found[None])[0]) and code.shape == (2,) and not code[1] & 15
        spread = np.abs(own - own.mean(axis=0)).max() + np.abs(logits).max()
        assert np.abs(found - logits).max() < {"float32": 1e-4, "float16": 0.01, "int8": 0.5}[precision] * spread


@pytest.mark.slow
def test_recalibrated_statistics_go_along(cli, shared, teacher, tmp_path):
    words = ["--teacher", teacher, "--student", STUDENT, "--method", "none", "--bn", "recalibrate", "--epochs", 2]
    code, out = cli("distill.py", *digits(shared), *words, "--run-dir", tmp_path / "run")
    assert code == 0, out
    code, out = cli(
        "export.py", "--run", tmp_path / "run", "--out", tmp_path / "e", "--head", "ashp", "--precision", "float16"
    )
    assert code == 0, out
    card = Exported(tmp_path / "e").card
    assert card["chosen_by"] == "ashp" and card["backbone_sha256"] != build_backbone(STUDENT).sha256
