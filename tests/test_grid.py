"""Grids by the local runner and by Ray: what is killed goes on, and both come to the same."""

import argparse
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT, until

from data.load import input_parser
from scripts import compare
from scripts.compare import Cell, Job, OnRay, Runner, run_all, share, teacher_jobs
from utils.errors import UserError

pytestmark = pytest.mark.slow  # whole command lines

WORDS = ["scripts.compare", "--name", "grid", "--teacher", "efficientnet_lite0", "--bits", "8"]
WORDS += ["--views", "2", "--teacher-epochs", "2", "--epochs", "2", "--jobs", "2", "--flags=--limit 60 --size 64"]
WORDS += ["--student-flags=--clusters 3"]
CELLS = Path("runs") / "grid" / "8bits_seed0"


class Grid:
    """Two methods and an ablation at one code length, in a folder of its own."""

    def __init__(self, folder: Path, cache: Path, *more: str):
        self.words = [*WORDS, "--cache-dir", str(cache), *more, "--methods", "none", "kl", "brcd --no-mask"]
        self.folder, self.cells = folder, folder / CELLS

    def begin(self) -> subprocess.Popen:
        words, pipes = [sys.executable, "-m", *self.words], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(words, cwd=self.folder, text=True, **pipes)

    def finish(self, *more: str) -> tuple[str, str]:
        """In this process, whose server of forks has imported PyTorch once."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("TQDM_MININTERVAL", "60")  # as it sets it itself
            patch.setattr(sys, "argv", [*self.words, *more])
            said = io.StringIO()
            with redirect_stdout(said):
                try:
                    compare.main()
                except UserError as error:
                    return str(error), said.getvalue()
        return "", said.getvalue()

    def go_on_after_a_kill(self, process: subprocess.Popen) -> None:
        """Killed after the first student, it alone: what it started must end by itself."""
        first = self.cells / "none" / "test.json"
        until(first.exists, process)
        process.kill()
        process.communicate()
        before = first.stat().st_mtime_ns
        code, said = self.finish()
        assert not code and "3 of 3 cells" in said, (code, said)
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
    code, _ = grid.finish("brcd --margin 7")
    assert "brcd --margin 7: --margin: '7' is not a number from 0 to 1" in code
    code, said = grid.finish("brcd --clusters 61")
    assert "1 runs failed" in code and "3 of 4 cells" in said
    code, said = grid.finish("brcd --clusters 61", "--primary", "sshp:brcd clusters=61")
    assert "1 runs failed" in code and "brcd_clusters_61.log" in code  # not that a claim has no row


def test_a_grid_tests_against_the_method_that_is_named(local):
    grid, _ = local
    for method, row in (("none", "none"), ("brcd --no-mask", "brcd clusters=3 no-mask")):
        assert not grid.finish("--against", method)[0]
        tested = (grid.folder / "results" / "grid" / "significance.csv").read_text().splitlines()
        assert len(tested) == 5 and all(f",{row},1," in line for line in tested[1:])
    assert "--against 'brcd' is none of --methods" in grid.finish("--against", "brcd")[0]


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


INTERRUPTED = """
import time
from pathlib import Path
from scripts import compare
from utils.cluster import ray_on
from utils.errors import guarded

def endless(folder, job, threads):
    if job.log.name != "0":
        (Path(folder) / job.log).touch()
        time.sleep(3600)

def main():
    compare.run_on_worker = endless
    with ray_on(None, 2) as ray:
        compare.run_all(compare.OnRay(ray, 0), [compare.Job(Path(str(n)), [], "features") for n in range(4)], "", None)

