"""Shared by all tests: the repository is importable, command lines run as a user runs them but write nothing into the
checkout, and what touches tensors runs on every kind of device that this machine has."""

import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

# Files run side by side, one a core: threads of one would only wait for another's.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT))
collect_ignore = [] if (ROOT / "search").exists() else ["search"]  # a leaf: all else works without it
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # for python -m
# A proxy, which many networks have, can't reach the servers that tests start here.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"
# A shell makes deaf to Ctrl-C what it starts in the background, and so what tests start and send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from data import features  # noqa: E402
from models.engines import make_engine  # noqa: E402

# Two networks, so that no test can pass with one's features in the other's place. Lite1 and Lite0 have features of one
# width; a swap is seen in the numbers, not in a shape that does not fit.
TEACHER, STUDENT = "efficientnet_lite1", "efficientnet_lite0"
SMALL = ["--size", "64", "--views", "2"]
LONG = ["test_pairs", "test_commands", "test_search_script", "test_export", "test_engines", "test_devices"]
LONG += ["test_distributed", "test_encode", "test_grid", "test_scripts", "test_faults", "test_features"]


def pytest_collection_modifyitems(items: list) -> None:
    """Files run side by side in this order: one that takes long and comes late would leave the other cores idle."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request) -> Iterator[torch.device]:
    """Every kind of device that there is here; convolutions in full float32, which CUDA shortens by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(request.param)
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Whatever a test writes to a relative path, a default --cache-dir among them, is not in the checkout; and what it
    draws without a generator is the same every time."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def golden():
    """Load tests/golden/NAME.npz as tensors."""

    def load(name: str, device: torch.device | str = "cpu") -> dict:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return {k: torch.from_numpy(a).to(device) if a.ndim else a.item() for k, a in arrays.items()}

    return load


def command_line(*words) -> list[str]:
    """The words of a process; a command of the project by its whole path, since tests run in other folders."""
    module = ["-m"] if words[0] in ("search", "search.encode") else []
    return [sys.executable, *module, *(str(ROOT / w) if str(w).endswith(".py") else str(w) for w in words)]


@pytest.fixture(scope="session")
def python(tmp_path_factory) -> Iterator[str]:
    """A Python whose command lines begin at once, since they are forks of a process that has imported PyTorch."""
    if sys.platform != "linux":
        yield sys.executable
        return
    folder = tmp_path_factory.mktemp("python")
    words, env = [sys.executable, ROOT / "tests" / "forked.py", folder], {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=env, start_new_session=True) as server:
        assert server.stdout and server.stdout.readline() == b"ready\n"
        yield str(folder / "python")
        server.kill()


@pytest.fixture(scope="session")
def command(tmp_path_factory, python):
    """Run one of the project's command lines in a process of its own: (exit status, output, what it said of errors)."""
    folder = tmp_path_factory.mktemp("command")

    def run(*words, env: dict | None = None, timeout: int = 300) -> subprocess.CompletedProcess:
        return subprocess.run(
            [python, *command_line(*words)[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "TQDM_MININTERVAL": "60", "OMP_NUM_THREADS": "1", **(env or {})},
        )

    return run


def until(true, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()  # a living process's output has no end to read to
            pytest.fail(f"waited {seconds} s in vain: {process.communicate(timeout=60)[0]}")
        time.sleep(0.05)


def run_here(script: str, *words) -> tuple[object, str]:
    """Run a command line in this process: (exit status, output); faster than one of its own."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", [script, *map(str, words)])
        try:
            if script.endswith(".py"):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
    return code, said.getvalue()


@pytest.fixture
def cli():
    return run_here


@pytest.fixture(scope="session", autouse=True)
def every_network_converted_once():
    """OpenVINO takes seconds to convert a network: command lines in this process share what was made of one."""
    kept = {}

    def make(backbone, *how):
        key = (backbone.sha256, *how)  # the hash of every weight: no network is taken for another
        return kept[key] if key in kept else kept.setdefault(key, make_engine(backbone, *how))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "make_engine", make)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder for what many tests need and none changes: features, a teacher."""
    return tmp_path_factory.mktemp("shared")


def digits(shared, *more):
    return ["--dataset", "digits", "--limit", "90", "--cache-dir", shared / "cache", *SMALL, *more]


@pytest.fixture(scope="session")
def teacher(shared):
    """A teacher of 16 bits, trained once for all tests."""
    folder = shared / "teacher"
    words = ["--backbone", TEACHER, "--bits", 16, "--epochs", 12, "--run-dir", folder]
    code, out = run_here("train_teacher.py", *digits(shared), *words)
    assert code == 0, out
    return folder


@pytest.fixture(scope="session")
def measured(shared, teacher):
    """A BRCD student and its evaluation with all codes: a folder with run/, out.json, ... and codes/."""
    folder = shared / "measured"
    student = ["--teacher", teacher, "--student", STUDENT, "--clusters", 5, "--epochs", 20, "--validate-every", 1]
    student += ["--seed", 1]  # with 0 one epoch is best in both settings on some processors, and two heads are one
    result = ["--json", folder / "out.json", "--dump-codes", folder / "codes"]
    for words in (
        ["distill.py", *digits(shared), *student, "--run-dir", folder / "run"],
        ["evaluate.py", "--run", folder / "run", *result],
    ):
        code, out = run_here(*words)
        assert code == 0, out
        (folder / f"{words[0]}.out").write_text(out)
    return folder


@pytest.fixture(scope="session")
def chromium():
    """A browser: one that is on PATH, or Playwright's own."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, names)), own if Path(own).exists() else None)
        if path is None:
            pytest.skip("no Chromium: put one on PATH, or run: python -m playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()


@pytest.fixture
def photo():
    """Write a small random image file in any mode."""

    def write(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.RandomState(seed)
        channels = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2}
        if mode == "I;16":
            pixels = draw.randint(0, 65536, (size[1], size[0])).astype(np.uint16)
        else:
            pixels = draw.randint(0, 256, (size[1], size[0], channels[mode])).astype(np.uint8).squeeze()
        Image.fromarray(pixels).save(path)
        return path

    return write
