"""The published heads: whole, small, and where they say."""

import hashlib

import pytest
from conftest import ROOT

from models.trained import read_run

FOLDERS = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/*/args.yaml"))


def test_files_are_those_that_were_published():
    top = ROOT / "checkpoints"
    listed = dict(line.split("  ")[::-1] for line in (top / "SHA256SUMS").read_text().splitlines())
    there = {path.relative_to(top).as_posix(): path for path in top.rglob("*.*") if path.parent != top}
    assert listed.keys() == there.keys()
    for name, path in there.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name], name
    assert sum(path.stat().st_size for path in there.values()) < 25e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_each_loads_with_its_teacher(folder, monkeypatch):
    monkeypatch.chdir(ROOT)  # a student names its teacher from there
    run = read_run(folder)
    assert (run.teacher is None) == (folder.name == "teacher")
    assert run.backbone().pretrained and run.args["run_dir"] == folder.relative_to(ROOT).as_posix()
    assert not any(str(value).startswith("/") for value in run.args.values())