guarded(main)
"""


def test_on_ray_an_interrupted_grid_does_not_wait_for_its_cells(tmp_path):
    how = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], **how) as process:
        try:
            until(lambda: (tmp_path / "1").exists() and (tmp_path / "2").exists(), process)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130 and "interrupted: " in said and not (tmp_path / "3").exists(), said


@pytest.mark.parametrize(
    ("nodes", "gpus", "jobs", "cores"),
    [
        ([(8, 0), (8, 0)], 0, None, 1),  # a cell a core
        ([(8, 0), (8, 0)], 0, 4, 4),
        ([(8, 0), (8, 0)], 0, 3, 4),  # not 5: two cells of 5 cores don't lie on one machine
        ([(0, 0), (4, 0)], 0, 1, 4),
        ([(16, 2), (16, 0)], 0.5, None, 4),  # four cells, by the GPUs
        ([(2, 0)], 0, 9, 1),
    ],
)
def test_cells_fill_the_cluster(nodes, gpus, jobs, cores):
    there = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in nodes]
    there.append({"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}})
    machines = OnRay(SimpleNamespace(nodes=lambda: there), gpus).machines
    assert share(machines, jobs or sum(most for _, most in machines)) == cores


def test_a_cluster_without_gpus_is_told():
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}]
    with pytest.raises(UserError, match=r"has a core and 0\.5 of a GPU"):
        OnRay(SimpleNamespace(nodes=lambda: nodes), 0.5)


def test_of_many_processes_at_once_none_is_told_another_s_exit_status(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runner = Runner(1)
    well = [Job(tmp_path / f"{n}.log", [["evaluate.py", "--help"]] * 8, "features") for n in range(8)]
    ill = Job(tmp_path / "ill.log", [["evaluate.py", "--none"], ["evaluate.py", "--help"]], "features")
    with ThreadPoolExecutor(len(well) + 1) as pool:
        list(pool.map(lambda job: runner.run(job, 1), [ill, *well]))
    assert runner.failed == [ill.log] and ill.log.read_text().count("$ python") == 1
    assert all(job.log.read_text().count("$ python") == 8 for job in well)


def test_a_seed_draws_views_and_split_of_a_teacher_which_its_students_inherit(cli):
    words = ["--name", "n", "--redraw", "--seeds", 0, 1, "--methods", "brcd"]
    assert "--redraw with --seeds 0" in cli("scripts.compare", *words)[0]
    args = argparse.Namespace(teacher="t", teacher_hashing="cibhash", teacher_epochs=1, redraw=True)
    (job,) = teacher_jobs(args, [], [Cell("brcd", 16, 5, Path("none"), Path("s"))])
    assert job.commands[0][-4:] == ["--view-seed", 5, "--split-seed", 5]
    assert {"view_seed", "split_seed"} <= input_parser().defaults().keys()


def test_the_script_hands_on_how_many_and_how_much_of_a_gpu(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase $1 in -m) echo "$@" ;; *) exec "{sys.executable}" "$@" ;; esac\n')
    python.chmod(0o755)
    for more, words in (({"JOBS": "3", "GPUS": "0.5"}, "--jobs 3 --gpus 0.5 --methods none"), ({}, " --methods none")):
        env = {**os.environ, "PYTHON": str(python), "ENGINE": "ray", "JOBS": "", "GPUS": "", **more}
        done = subprocess.run(["sh", ROOT / "scripts" / "compare.sh", "none"], env=env, capture_output=True, text=True)
        assert done.stdout.strip().endswith(words) and ("--jobs" in done.stdout) == bool(more), done.stderr


def test_every_job_has_a_gpu_to_itself_while_there_are_enough(tmp_path, monkeypatch):
    """With two GPUs two jobs run side by side; four jobs at once share them."""
    for parallel in (None, 4):
        runner, taken = Runner(8, gpus=2), []
        monkeypatch.setattr(
            runner, "_run", lambda job, threads, gpu, taken=taken: (time.sleep(0.05), taken.append(gpu))
        )
        run_all(runner, [Job(tmp_path / f"{i}.log", [], "same") for i in range(9)], "jobs", parallel)
        assert len(taken) == 9 and set(taken) == {0, 1} and runner.free.qsize() == (parallel or 2)


def test_a_job_sees_its_gpu_alone(tmp_path):
    runner = Runner(1)
    for gpu, seen, sees in ((1, None, "1"), (1, "4,7", "7")):
        log = tmp_path / f"{gpu}{seen}.log"
        process = runner.processes.Process(target=sees_gpu, args=(log, gpu, seen))
        process.start()
        process.join()
        assert log.read_text().splitlines()[-1] == sees


def sees_gpu(log: Path, gpu: int, seen: str | None) -> None:
    """A process of a grid, told which GPU is its own."""
    if seen:
        os.environ["CUDA_VISIBLE_DEVICES"] = seen
    compare.guarded = lambda main: print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    compare.command_line(log, 1, ["distill.py"], gpu)
