"""An exported run: the same codes as PyTorch's, of any picture, and clear words where something does not belong."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TEACHER, run_here
from test_resize import picture

from data.transforms import eval_transform
from models.trained import read_run
from retrieval.codes import pack
from retrieval.exported import Exported, may_ask
from utils.errors import UserError

torch.set_num_threads(2)


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
        "import numpy as np, retrieval.exported as e, data.decode\n"
        f"code = e.Exported({str(student)!r}).code(np.zeros((9, 7, 3), np.uint8))\n"
        "assert 'torch' not in sys.modules and code.shape == (2,)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
