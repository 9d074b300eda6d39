"""A small seeded part of benchmarks/faults.py: commands killed and on full disks leave nothing torn, and when they are
run again they end in the bits of a run that nobody disturbed."""

import pytest

from benchmarks.faults import Bench, Findings, cannot_mount, disks, kills

pytestmark = pytest.mark.slow  # whole command lines

SEED = 1


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"), last="evaluation")


def test_killed_commands_end_in_the_same_bits(bench, tmp_path):
    findings = Findings(tmp_path)
    tallies = kills(bench, ("training", "evaluation"), findings, SEED, most=4)
    assert tallies["training"]["tries"] == tallies["evaluation"]["tries"] == 2
    assert not findings.listed()


def test_a_full_disk_loses_nothing(bench, tmp_path):
    if skipped := cannot_mount(tmp_path / "mount"):
        pytest.skip(skipped)
    findings = Findings(tmp_path)
    tallies = disks(bench, ("training", "evaluation"), findings, SEED, most=2)
    assert tallies["training, full"]["tries"] == tallies["evaluation, full"]["tries"] == 1
    assert not findings.listed()
