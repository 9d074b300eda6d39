"""The command lines as a user runs them, on a slice of the digits, and what they say of a user's mistakes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, STUDENT, TEACHER, command_line, digits
from test_data import make_folder

from models.heads import load_head
from retrieval.codes import unpack

pytestmark = pytest.mark.slow  # whole command lines


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def test_from_images_to_map(cli, measured):
    run = measured / "run"
    assert "5 clusters, purity" in (measured / "distill.py.out").read_text()
    result = last_json((measured / "evaluate.py.out").read_text())
    assert (result["bits"], result["n_queries"], result["n_database"], result["pretrained"]) == (16, 90, 90, True)
    assert (result["teacher_backbone"], result["student_backbone"]) == (TEACHER, STUDENT)
    written = json.loads((measured / "out.json").read_text())
    assert 0.5 < result["equal_bits"] <= 1 and 0 < result["bit_correlation"] <= 1  # brcd aligns bits
    for setting in ("sshp", "ashp", "matched", "teacher"):
        assert written[setting]["map"] == result[setting]["map"]
        assert 0.25 < result[setting]["map"]["stable/retrieved"] <= 1  # 10 classes: chance is near 0.15 here
        with np.load(measured / "codes" / f"{setting}_query.npz", allow_pickle=False) as dumped:
            assert unpack(dumped["codes"], 16).shape == (90, 16) and dumped["paths"][0].startswith("digit")
    for name in ("out.csv", "out.png", "out_retrieved.png"):
        assert (measured / name).stat().st_size > 100
    assert {
        "args.yaml",
        "environment.json",
        "log.csv",
        "summary.json",
        "clusters.npz",
        "best_sshp.pt",
        "best_ashp.pt",
        "tensorboard",
    } <= {p.name for p in run.iterdir()}
    head, facts = load_head(run / "best_sshp.pt")
    assert facts["role"] == "student" and head.config["kind"] == "mlp"

    code, out = cli("scripts.redundancy", "--run", run)
    assert code == 0 and "below the margin" in out and (run / "redundancy.png").stat().st_size > 100
    code, out = cli("scripts.report", measured / "out.json", "--out", measured / "report")
    assert code == 0 and "| brcd clusters=5 " in out, out
    assert (measured / "report" / "table.tex").read_text().count(r"\begin{tabular}") == 1


def test_it_runs_where_linux_calls_are_missing(tmp_path):
    """macOS has no sched_getaffinity, Windows no fcntl either."""
    hidden = "import os, sys, runpy; del os.sched_getaffinity; sys.modules['fcntl'] = None; sys.argv = sys.argv[1:]; "
    words = command_line(
        "train_teacher.py",
        *digits(tmp_path, "--engine", "torch", "--backbone", STUDENT, "--epochs", 1, "--run-dir", tmp_path),
    )
    run = [sys.executable, "-c", hidden + "runpy.run_path(sys.argv[0], run_name='__main__')", *words[1:]]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "summary.json").exists(), done.stderr


def test_a_student_takes_data_and_features_from_its_teacher(cli, teacher, tmp_path):
    code, out = cli(
        "distill.py", "--teacher", teacher, "--student", STUDENT, "--clusters", 3, "--epochs", 1, "--run-dir", tmp_path
    )
    assert code == 0 and "digits: 90 train" in out, out


def test_the_teacher_alone_and_the_cluster_number(cli, teacher):
    code, out = cli("evaluate.py", "--run", teacher, "--pictures", 0)
    assert code == 0 and last_json(out)["method"] == "teacher" and "sshp" not in last_json(out)
    code, out = cli("scripts.clusters", "--teacher", teacher, "--numbers", 2, 4, 89, "--clusters", 4)
    assert code == 0 and "bits kept" in out and "<- highest" in out
    assert (teacher / "cluster_numbers.png").stat().st_size > 100


def test_a_run_is_measured_on_other_images(cli, shared, measured, photo, tmp_path):
    other = make_folder(tmp_path / "other", photo)
    words = ["evaluate.py", "--run", measured / "run", "--pictures", 0, "--json", tmp_path / "other.json"]
    code, out = cli(*words, "--dataset", "folder", "--data-dir", other)
    assert code == 0, out
    written = json.loads((tmp_path / "other.json").read_text())
    assert (written["dataset"], written["n_database"], written["n_queries"]) == ("folder other", 12, 4)
    trained_on = json.loads((measured / "out.json").read_text())["data"][:12]
    assert written["options"]["trained_on"] == written["teacher_options"]["trained_on"] == trained_on
    code, out = cli("scripts.report", tmp_path / "other.json", measured / "out.json", "--out", tmp_path / "report")
    assert code == 0 and "folder other" in out and f"trained-on={trained_on}" in out, out
    code, out = cli(*words, "--split-seed", 3)
    assert str(code).startswith("error: --split-seed is of other images"), out
    code, out = cli(*words, "--data-dir", other)  # the run's own data set, the digits, lies nowhere else
    assert code == 0 and "digits" in out, out


def test_features_are_listed(cli, shared, teacher):
    code, out = cli("scripts.cache", "--cache-dir", shared / "cache", "--list")
    assert code == 0 and "kind=evaluation" in out and "kind=views" in out and "entries" in out


@pytest.mark.parametrize("hashing", ["bihalf", "greedyhash", "itq"])
def test_every_hashing_can_teach(cli, shared, tmp_path, hashing):
    words = ["--backbone", TEACHER, "--bits", 16, "--hashing", hashing, "--epochs", 2, "--run-dir", tmp_path / "t"]
    code, out = cli("train_teacher.py", *digits(shared), *words)
    assert code == 0, out
    words = ["--teacher", tmp_path / "t", "--student", STUDENT, "--clusters", 3, "--epochs", 2]
    words += ["--hashing", "cibhash" if hashing == "itq" else hashing, "--run-dir", tmp_path / "s"]
    code, out = cli("distill.py", *words)
    assert code == 0, out
    code, out = cli("evaluate.py", "--run", tmp_path / "s", "--pictures", 0)
    assert code == 0 and last_json(out)["teacher_hashing"] == hashing


def test_twelve_bits_work(cli, shared, tmp_path):
    code, out = cli(
        "train_teacher.py", *digits(shared), "--backbone", TEACHER, "--bits", 12, "--epochs", 1, "--run-dir", tmp_path
    )
    assert code == 0, out
    assert last_json(cli("evaluate.py", "--run", tmp_path, "--pictures", 0)[1])["bits"] == 12


def test_a_folder_of_images(cli, photo, tmp_path):
    root = make_folder(tmp_path / "images", photo, database=12, query=6)
    photo(root / "database" / "cat" / "gray.png", "L")
    photo(root / "database" / "cat" / "deep.png", "I;16")
    photo(root / "query" / "dog" / "dot.png", "RGBA", size=(1, 1))
    words = ["--dataset", "folder", "--data-dir", root, "--size", 64, "--cache-dir", tmp_path / "c"]
    words += ["--backbone", TEACHER, "--bits", 8, "--epochs", 1]
    for views in (2, 0):
        code, out = cli("train_teacher.py", *words, "--views", views, "--run-dir", tmp_path / f"t{views}")
        assert code == 0, out
    assert cli("evaluate.py", "--run", tmp_path / "t2")[0] == 0


# Killed and resumed


def distill_words(shared, teacher, folder):
    words = ["distill.py", *digits(shared), "--teacher", teacher, "--student", STUDENT, "--clusters", 3]
    words += ["--epochs", 20, "--validate-every", 2, "--patience", 99, "--run-dir", folder, "--resume"]
    return words


def wait_for(path, process) -> None:
    until = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert path.exists()


def test_an_interrupted_run_resumes_to_the_same_bits(cli, command, shared, teacher, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert command(*distill_words(shared, teacher, whole)).returncode == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as ``command`` has it
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command_line(*distill_words(shared, teacher, killed)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(killed / "log.csv", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert not (killed / "summary.json").exists()
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    done = command(*distill_words(shared, teacher, killed))
    assert done.returncode == 0 and "resuming after epoch" in done.stdout, done.stderr
    for name in ("best_sshp.pt", "best_ashp.pt"):
        a, b = load_head(whole / name)[0].state_dict(), load_head(killed / name)[0].state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert (whole / "log.csv").read_text() == (killed / "log.csv").read_text()
    code, said = cli(*distill_words(shared, teacher, killed))
    assert code == 0 and "finished already" in said


# Mistakes: one line that says what, where and what to do; no traceback


DIGITS = "--dataset digits --limit 90 --cache-dir {shared}/cache --size 64 --views 2 --run-dir {tmp}/r "
TRAIN = f"train_teacher.py {DIGITS} --backbone {TEACHER} "
DISTILL = f"distill.py {DIGITS} --teacher {{teacher}} --student {STUDENT} "
MISTAKES = {
    "unknown data set": (TRAIN + "--dataset imagenot", "--dataset: 'imagenot' is not known; there are: cifar10"),
    "unknown backbone": (TRAIN + "--backbone vit_x", "--backbone: 'vit_x' is not known; there are: vit_b_16"),
    "unknown method": (DISTILL + "--method magic", "--method: 'magic' is not known; there are: none, rkd"),
    "unknown hashing": (TRAIN + "--hashing lsh", "--hashing: 'lsh' is not known; there are: cibhash"),
    "unknown device": (TRAIN + "--device tpu9", "unknown device 'tpu9'"),
    "no bits": (TRAIN + "--bits 0", "--bits: '0' is not a whole number from 1 to 65536"),
    "negative bits": (TRAIN + "--bits -1", "--bits: '-1'"),
    "no epochs": (TRAIN + "--epochs 0", "--epochs: '0'"),
    "one view": (TRAIN + "--views 1", "--views: 1: a pair needs at least 2 views"),
    "negative views": (TRAIN + "--views -2", "--views: '-2'"),
    "no batch": (TRAIN + "--batch-size 0", "--batch-size: '0'"),
    "a single pixel": (TRAIN + "--size 1", "--size 1: fewer than 8 pixels"),
    "no pixels": (TRAIN + "--size 0", "--size: '0'"),
    "other bits than the teacher": (DISTILL + "--bits 32", "a teacher of 16 bits, --bits is 32"),
    "another split than the teacher": (DISTILL + "--limit 80", "other images or another split"),
    "no teacher there": (DISTILL + "--teacher {tmp}/none", "no run folder"),
    "clusters by another word": (DISTILL + "--clusters many", "--clusters: 'many' is not a whole number"),
    "more clusters than images": (DISTILL + "--clusters 91", "--clusters 91"),
    "margin": (DISTILL + "--clusters 3 --margin 2", "--margin: '2' is not a number from 0 to 1"),
    "alpha": (DISTILL + "--clusters 3 --alpha 2", "--alpha: '2'"),
    "temperature": (TRAIN + "--temperature 0", "--temperature: '0'"),
    "a file as run folder": (TRAIN + "--run-dir {tmp}/file", "{tmp}/file"),
    "a folder that cannot be made": (TRAIN + "--run-dir /proc/no/run", "/proc/no"),
    "a learning rate that is no number": (TRAIN + "--lr nan", "--lr: 'nan' is not a number of at least 0"),
    "NaN": (DISTILL + "--clusters 3 --lr 1e30 --epochs 5", "not finite"),
    "no data set and no network": (TRAIN + "--dataset cifar10 --data-dir {tmp}/cifar", "could not be downloaded"),
    "empty folder": (TRAIN + "--dataset folder --data-dir {tmp}", "no images in it"),
    "no run": ("evaluate.py --run {tmp}", "no run folder"),
    "k": ("evaluate.py --run {teacher} --k 0", "--k: '0'"),
    "no clusters": ("scripts.redundancy --run {teacher}", "no clusters.npz"),
    "no result": ("scripts.report {tmp}/file --out {tmp}/o", "not a result of evaluate.py"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(cli, shared, teacher, tmp_path, monkeypatch, name):
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # no network, also where there is one
    (tmp_path / "file").write_text("a file")
    words, said = (text.format(shared=shared, teacher=teacher, tmp=tmp_path) for text in MISTAKES[name])
    code, out = cli(*words.split())
    assert isinstance(code, str) and code.startswith("error: ") and said in code, (code, out)
    assert "\n" not in code and "Traceback" not in out


def test_an_option_that_does_nothing_is_told(cli, shared, teacher, tmp_path):
    words = [*digits(shared), "--teacher", teacher, "--student", STUDENT, "--epochs", 1, "--run-dir", tmp_path / "r"]
    words += ["--method", "none", "--hashing", "bihalf", "--kl-weight", 0.5, "--alpha", 0.3, "--kd-weight", 2]
    code, out = cli("distill.py", *words)
    assert code == 0
    told = [line for line in out.splitlines() if "does nothing with the other options chosen" in line]
    assert [line.split()[1] for line in told] == ["--alpha", "--kl-weight", "--kd-weight"]
    code, out = cli("distill.py", *words[:-10], "--resume", "--method", "none", "--run-dir", tmp_path / "s")
    assert code == 0 and "does nothing" not in out


def test_an_error_has_exit_status_1_and_no_traceback(command, tmp_path):
    done = command("train_teacher.py", "--backbone", "vit_x", "--run-dir", tmp_path / "never")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_a_run_is_not_overwritten_by_other_arguments(cli, shared, teacher):
    log = (teacher / "log.csv").read_text()
    words = ["train_teacher.py", *digits(shared), "--backbone", TEACHER, "--epochs", 12, "--run-dir", teacher]
    code, _ = cli(*words, "--bits", 16)
    assert "holds this run already" in code
    code, _ = cli(*words, "--bits", 32, "--resume")
    assert "bits: 16 there, 32 now" in code
    assert (teacher / "log.csv").read_text() == log


@pytest.mark.parametrize("script", ["scripts/run.sh", "scripts/ours_distill_run.sh", "scripts/evaluate.sh"])
def test_scripts_pass_flags_and_environment_on(script, tmp_path):
    spy = tmp_path / "python3"
    spy.write_text(f'#!/bin/sh\nif [ "$1" = "-c" ]; then exec {sys.executable} "$@"; fi\necho "$@"\n')
    spy.chmod(0o755)
    done = subprocess.run(
        ["sh", script, "--k", "7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": str(spy), "BITS": "24", "VIEWS": "16"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("--k 7") and ("24bits" in done.stdout)
    assert script == "scripts/evaluate.sh" or ("--bits 24" in done.stdout and "--views 16" in done.stdout)
