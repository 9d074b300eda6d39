"""Shared by all tests: the repository is importable, and command lines run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT))


@pytest.fixture
def golden():
    """Load tests/golden/NAME.npz as tensors."""

    def load(name: str) -> dict:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) if file[key].ndim else file[key].item() for key in file.files}

    return load


@pytest.fixture(scope="session")
def command():
    """Run one of the project's command lines in a process of its own: (exit status, output, what it said of errors)."""

    def run(*words, env: dict | None = None, timeout: int = 300) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "TQDM_MININTERVAL": "60", "OMP_NUM_THREADS": "1", **(env or {})},
        )

    return run


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
