"""A small seeded part of benchmarks/faults.py, and the machine's own judgement."""

import sys
import time

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import fault_inputs
from fault_commands import ENVIRONMENT, make_bench, server
from fault_disks import disks
from fault_inputs import Findings, look_at
from fault_kills import Undisturbed, kills
from fault_mutations import apply, cut, flip, replace, splice
from fault_readers import Reader, readers

from utils.errors import UserError

pytestmark = pytest.mark.slow  # whole command lines

INPUTS, SEED = 30, 1
COMMANDS = ("training", "evaluation")


# The judge: a machine that calls everything right would find nothing.


def write(folder, variant):
    (folder / "file").write_bytes(b"good%d" % variant)


def judged(tmp_path, read, **more) -> tuple[dict, list]:
    found = []
    reader = Reader("test", "file", write, read, **more)
    tally = look_at(reader, tmp_path / "case", SEED, INPUTS, lambda what, *_: found.append(what))
    return dict(tally), found


def refusing(message: str):
    def read(folder):
        if not (folder / "file").read_bytes().startswith(b"good"):
            error = UserError("")  # which would fold and cut what is set here
            error.args = (message.format(file=folder / "file"),)
            raise error

    return read


def test_one_line_that_names_the_file_is_right(tmp_path):
    tally, found = judged(tmp_path, refusing("{file}: damaged"))
    assert tally["inputs"] >= INPUTS / 2 and tally["refused"] > 5 and not found


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("damaged", "does not name the file"),
        ("{file}:\ndamaged", "has several lines"),
        ("{file}: " + 2000 * "x", "is very long"),
        ("{file}: \udcff", "cannot be printed"),
    ],
)
def test_other_refusals_are_findings(tmp_path, message, fault):
    _, found = judged(tmp_path, refusing(message))
    assert found and all(fault in what for what in found)


def test_other_errors_silence_and_nonsense_are_findings(tmp_path):
    def number(folder):
        return int((folder / "file").read_bytes()[4:])

    def raw(folder):
        return (folder / "file").read_bytes()

    _, found = judged(tmp_path, number)
    assert found and all("ValueError in" in what for what in found)
    _, found = judged(tmp_path, raw, exact=True)
    assert found and all("where a checksum could tell" in what for what in found)
    _, found = judged(tmp_path, raw, valid=lambda value, folder: False)
    assert found and all("nonsense" in what for what in found)
    tally, found = judged(tmp_path, raw)
    assert tally["changed"] > 5 and not found


def test_a_hang_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(fault_inputs, "SECONDS", 0.01)

    def read(folder):
        if not (folder / "file").read_bytes().startswith(b"good"):
            time.sleep(5)

    _, found = judged(tmp_path, read)
    assert found and all("Hang" in what for what in found)


def test_mutations_are_what_they_say():
    assert apply(b"abc", [(flip, 1, 0)]) == b"acc" and apply(b"abc", [(cut, 2)]) == b"ab"
    assert apply(b"abc", [(splice, b"xyz", 1, 2)]) == b"az" and apply(b"abc", [(replace, b"")]) == b""
    assert apply(b"", [(flip, 7, 3), (cut, -5)]) == b""


# The project's readers: the right result, or one line that names the file.


@pytest.mark.parametrize("name", readers())
def test_damaged_files_are_refused_in_one_line(tmp_path, name):
    found = []
    tally = look_at(readers()[name], tmp_path / "case", SEED, INPUTS, lambda *finding: found.append(finding[:2]))
    assert tally["inputs"] >= INPUTS / 2
    assert not found, found[:3]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    top = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where the server starts, which sets the rest
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        return Undisturbed(make_bench(top / "bench", server()), top / "undisturbed")


@pytest.mark.slow
def test_killed_commands_end_in_the_same_bits(undisturbed, tmp_path):
    findings = Findings(tmp_path)
    tally = kills(undisturbed, 0, SEED, findings, 2, COMMANDS, most=4)
    assert sum(tally[key]["kills"] for key in ("forks", "real processes")) == 4
    assert not findings.listed()


@pytest.mark.slow
def test_bad_disks_lose_nothing(undisturbed, tmp_path):
    findings = Findings(tmp_path)
    disks(undisturbed, 0, SEED, findings, 2, COMMANDS, most=4)
    assert not findings.listed()
