"""Results are bound to all that made them: runs that were mixed up, cut or damaged are one clear line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, STUDENT, TEACHER, digits, run_here

from losses.masks import cluster_codes
from models.trained import read_run, read_teacher
from retrieval.codes import read_training_codes
from utils.errors import UserError, first_line, some

pytestmark = pytest.mark.slow  # whole command lines


@pytest.fixture(scope="module")
def pair(shared, teacher, tmp_path_factory):
    """A teacher's and a student's finished runs of their own, to be damaged in copies."""
    root = tmp_path_factory.mktemp("pair")
    shutil.copytree(teacher, root / "teacher")
    code, out = run_here(
        *["distill.py", *digits(shared), "--teacher", root / "teacher", "--student", STUDENT, "--clusters", 3],
        *["--epochs", 2, "--validate-every", 1, "--run-dir", root / "student"],
    )
    assert code == 0, out
    return root


@pytest.fixture
def runs(pair, tmp_path):
    """Copies; the student's teacher is the copy beside it."""
    shutil.copytree(pair, tmp_path / "runs")
    file = tmp_path / "runs" / "student" / "args.yaml"
    args = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(args | {"teacher": str(tmp_path / "runs" / "teacher")}))
    return tmp_path / "runs"


def change(file, **values) -> None:
    content = torch.load(file, weights_only=True)
    for key, value in values.items():
        content[key] = value(content[key]) if callable(value) else value
    torch.save(content, file)


def noise(state: dict) -> dict:
    return {name: tensor + 1 for name, tensor in state.items()}


def no_number(state: dict) -> dict:
    return {name: tensor * float("nan") for name, tensor in state.items()}


def rewrite(file, **values) -> None:
    args = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({k: v for k, v in (args | values).items() if v is not None}))


