"""The training loop, run folders and checkpoints: killed at any moment, resumed to the same bits."""

import argparse
import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from models.heads import HashHead, load_head, save_head
from models.trained import read_teacher
from utils import training
from utils.checkpoints import read_checkpoint, save_atomically
from utils.errors import UserError, guarded
from utils.files import ASIDE, written_aside
from utils.options import FREE, Parser
from utils.runs import DEFAULTS, Run, read_args, read_defaults
from utils.seeds import generator
from utils.training import Schedule, fit

ARGS = {"lr": 0.1, "seed": 0}
CPU = torch.device("cpu")


def run_in(folder: Path, args: dict = ARGS, resume: bool = True) -> Run:
    parser = Parser("")
    group = parser.add_argument_group("options")
    for name in ("--lr", "--seed"):
        group.add_argument(name, default=0.5)
    for name in ("--run-dir", "--workers", "--resume"):
        group.add_argument(name, marks={FREE})
    return Run(argparse.Namespace(**{"run_dir": folder, "resume": resume} | args), parser)


class Killed(BaseException):
    pass


def train(
    folder, die_at: int | None = None, epochs: int = 9, loss=lambda x: x, device=CPU, lr_schedule=None, seen=None
):
    """A small head on random features through the real loop; ``die_at``: the optimizer step that never ends."""
    run = run_in(folder)
    head = HashHead(6, 4, seed=0).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    step = iter(range(10**6))

    def steps(epoch):
        for batch in torch.randn(5, 8, 6, generator=generator("data", epoch)):
            if next(step) == die_at:
                raise Killed
            if seen is not None:
                seen[epoch] = optimizer.param_groups[0]["lr"]
            yield {"loss": loss(head(batch.to(device)).tanh().pow(2).mean()), "other": torch.tensor(1.0)}

    def validate():
        logits = head(torch.ones(1, 6, device=device))
        return {"map": -logits.abs().sum().item(), "ashp": logits.sum().item()}

    def save_best(path, epoch, metrics):
        save_head(path, head, role="teacher", epoch=epoch, metrics=metrics)

    summary = fit(run, head, optimizer, steps, validate, save_best, Schedule(epochs, 3, 99, lr_schedule))
    return head, summary


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("lr_schedule", [None, "cosine"])
@pytest.mark.parametrize("die_at", [0, 4, 14, 15, 22, 29, 30, 44])
def test_killed_and_resumed_is_never_killed(tmp_path, device, die_at, lr_schedule):
    whole, summary = train(tmp_path / "whole", device=device, lr_schedule=lr_schedule)
    with pytest.raises(Killed):
        train(tmp_path / "killed", die_at, device=device, lr_schedule=lr_schedule)
    resumed, again = train(tmp_path / "killed", device=device, lr_schedule=lr_schedule)
    assert same(whole.state_dict(), resumed.state_dict()) and summary["best"] == again["best"]
    for name in ("log.csv", "best_map.pt", "best_ashp.pt"):
        a, b = (tmp_path / run / name for run in ("whole", "killed"))
        if name.endswith(".pt"):
            assert same(load_head(a)[0].state_dict(), load_head(b)[0].state_dict())
        else:
            assert a.read_text() == b.read_text()


def test_the_learning_rate_stays_or_falls_as_a_cosine(tmp_path):
    stays, falls = {}, {}
    train(tmp_path / "a", epochs=4, seen=stays)
    train(tmp_path / "b", epochs=4, seen=falls, lr_schedule="cosine")
    assert set(stays.values()) == {0.05} and falls[1] == 0.05 and falls[3] == pytest.approx(0.025)
    assert list(falls.values()) == sorted(falls.values(), reverse=True)


def test_killed_between_the_last_checkpoint_and_its_log(tmp_path, monkeypatch):
    train(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "write_log", lambda run: (_ for _ in ()).throw(Killed) if len(run.rows) == 9 else None)
        train(tmp_path / "killed")
    train(tmp_path / "killed")
    assert (tmp_path / "whole" / "log.csv").read_text() == (tmp_path / "killed" / "log.csv").read_text()


