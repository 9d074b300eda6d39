"""A GPU that is not there: what would fail on a real one fails here, on any machine. See ``emulated_device``."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow  # processes of their own: the emulation cannot be undone


def on_emulated(part: str, folder, root=ROOT) -> subprocess.CompletedProcess:
    words = [sys.executable, str(root / "tests" / "on_emulated.py"), part, str(folder)]
    # By one thread emulated tensors give other last bits than the CPU's, whose own are the same by one and by two.
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("part", ["steps", "waits", "fresh views", "banked views"])
def test_an_emulated_gpu_gives_what_the_cpu_gives(tmp_path, part):
    done = on_emulated(part, tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("all equal\n"), done.stderr[-3000:]


PLANTED = {  # a fault: the part that meets it, its file, what stands there, what is planted, what is said
    "a forgotten copy to the device": (
        "steps",
        "distill.py",
        "index = to_device(views.index, self.device)",
        "index = views.index.cpu()",
        "indices should be either on|same device",
    ),
    "a generator of the CPU's": (
        "steps",
        "losses/methods.py",
        "to_device(torch.randint(n_data - 1, (len(index), count), generator=draw), index.device)",
        "torch.randint(n_data - 1, (len(index), count), generator=draw, device=index.device)",
        "Expected a 'cuda' device type for generator",
    ),
    "numpy of a GPU's tensor": (
        "banked views",
        "distill.py",
        "[head(torch.tensor(view).to(device).float()).cpu() for view in bank]",
        "[torch.from_numpy(head(torch.tensor(view).to(device).float()).numpy()) for view in bank]",
        "can't convert cuda:0 device type tensor to numpy",
    ),
    "inference mode": (
        "fresh views",
        "models/engines.py",
        "@torch.no_grad()",
        "@torch.inference_mode()",
        "Inference tensors",
    ),
    "a number that is waited for": (
        "waits",
        "distill.py",
        "terms = self.hashing(logits, student_features)",
        "terms = self.hashing(logits, student_features); [t.item() for t in logits.flatten()[:9]]",
        "distill.py",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(tmp_path, fault):
    part, file, there, planted, said = PLANTED[fault]
    skipped = shutil.ignore_patterns(".*", "results", "runs", "cache", "image", "benchmarks", "golden", "__pycache__")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=skipped)
    text = (copy / file).read_text()
    assert text.count(there) == 1
    (copy / file).write_text(text.replace(there, planted))
    done = on_emulated(part, tmp_path, copy)
    assert done.returncode != 0 and any(words in done.stderr for words in said.split("|")), done.stderr[-1500:]