DAMAGE = {
    "the teacher has another head now": (
        lambda r: change(r / "teacher/best_map.pt", state=noise),
        "student: was taught by another head than",
    ),
    "a checkpoint of another format": (
        lambda r: change(r / "teacher/best_map.pt", format=99),
        "best_map.pt: of format 99, this code reads format 1",
    ),
    "a teacher's head under a student's name": (
        lambda r: shutil.copy(r / "teacher/best_map.pt", r / "student/best_sshp.pt"),
        "best_sshp.pt: a teacher's checkpoint, not a student's",
    ),
    "a head that is not finite": (
        lambda r: change(r / "student/best_ashp.pt", state=no_number),
        "best_ashp.pt: its head has weights that are not finite",
    ),
    "checkpoints of two runs": (
        lambda r: change(r / "student/best_ashp.pt", data="0" * 64),
        "best_ashp.pt: belongs to another run than the checkpoint beside it",
    ),
    "transforms of another version": (
        lambda r: change(r / "teacher/best_map.pt", transforms=99),
        "teacher: was trained on images of transforms 99",
    ),
    "no backbone in the checkpoint": (
        lambda r: change(r / "teacher/best_map.pt", backbone=None),
        "best_map.pt: incomplete checkpoint (no backbone",
    ),
    "a teacher that is not finished": (lambda r: (r / "teacher/summary.json").unlink(), "teacher: not finished"),
    "an empty summary": (lambda r: (r / "student/summary.json").write_text(""), "summary.json: damaged"),
    "a summary of something else": (lambda r: (r / "student/summary.json").write_text("{}"), "summary.json: damaged"),
    "a cut checkpoint": (
        lambda r: (r / "student/best_sshp.pt").write_bytes((r / "student/best_sshp.pt").read_bytes()[:-300]),
        "best_sshp.pt: truncated or no checkpoint",
    ),
    "a short args.yaml": (
        lambda r: rewrite(r / "student/args.yaml", workers=None),
        "student/args.yaml: damaged, no usable workers",
    ),
    "wrong types in args.yaml": (
        lambda r: rewrite(r / "teacher/args.yaml", size="large"),
        "teacher/args.yaml: damaged, no usable size",
    ),
    "a list as args.yaml": (lambda r: (r / "student/args.yaml").write_text("[1]"), "args.yaml: damaged"),
    "an environment of something else": (
        lambda r: (r / "student/environment.json").write_text("{}"),
        "environment.json: damaged",
    ),
    "cut defaults": (
        lambda r: (r / "student/defaults.json").write_text((r / "student/defaults.json").read_text()[:200]),
        "defaults.json: damaged",
    ),
    "an option of another kind": (
        lambda r: rewrite(r / "student/args.yaml", alpha="x"),
        "student/defaults.json: damaged, no usable alpha",
    ),
    "a method that is none": (
        lambda r: rewrite(r / "student/args.yaml", method="x"),
        "student/defaults.json: damaged, no usable method",
    ),
    "a student of less than no pixels": (
        lambda r: rewrite(r / "student/args.yaml", student_size=-1),
        "student/args.yaml: damaged, no usable student_size",
    ),
    "a best that is no measurement": (
        lambda r: (r / "student/summary.json").write_text('{"best": {"sshp": 7}, "epochs": 3}'),
        "summary.json: damaged",
    ),
    "no defaults": (
        lambda r: (r / "student/defaults.json").unlink(),
        "student: no defaults.json in it; run the command",
    ),
    "a list as environment": (
        lambda r: (r / "teacher/environment.json").write_text("[1]"),
        "environment.json: damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_that_is_not_what_it_was_is_not_measured(cli, runs, name):
    damage, said = DAMAGE[name]
    damage(runs)
    code, out = cli("evaluate.py", "--run", runs / "student", "--pictures", 0)
    assert isinstance(code, str) and code.startswith("error: ") and said in code, (code, out)
    assert "\n" not in code and not (runs / "student/test.json").exists()


def test_a_run_from_before_teachers_were_recorded_is_measured_with_a_note(cli, runs):
    for name in ("best_sshp.pt", "best_ashp.pt"):
        content = torch.load(runs / "student" / name, weights_only=True)
        torch.save({k: v for k, v in content.items() if k not in ("teacher", "transforms")}, runs / "student" / name)
    code, out = cli("evaluate.py", "--run", runs / "student", "--pictures", 0)
    assert code == 0 and "it is taken on trust" in out


def test_distilling_from_an_unfinished_teacher_is_refused(cli, runs, tmp_path):
    (runs / "teacher/summary.json").unlink()
    words = ["distill.py", "--teacher", runs / "teacher", "--student", STUDENT, "--run-dir", tmp_path / "new"]
    code, _ = cli(*words)
    assert "teacher: not finished (no summary.json)" in code and not (tmp_path / "new").exists()
    code, _ = cli(*words[:2], runs / "student", *words[3:])
    assert "student: a student's run, not a teacher's" in code


OWN_FILES = ["log", "args", "clusters", "defaults", "environment", "sample", "summary", "train_codes"]


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_result_never_replaces_a_run_s_own_files(cli, runs, name):
    before = {p.name: p.read_bytes() for p in (runs / "student").iterdir() if p.is_file()}
    code, _ = cli("evaluate.py", "--run", runs / "student", "--json", runs / "student" / f"{name}.json")
    assert "would replace files of the run" in code
    assert before == {p.name: p.read_bytes() for p in (runs / "student").iterdir() if p.is_file()}


@pytest.mark.parametrize("target", ["", "{tmp}", "{tmp}/result.txt"])
def test_a_result_is_a_json_file(cli, runs, tmp_path, target):
    beside = sorted(tmp_path.parent.iterdir())
    code, _ = cli("evaluate.py", "--run", runs / "student", "--json", target.format(tmp=tmp_path))
    assert "it takes a file that ends in .json" in code and sorted(tmp_path.parent.iterdir()) == beside


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"PK\x03\x04" + bytes(50), None],
    ids=["empty", "junk", "the beginning of an archive", "other arrays"],
)
def test_damaged_training_codes_are_named(tmp_path, content):
    file = tmp_path / "train_codes.npz"
    np.savez(file, codes=np.zeros((3, 2), dtype=np.uint8), bits=64) if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"train_codes\.npz: damaged \("):
        read_training_codes(tmp_path)


def test_centroids_do_not_depend_on_the_number_of_threads():
    codes = np.sign(np.random.RandomState(0).randn(3000, 64))
    labels, centroids = cluster_codes(codes, 10)
    means = np.stack([codes[labels == c].sum(axis=0) / (labels == c).sum() for c in range(10)])
    assert (centroids == means.astype(np.float32)).all()


