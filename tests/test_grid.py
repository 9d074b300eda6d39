"""Grids by the local runner and by Ray: what is killed goes on, and both come to the same."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from test_encode import until

pytestmark = pytest.mark.slow  # whole command lines

WORDS = [sys.executable, "-m", "scripts.compare", "--name", "grid", "--teacher", "efficientnet_lite0", "--bits", "8"]
WORDS += ["--views", "2", "--teacher-epochs", "2", "--epochs", "2", "--jobs", "2", "--flags=--limit 60 --size 64"]
WORDS += ["--student-flags=--clusters 3"]
CELLS = Path("runs") / "grid" / "8bits_seed0"


class Grid:
    """Two methods and an ablation at one code length, in a folder of its own."""

    def __init__(self, folder: Path, cache: Path, *more: str):
        self.words = [*WORDS, "--cache-dir", str(cache), *more, "--methods", "none", "kl", "brcd --no-mask"]
        self.folder, self.cells = folder, folder / CELLS
        self.how = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}

    def begin(self) -> subprocess.Popen:
        return subprocess.Popen(self.words, **self.how, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def finish(self, *more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*self.words, *more], **self.how, capture_output=True)

    def go_on_after_a_kill(self, process: subprocess.Popen) -> None:
        """Killed after the first student, it alone: what it started must end by itself."""
        first = self.cells / "none" / "test.json"
        until(first.exists, process)
        process.kill()
        process.communicate()
        before = first.stat().st_mtime_ns
        done = self.finish()
        assert done.returncode == 0 and "3 of 3 cells" in done.stdout, done.stdout + done.stderr
        assert first.stat().st_mtime_ns == before

    def result(self) -> dict[str, bytes]:
        files = [self.folder / "results" / "grid" / "table.md", *self.cells.glob("*/best_*.pt")]
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    grid = Grid(folder, folder / "cache")
    grid.go_on_after_a_kill(grid.begin())
    return grid, grid.result()


def test_a_killed_grid_goes_on_and_says_what_failed(local):
    grid, _ = local
    assert "| brcd clusters=3 no-mask" in (grid.folder / "results" / "grid" / "table.md").read_text()
    refused = grid.finish("brcd --margin 7")
    assert refused.returncode == 1 and "brcd --margin 7: --margin: '7' is not a number from 0 to 1" in refused.stderr
    failing = grid.finish("brcd --clusters 61")
    assert failing.returncode == 1 and "1 runs failed" in failing.stderr and "3 of 4 cells" in failing.stdout


def test_on_ray_a_lost_worker_or_driver_loses_nothing_and_changes_no_bit(local, tmp_path):
    other, expected = local
    grid = Grid(tmp_path, other.folder / "cache", "--engine", "ray")
    process = grid.begin()
    until((grid.cells / "none" / "args.yaml").exists, process)
    there = psutil.Process(process.pid).children(recursive=True)
    lost = [one for one in there if "run_on_worker" in one.name() or "run_on_worker" in " ".join(one.cmdline())]
    assert lost, there
    for worker in lost:
        worker.kill()
    grid.go_on_after_a_kill(process)
    assert grid.result() == expected