@pytest.mark.parametrize("nth", range(1, 9))
def test_killed_while_writing_any_file(tmp_path, monkeypatch, nth):
    whole, _ = train(tmp_path / "whole")
    count, replace = iter(range(1, 10**6)), os.replace

    def dies(source, target):
        if next(count) == nth:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(Killed):
            train(tmp_path / "killed")
    folder = tmp_path / "killed"
    (folder / f"{ASIDE}last.pt.torn").write_text("what a SIGKILL leaves behind")
    resumed, _ = train(folder)
    assert same(whole.state_dict(), resumed.state_dict())
    assert not list(folder.glob(f"{ASIDE}*")) and (folder / "environment.json").exists()


def test_best_checkpoints_are_kept_apart(tmp_path, device):
    _, summary = train(tmp_path / "r", device=device)
    for name in ("map", "ashp"):
        _, facts = load_head(tmp_path / "r" / f"best_{name}.pt")
        assert (
            facts["metrics"][name] == summary["best"][name]["value"]
            and facts["epoch"] == summary["best"][name]["epoch"]
        )


def test_early_stopping(tmp_path):
    run, head = run_in(tmp_path / "r", resume=False), HashHead(2, 2)
    values = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9, 0.9])
    optimizer = torch.optim.Adam(head.parameters())
    summary = fit(
        run,
        head,
        optimizer,
        lambda e: [{"loss": head(torch.ones(1, 2)).sum()}],
        lambda: {"map": next(values)},
        lambda *a: None,
        Schedule(100, 2, 2),
    )
    assert summary["best"]["map"] == {"value": 0.3, "epoch": 4} and summary["epochs"] == 10 and summary["early_stop"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path, device):
    train(tmp_path / "r", epochs=3, device=device)
    before = read_checkpoint(tmp_path / "r" / "last.pt", training.KIND)
    with pytest.raises(UserError, match=r"epoch 4: the loss or a weight is not finite.*--lr"):
        train(tmp_path / "r", epochs=9, loss=lambda x: x * float("nan"), device=device)
    after = read_checkpoint(tmp_path / "r" / "last.pt", training.KIND)
    assert after["epoch"] == 3 and same(before["module"], after["module"])


# Run folders


def test_a_run_folder_belongs_to_its_arguments(tmp_path):
    run_in(tmp_path / "r", resume=False)
    with pytest.raises(UserError, match="--resume"):
        run_in(tmp_path / "r", resume=False)
    with pytest.raises(UserError, match=r"other arguments \(lr: 0.1 there, 0.2 now\)"):
        run_in(tmp_path / "r", ARGS | {"lr": 0.2})
    run_in(tmp_path / "r", ARGS | {"workers": 3})
    file = tmp_path / "r" / "args.yaml"
    file.write_text(file.read_text().replace("lr: 0.1\n", ""))
    run_in(tmp_path / "r", ARGS | {"lr": 0.5})  # of older code, without an option that is at its default now
    with pytest.raises(UserError, match=r"other arguments \(lr: 0.5 there, 0.2 now\)"):
        run_in(tmp_path / "r", ARGS | {"lr": 0.2})
    (tmp_path / "r" / "args.yaml").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        run_in(tmp_path / "r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run_in(tmp_path / "full")
    with pytest.raises(UserError, match="no run folder"):
        read_args(tmp_path / "nowhere")


def test_files_of_others_are_refused_and_stay(tmp_path):
    own = {tmp_path / name for name in (".pre-commit-config.yaml", ".env.local")}
    for file in own:
        file.write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        run_in(tmp_path, resume=False)
    assert set(tmp_path.iterdir()) == own
    run = run_in(tmp_path / "r", resume=False)
    (tmp_path / "r" / ".env.local").write_text("mine")
    del run
    run_in(tmp_path / "r")
    assert (tmp_path / "r" / ".env.local").exists()


def test_a_run_folder_has_one_process_at_a_time(tmp_path):
    first = run_in(tmp_path / "r", resume=False)
    with pytest.raises(UserError, match="r: another process is at work there"):
        run_in(tmp_path / "r")
    del first
    run_in(tmp_path / "r")


def test_a_run_holds_its_environment(tmp_path):
    run_in(tmp_path / "r", resume=False)
    known = json.loads((tmp_path / "r" / "environment.json").read_text())
    assert {"command", "commit", "python", "torch", "threads"} <= known.keys() and read_args(tmp_path / "r")[
        "lr"
    ] == 0.1


def test_a_run_keeps_the_defaults_of_the_options_that_name_it(tmp_path):
    run_in(tmp_path / "r")
    assert read_defaults(tmp_path / "r") == {"lr": 0.5, "seed": 0.5}
    (tmp_path / "r" / DEFAULTS).unlink()
    with pytest.raises(UserError, match="run the command that made it again with --resume"):
        read_defaults(tmp_path / "r")
    run_in(tmp_path / "r")
    assert read_defaults(tmp_path / "r")


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output"),
    ],
)
def test_a_failing_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, number, words):
    target = tmp_path / "last.pt"
    save_atomically(target, {"kind": "t", "value": 1})

    def fails(descriptor):
        raise OSError(number, os.strerror(number), "last.pt")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(SystemExit) as stop:
        guarded(lambda: save_atomically(target, {"kind": "t", "value": 2}))
    assert str(stop.value).startswith("error: ") and words in str(stop.value) and "\n" not in str(stop.value)
    assert read_checkpoint(target, "t")["value"] == 1 and list(tmp_path.iterdir()) == [target]