REFUSED = {
    "engine": ["--engine", "foo"],
    "precision": ["--precision", "float8"],
    "features": ["--features", "foo"],
    "views": ["--views", "1"],
    "seed": ["--seed", "-1"],
    "temperature": ["--temperature", "inf"],
    "cache limit": ["--cache-limit", "-5G"],
    "no size": ["--cache-limit", "inf"],
    "head": ["--head", "auto"],
    "weights": ["--weights", ""],
    "size of a backbone": ["--backbone", "vit_b_16", "--size", "256"],
    "huge size": ["--size", "100000"],
    "itq bits": ["--hashing", "itq", "--bits", "2000", "--epochs", "1"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_leaves_no_folder_behind(cli, shared, tmp_path, name):
    words = ["train_teacher.py", *digits(shared), "--backbone", TEACHER, "--run-dir", tmp_path / "a" / "run"]
    code, out = cli(*words, *REFUSED[name])
    assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code, (code, out)
    assert not (tmp_path / "a").exists()


def test_a_refused_student_leaves_no_folder_behind(cli, shared, teacher, tmp_path):
    words = ["distill.py", *digits(shared), "--teacher", teacher, "--student", STUDENT, "--run-dir", tmp_path / "run"]
    for more in (["--clusters", "91"], ["--mask-rule", "foo"], ["--student-features", "foo"]):
        code, _ = cli(*words, *more)
        assert isinstance(code, str) and not (tmp_path / "run").exists()


def test_set_ups_that_are_hardly_meant_get_a_note(cli, shared, teacher, tmp_path):
    words = ["distill.py", *digits(shared), "--teacher", teacher, "--student", STUDENT, "--run-dir", tmp_path / "run"]
    code, out = cli(*words, "--clusters", 1, "--batch-size", 1, "--epochs", 1)
    assert code == 0 and "note: --clusters 1: " in out and "note: --batch-size 1: " in out


def test_a_finished_run_keeps_nothing_to_resume_from(pair):
    assert not (pair / "student/last.pt").exists() and read_run(pair / "student").bits == 16
    assert read_teacher(pair / "teacher").heads.keys() == {"map"}


def test_an_incomplete_last_checkpoint_is_named(cli, runs):
    (runs / "student/summary.json").unlink()
    words = yaml.safe_load((runs / "student/environment.json").read_text())["command"].split()[1:]
    words[words.index("--run-dir") + 1] = str(runs / "student")
    words[words.index("--teacher") + 1] = str(runs / "teacher")
    torch.save({"kind": "brcd-training", "module": {}}, runs / "student/last.pt")
    code, _ = cli(*words, "--resume")
    assert "last.pt: incomplete (" in code and "delete it to begin that run again" in code
    (runs / "student/last.pt").write_bytes(b"PK\x03\x04 cut")
    code, _ = cli(*words, "--resume")
    assert "last.pt: truncated or no checkpoint" in code


def test_a_long_list_is_cut():
    assert some(range(8)) == "0, 1, 2, 3, 4 and 3 more"
    assert first_line("\n  a\nb") == "a" and len(first_line("x" * 9999)) < 220


def test_weights_of_other_names_are_one_short_line(cli, shared, tmp_path):
    states = ({f"module.{i}": torch.zeros(1) for i in range(500)}, "does not fit"), ({}, "not a state dict")
    for number, (state, said) in enumerate(states):
        torch.save(state, tmp_path / "w.pt")
        words = ["train_teacher.py", *digits(shared), "--backbone", TEACHER, "--weights", tmp_path / "w.pt"]
        code, _ = cli(*words, "--run-dir", tmp_path / f"run{number}")
        assert f"w.pt: {said}" in code and len(code) < 500


# The process around the command


def run(words, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    "variables", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "abc"}, {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x"}]
)
def test_half_a_torchrun_is_one_line(variables):
    done = run(["evaluate.py", "--run", "nowhere"], env={**os.environ, **variables})
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "torchrun" in done.stderr, done.stderr


def test_names_of_any_bytes_are_printed_in_any_locale(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff-\xc3\xa9"
    os.mkdir(folder)
    done = run(["evaluate.py", "--run", os.fsdecode(folder)], env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"})
    assert done.returncode == 1 and "no run folder" in done.stderr and "Traceback" not in done.stderr


def test_metrics_work_where_nothing_can_be_written(tmp_path):
    code = "import os; os.access = lambda *a: False; import retrieval.metrics as m; print(m.CAN_CACHE)"
    assert run(["-c", code]).stdout == "False\n"


def test_a_python_that_is_none_is_refused(tmp_path):
    done = subprocess.run(
        ["sh", "scripts/evaluate.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": "/bin/true"},
    )
    assert done.returncode == 1 and "Python 3.11 or newer is needed" in done.stderr


def test_a_cache_that_is_not_there_is_no_empty_cache(cli, tmp_path):
    code, _ = cli("scripts.cache", "--cache-dir", tmp_path / "typo", "--list")
    assert "typo: no such folder" in code
    code, _ = cli("scripts.cache", "--cache-dir", tmp_path, "--prune=-5G")
    assert "--prune: '-5G' is no size" in code
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry/facts.json").write_text("[")
    code, out = cli("scripts.cache", "--cache-dir", tmp_path, "--list")
    assert code == 0 and "damaged facts.json" in out


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"method": null}', json.dumps({"sshp": {"map": {"stable/retrieved": "0.5"}}, "method": "kl"})],
)
def test_a_result_that_is_none_is_named(cli, tmp_path, content):
    (tmp_path / "test.json").write_text(content)
    code, _ = cli("scripts.report", tmp_path / "test.json", "--out", tmp_path / "out")
    assert "test.json" in code and not (tmp_path / "out").exists()
