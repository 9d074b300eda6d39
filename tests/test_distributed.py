"""torchrun with gloo: as many processes as you like, the same bits."""

import json

import numpy as np
import pytest
import torch
from conftest import STUDENT, TEACHER

from models.heads import load_head
from utils import distributed
from utils.errors import UserError

pytestmark = pytest.mark.slow  # whole command lines

TINY = ["--dataset", "digits", "--limit", 70, "--size", 32, "--engine", "torch"]


def recipe(command, folder, processes: int, views: int) -> None:
    """A teacher, with banked views a BRCD student and its evaluation too, by so many processes, with an own cache."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    options = [*TINY, "--views", views, "--cache-dir", folder / "cache"]
    training = ["--epochs", 4, "--validate-every", 2]
    teacher, student = folder / "teacher", folder / "student"
    commands = [
        ["train_teacher.py", *options, *training, "--backbone", TEACHER, "--bits", 16, "--run-dir", teacher],
        ["distill.py", *training, "--teacher", teacher, "--student", STUDENT, "--clusters", 4, "--run-dir", student],
    ]
    if not views:
        commands.pop()
    else:
        commands.append(["evaluate.py", "--run-dir", student, "--k", 50, "--dump-codes", folder / "codes"])
    for words in commands:
        done = command(*launcher, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("digits: 70 train") == 1  # only the first process talks
        assert done.stderr.count("training:   0%") <= 1


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The recipe by one process, on a bank of views and on fresh ones; by number of views."""
    folders = {views: tmp_path_factory.mktemp(f"alone_{views}") for views in (0, 3)}
    for views, folder in folders.items():
        recipe(command, folder, 1, views)
    return folders


@pytest.mark.parametrize("processes, views", [(2, 0), (2, 3)])
def test_the_number_of_processes_does_not_matter(command, alone, tmp_path, processes, views):
    recipe(command, tmp_path, processes, views)
    for name in ("teacher/best_map.pt", *(["student/best_sshp.pt", "student/best_ashp.pt"] if views else [])):
        one, many = (load_head(folder / name)[0].state_dict() for folder in (alone[views], tmp_path))
        assert all(torch.equal(one[key], many[key]) for key in one)
    caches = [sorted((f / "cache").glob("*/features.bin")) for f in (alone[views], tmp_path)]
    assert [p.parent.name for p in caches[0]] == [p.parent.name for p in caches[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*caches, strict=True))
    if not views:
        return
    one, many = (json.loads((folder / "student" / "test.json").read_text()) for folder in (alone[views], tmp_path))
    for setting in ("sshp", "ashp", "teacher"):
        assert one[setting] == many[setting]
    with (
        np.load(alone[views] / "student/test.npz", allow_pickle=False) as a,
        np.load(tmp_path / "student/test.npz", allow_pickle=False) as b,
    ):
        assert all(np.array_equal(a[key], b[key]) for key in a.files)


def test_one_rank_s_mistake_ends_all(command, tmp_path, photo):
    for part in ("database", "query"):
        for name in ("a", "b"):
            for i in range(8):
                photo(tmp_path / part / name / f"{i}.png", seed=i)
    (tmp_path / "database" / "b" / "7.png").write_bytes(b"no image")
    done = command(
        *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "train_teacher.py"],
        *["--dataset", "folder", "--data-dir", tmp_path, "--backbone", STUDENT, "--size", 32, "--views", 2],
        *["--epochs", 1, "--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache"],
        timeout=120,
    )
    assert done.returncode != 0 and "database/b/7.png: not a readable image" in done.stderr


def test_a_rank_whose_neighbour_ended_ends_in_a_line(monkeypatch):
    def closed(*words):
        raise RuntimeError("[../gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:4021")

    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "all_gather_object", closed)
    with pytest.raises(UserError, match=r"^another process has ended, so rank 1 ends too; .*Connection closed by peer"):
        distributed.gather(3)


def test_alone_everything_is_its_own():
    assert distributed.gather(3) == [3] and distributed.from_first("x") == "x"
    assert list(distributed.in_turn(iter([1, 2]))) == [1, 2]
    assert list(range(5))[distributed.my_turns()] == list(range(5)) and distributed.my_shard(7) == slice(0, 7)


def ranks(monkeypatch, values: list[list]) -> list[list]:
    """What ``in_turn`` gives on every rank, if ``values[r]`` is what rank r makes; ranks stand in for processes."""
    rounds = max(map(len, values)) + 1
    made = [[v[i] if i < len(v) else None for v in values] for i in range(rounds)]
    results = []
    for rank, own in enumerate(values):
        answers = iter(made)
        monkeypatch.setattr(distributed, "size", lambda: len(values))
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "gather", lambda value, answers=answers: next(answers))
        try:
            results.append(list(distributed.in_turn(iter(own))))
        except UserError as error:
            results.append(str(error))
    return results


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("world", [2, 3])
def test_turns_make_the_whole_in_order(monkeypatch, n, world):
    everything = list(range(n))
    assert ranks(monkeypatch, [everything[r::world] for r in range(world)]) == [everything] * world


@pytest.mark.parametrize("n, world", [(10, 3), (7, 7), (100, 8)])
def test_shards_cover_the_database_once(monkeypatch, n, world):
    monkeypatch.setattr(distributed, "size", lambda: world)
    covered = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        covered += range(n)[distributed.my_shard(n)]
    assert covered == list(range(n))
