"""Defaults are one set: what a student takes over from its teacher, and what the shell scripts pass on."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import distill
import train_teacher
from data.load import input_parser
from losses.methods import METHODS
from utils.runs import Run, read_defaults

# A value of each that is no default.
OTHER = {
    "dataset": "shards",
    "data_dir": Path("elsewhere"),
    "lists_dir": Path("lists"),
    "drop_leaks": True,
    "skip_broken": True,
    "split_seed": 5,
    "limit": 70,
    "train_images": 30,
    "views": 3,
    "view_seed": 6,
    "size": 48,
    "device": "cpu",
    "engine": "torch",
    "precision": "bfloat16",
    "cache_dir": Path("kept"),
    "cache_limit": 10**9,
    "workers": 3,
}


def parsed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, words)])
    return distill.parse()


def write_teacher(folder: Path, **options) -> Path:
    """A run folder with the arguments that a teacher's run would keep."""
    args = train_teacher.make_parser().defaults() | options
    folder.mkdir()
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in args.items()}
    (folder / "args.yaml").write_text(yaml.safe_dump(plain))
    return folder


def test_the_values_above_are_of_every_option_of_data_and_features():
    options = input_parser().defaults()
    assert options.keys() == OTHER.keys() and all(OTHER[name] != options[name] for name in options)


@pytest.mark.parametrize("name", OTHER)
def test_a_student_given_only_its_teacher_takes_the_option_over(monkeypatch, tmp_path, name):
    folder = write_teacher(tmp_path / "t", **{name: OTHER[name]})
    args = vars(parsed(monkeypatch, "--teacher", folder, "--run-dir", "r"))
    assert args[name] == OTHER[name] and type(args[name]) is type(OTHER[name])
    others = input_parser().defaults().items()
    assert all(args[other] == default for other, default in others if other != name)


def test_a_student_s_own_words_go_before_its_teacher_s(monkeypatch, tmp_path):
    folder = write_teacher(tmp_path / "t", **OTHER)
    words = ["--size", 32, "--views", 0, "--dataset", "digits", "--data-dir", "here", "--device", "auto"]
    args = parsed(monkeypatch, "--teacher", folder, "--run-dir", "r", *words)
    assert (args.size, args.views, args.dataset, args.data_dir, args.device) == (32, 0, "digits", Path("here"), "auto")
    assert (args.split_seed, args.workers, args.cache_dir) == (5, 3, Path("kept"))


def test_a_student_takes_nothing_else_over(monkeypatch, tmp_path):
    """What trains a teacher is no default of a student, by whatever name both have it."""
    other = {"epochs": 7, "lr": 0.5, "seed": 9, "batch_size": 3, "temperature": 0.9, "patience": 1, "bits": 12}
    folder = write_teacher(tmp_path / "t", **other, hashing="bihalf", head="mlp", kl_weight=0.5, validate_every=3)
    args = vars(parsed(monkeypatch, "--teacher", folder, "--run-dir", "r"))
    expected = distill.make_parser().defaults() | {"teacher": folder, "run_dir": Path("r")}
    assert args == expected


def test_every_method_has_a_weight_of_its_own_that_names_no_row(monkeypatch, tmp_path):
    folder = write_teacher(tmp_path / "t")
    for method, words, weight in (("sp", [], 300.0), ("kl", [], 3.0), ("sp", ["--kd-weight", 5], 5.0)):
        args = parsed(
            monkeypatch, "--teacher", folder, "--run-dir", tmp_path / f"{method}{weight}", "--method", method, *words
        )
        assert args.kd_weight == weight
        Run(args, distill.make_parser(args.method))
        assert read_defaults(args.run_dir)["kd_weight"] == METHODS[method].kd_weight


# Shell scripts


def defaults_in(script: str) -> dict[str, str]:
    """The variables that a script sets unless the environment does."""
    text = (ROOT / script).read_text()
    return dict(re.findall(r"^([A-Z_]+)=\$\{\1:-([^}]*)\}", text, re.MULTILINE))


TRAINING = {
    "LR": "lr",
    "EPOCHS": "epochs",
    "PATIENCE": "patience",
    "VALIDATE_EVERY": "validate_every",
    "BATCH_SIZE": "batch_size",
    "TEMPERATURE": "temperature",
}
BRCD = {"ALPHA": "alpha", "MARGIN": "margin", "CLUSTERS": "clusters"}
SCRIPTS = {  # the command that a script starts, and which of its options the variables are
    "scripts/run.sh": (train_teacher, TRAINING | {"KL_WEIGHT": "kl_weight"}),
    "scripts/ours_distill_run.sh": (distill, TRAINING | BRCD),
    "scripts/quickstart.sh": (distill, BRCD),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_scripts_defaults_are_the_commands(script):
    command, variables = SCRIPTS[script]
    written, known = defaults_in(script), command.make_parser().defaults()
    for variable, option in variables.items():
        assert float(written[variable]) == known[option], f"{variable}={written[variable]}, {option} is {known[option]}"


def commands_of(script: str, tmp_path: Path, **variables: str) -> list[list[str]]:
    """The words of every command of the project that a script starts; a spy stands in for Python."""
    spy = tmp_path / "python3"
    spy.write_text(f'#!/bin/sh\nif [ "$1" = "-c" ]; then exec {sys.executable} "$@"; fi\necho "$@"\n')
    spy.chmod(0o755)
    done = subprocess.run(
        ["sh", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": str(spy), "RUNS": str(tmp_path / "runs"), **variables},
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if line.split()[0].endswith(".py")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_scripts_variables_reach_the_option_of_their_name(tmp_path, script):
    command, variables = SCRIPTS[script]
    known = command.make_parser().defaults()
    # Each its own value, so that two that were exchanged are seen; numbers of the option's kind, and allowed.
    other = {
        variable: str(known[option] + 2 + i if isinstance(known[option], int) else 0.11 + 0.01 * i)
        for i, (variable, option) in enumerate(variables.items())
    }
    name = f"{command.__name__}.py"
    for words in (words for words in commands_of(script, tmp_path, **other) if words[0] == name):
        args = command.make_parser().parse_args(words[1:])
        assert {v: float(getattr(args, o)) for v, o in variables.items()} == {v: float(x) for v, x in other.items()}
    assert any(words[0] == name for words in commands_of(script, tmp_path))


@pytest.mark.parametrize("script", ["scripts/run.sh", "scripts/ours_distill_run.sh"])
def test_a_script_without_variables_is_its_command_without_options(tmp_path, script):
    """But for where things lie, and going on with what is there."""
    command, _ = SCRIPTS[script]
    (words,) = commands_of(script, tmp_path)
    args, known = vars(command.make_parser().parse_args(words[1:])), command.make_parser().defaults()
    apart = {name for name in known if args[name] != known[name]}
    of_its_own = {"dataset", "data_dir", "run_dir", "resume"} | ({"teacher", "bits"} if command is distill else set())
    assert apart == of_its_own and args["bits"] == 64