def test_a_file_written_aside_appears_whole(tmp_path):
    with pytest.raises(ZeroDivisionError), written_aside(tmp_path / "a" / "x.txt", "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert list((tmp_path / "a").iterdir()) == []


# Checkpoints


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran-code",))


def test_no_checkpoint_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"kind": "brcd-hash-head", "state": Evil()}, "evil.pt")
    with open("pickle.pt", "wb") as file:
        pickle.dump(Evil(), file)
    for name in ("evil.pt", "pickle.pt"):
        with pytest.raises(UserError, match=f"{name}: truncated or no checkpoint"):
            load_head(tmp_path / name)
    assert not os.path.exists("ran-code")


def test_checkpoints_that_are_none(tmp_path):
    good = tmp_path / "best_map.pt"
    save_head(good, HashHead(6, 4), role="student")
    with pytest.raises(UserError, match="no run folder"):
        read_teacher(tmp_path)
    content = good.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 30):
        good.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"truncated or no checkpoint"):
            load_head(good)
    torch.save(HashHead(6, 4).state_dict(), good)
    with pytest.raises(UserError, match="no file of this project"):
        load_head(good)
    save_atomically(good, {"kind": "brcd-training"})
    with pytest.raises(UserError, match="this is brcd-training"):
        load_head(good)
    twice = tmp_path / "twice.pt"
    twice.write_bytes(good.read_bytes() * 2)
    with pytest.raises(UserError, match=r"twice.pt: truncated or no checkpoint"):
        read_checkpoint(twice, "brcd-training")
    save_atomically(good, {"kind": "brcd-hash-head", "format": 1, "config": {"dim": 6, "bits": 4}, "state": {}})
    with pytest.raises(UserError, match="incomplete"):
        load_head(good)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_head(tmp_path / "none.pt")


def test_a_checkpoint_is_the_head_alone(tmp_path):
    head = HashHead(1000, 64, "mlp")
    save_head(tmp_path / "h.pt", head, role="student")
    loaded, facts = load_head(tmp_path / "h.pt")
    assert same(head.state_dict(), loaded.state_dict()) and facts["config"] == {"dim": 1000, "bits": 64, "kind": "mlp"}
    assert not loaded.training


PRODUCTS = """
import hashlib, torch, utils.seeds
a, b = (torch.randn(shape, generator=utils.seeds.generator("t")) for shape in ((136, 1000), (1000, 64)))
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    print(hashlib.sha256((a @ b).numpy().tobytes() + ((a @ b).T @ a).numpy().tobytes()).hexdigest())
"""


def test_products_do_not_depend_on_the_number_of_threads():
    done = subprocess.run([sys.executable, "-c", PRODUCTS], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and len(set(done.stdout.split())) == 1, done.stdout + done.stderr
