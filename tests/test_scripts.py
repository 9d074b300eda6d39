"""The shell scripts themselves, in small, by each engine, on fresh views and banked ones."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, STUDENT, TEACHER

pytestmark = pytest.mark.slow  # whole command lines

FEW = ("--limit", "40")
SMALL = {"DATASET": "digits", "BACKBONE": TEACHER, "STUDENT": STUDENT, "BITS": "16", "SIZE": "32", "CLUSTERS": "3"}
SMALL |= {"VALIDATE_EVERY": "1", "EPOCHS": "2", "TEACHER_EPOCHS": "2", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def checkout(tmp_path, monkeypatch, python):
    """The repository by links, so that what scripts write to their default places is not in the checkout."""
    monkeypatch.setenv("PYTHON", python)
    folder = tmp_path / "checkout"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "cache", "results", "codes"):
            (folder / entry.name).symlink_to(entry)
    return folder


def start(checkout, script: str, *flags: str, **variables: str) -> subprocess.Popen:
    env = {**os.environ, **SMALL, **variables}
    words = ["sh", str(checkout / "scripts" / script), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=env, start_new_session=True, **pipes)


def run(checkout, script: str, *flags: str, **variables: str) -> str:
    process = start(checkout, script, *flags, **variables)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, said + errors
    return said


@pytest.mark.parametrize("engine, views", [("torch", "0"), ("openvino", "2")])
def test_the_recipe(checkout, engine, views):
    run(checkout, "run.sh", *FEW, VIEWS=views, ENGINE=engine)
    teacher = checkout / "runs" / f"teacher_digits_{TEACHER}_16bits"
    run(checkout, "ours_distill_run.sh", VIEWS=views, TEACHER=str(teacher))
    said = run(checkout, "evaluate.sh", PICTURES="2")
    result = json.loads(said.splitlines()[-1])
    assert (result["method"], result["engine"], result["n_queries"]) == ("brcd", engine, 40)
    folder = checkout / "runs" / f"brcd_digits_{STUDENT}_16bits"
    assert {"test.json", "test.csv", "test.png", "test_retrieved.png"} <= {file.name for file in folder.iterdir()}


def killed(checkout, log, script: str, *flags: str, **variables: str) -> None:
    """Start a script and kill all of it once its log has a few epochs."""
    process = start(checkout, script, *flags, PYTHON=sys.executable, **variables)  # that no fork outlives for a moment
    until = time.monotonic() + 240
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (log.parent / "summary.json").exists()


def test_a_killed_script_goes_on_to_the_same_bits(checkout):
    """The teacher on fresh views, the student on banked ones."""
    common = {"VIEWS": "0", "ENGINE": "torch", "EPOCHS": "30", "PATIENCE": "99"}
    teachers = [checkout / "runs" / name for name in ("whole", "killed")]
    run(checkout, "run.sh", *FEW, RUN_DIR=str(teachers[0]), **common)
    killed(checkout, teachers[1] / "log.csv", "run.sh", *FEW, RUN_DIR=str(teachers[1]), **common)
    assert "resuming after epoch" in run(checkout, "run.sh", *FEW, RUN_DIR=str(teachers[1]), **common)
    assert (teachers[0] / "log.csv").read_text() == (teachers[1] / "log.csv").read_text()
    students = [checkout / "runs" / name for name in ("whole_student", "killed_student")]
    common |= {"TEACHER": str(teachers[0]), "VIEWS": "2"}
    run(checkout, "ours_distill_run.sh", RUN_DIR=str(students[0]), **common)
    killed(checkout, students[1] / "log.csv", "ours_distill_run.sh", RUN_DIR=str(students[1]), **common)
    assert "resuming" in run(checkout, "ours_distill_run.sh", RUN_DIR=str(students[1]), **common)
    assert "finished already" in run(checkout, "ours_distill_run.sh", RUN_DIR=str(students[1]), **common)
    assert (students[0] / "log.csv").read_text() == (students[1] / "log.csv").read_text()


def test_the_quickstart(checkout):
    said = run(checkout, "quickstart.sh", *FEW, "--size", "32", "--engine", "torch", VIEWS="2", TEACHER=TEACHER)
    assert said.count("== seed 0") == 3 and "| brcd " in said


def test_the_comparison(checkout):
    flags = "--limit 40 --size 32 --engine torch"
    said = run(
        checkout, "compare.sh", "none", "rkd", "brcd --clusters 3", FLAGS=flags, BITS="8", VIEWS="2", TEACHER=TEACHER
    )
    assert "3 of 3 cells" in said and (checkout / "results" / "compare_digits" / "table.md").exists()


def test_the_readme_s_commands_for_one_s_own_images(checkout, photo, python):
    """As they stand there, but for the folders' names, which are relative as people's are."""
    own = (ROOT / "README.md").read_text().split("\n## Your own images\n")[1].split("```sh\n")[1].split("```")[0]
    for name, first in (("pictures", 0), ("others", 500)):
        for c, kind in enumerate(("cat", "dog")):
            for i in range(14):
                part = "query" if i < 4 else "database"
                photo(checkout / name / part / kind / f"{i}.jpg", seed=first + 100 * c + i)
    (checkout / "bin").mkdir()
    (checkout / "bin" / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (checkout / "bin" / "python").chmod(0o755)
    env = {**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = "set -e\n" + own.replace("ROOT", "pictures").replace("OTHER", "others")
    done = subprocess.run(["sh", "-c", script], cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert script.count("python ") == done.stdout.count("no problem found") + 6
    assert json.loads((checkout / "other.json").read_text())["dataset"] == "folder others"
    assert {"runs", "codes", "student", "other.json"} <= {entry.name for entry in checkout.iterdir()}
    assert (checkout / "student" / "model.onnx").stat().st_size > 1e7
