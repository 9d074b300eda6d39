"""Every pair of values of every two options occurs in some row; each row ends well, or is refused before any work.

Tiny images; what is tested is that the combination runs, not what comes out. The weights are real ones, since the codes
of random ones are all alike, and nothing can be clustered.
"""

import itertools
import json
import zlib

import numpy as np
import pytest
from allpairspy import AllPairs
from conftest import STUDENT, TEACHER, run_here
from PIL import Image

from losses.methods import METHODS

pytestmark = pytest.mark.slow  # whole command lines

FEATURES = {
    "dataset": ["digits", "folder", "photos"],
    "engine": ["torch"],  # OpenVINO takes seconds to convert a network: see ENGINES
    "precision": ["float32", "bfloat16"],
    "views": [0, 2],
    "lr-schedule": [None, "cosine"],
    "batch-size": [7, 64],
}
TEACHERS = FEATURES | {
    "features": ["auto", "pooled"],
    "head": ["linear", "mlp"],
    "hashing": ["cibhash", "bihalf", "greedyhash", "itq"],
}
STUDENTS = FEATURES | {
    "method": list(METHODS),
    "hashing": ["cibhash", "bihalf", "greedyhash"],
    "student-features": ["auto", "pooled"],
    "head": ["auto", "linear", "mlp"],
    "bn": ["frozen", "recalibrate"],
    "rotated-views": [1, 2],
    "student-size": [None, 40],
    "clusters": [3, "auto"],
    "mask-rule": ["decided", "undecided"],
    "no-mask": [False, True],
    "part": [None, "--no-cluster", "--no-individual"],
    "variant": ["paper", "released"],
    "hardness": [0, 2],
    "evaluate:queries": ["test", "val"],
    "evaluate:k": [None, 3],
    "evaluate:pictures": [0, 2],
    "evaluate:device": [None, "cpu"],
}
# What may be refused, each with the rows that it is right for: no other row is, and none for another reason.
REFUSED = {
    "in half precision the features of efficientnet_lite0 are ": (  # whose statistics half precision can't hold
        lambda row: row["bn"] == "recalibrate" and row["precision"] == "bfloat16"
    )
}


def rows_of(options: dict[str, list]) -> list[dict]:
    return [dict(zip(options, row, strict=True)) for row in AllPairs(list(options.values()))]


def named(row: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in row.items() if value not in (None, False))


def words_of(row: dict, of: str = "") -> list:
    """The command line of a row's options; ``of`` is what begins the names of those of another command."""
    mine = {
        name.removeprefix(of): value for name, value in row.items() if name.startswith(of) and (of or ":" not in name)
    }
    flags = [f"--{name}" for name, value in mine.items() if value is True] + [mine.pop("part", None)]
    values = [w for n, v in mine.items() if v is not None and not isinstance(v, bool) for w in (f"--{n}", v)]
    return [*filter(None, flags), *values]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images in two classes, a cache, and a teacher for each kind of data."""
    top, draw = tmp_path_factory.mktemp("pairs"), np.random.RandomState(0)
    for part, name, i in itertools.product(("database", "query"), ("cat", "dog"), range(8)):
        file = top / "images" / part / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.randint(0, 256, (24, 30, 3)).astype(np.uint8)).save(file)
    return top


def data(place, row: dict) -> list:
    where = {
        "digits": ["--limit", 20],
        "folder": ["--data-dir", place / "images"],
        "photos": ["--data-dir", place / "images"],
    }
    common = ["--size", 32, "--epochs", 1, "--cache-dir", place / "cache", "--workers", 1]
    return [*where[row["dataset"]], *common]


def teacher_of(place, row: dict):
    folder = place / f"teacher_{row['dataset']}"
    if not folder.exists():
        words = [
            "--dataset",
            row["dataset"],
            *data(place, row),
            "--views",
            2,
            "--engine",
            "torch",
            "--bits",
            16,
            "--epochs",
            5,
        ]
        said = run_here("train_teacher.py", *words, "--backbone", TEACHER, "--run-dir", folder)
        assert said[0] == 0, said
    return folder


def check(row: dict, said: tuple, folder) -> bool:
    """Whether the row ran; else it was refused as the list says, in one line, and left nothing."""
    code, out = said
    why = [applies for words, applies in REFUSED.items() if str(code).startswith(f"error: {words}")]
    assert code == 0 or (why and why[0](row)), (row, code, out[-1500:])
    assert code == 0 or not folder.exists()
    return code == 0


def run_teacher(place, row: dict) -> None:
    folder = place / f"t{zlib.crc32(named(row).encode()):08x}"
    words = [*data(place, row), *words_of(row), "--backbone", TEACHER, "--bits", 8]
    if check(row, run_here("train_teacher.py", *words, "--run-dir", folder), folder):
        assert "finished already" in run_here("train_teacher.py", *words, "--run-dir", folder, "--resume")[1]
        assert run_here("evaluate.py", "--run", folder, "--pictures", 0)[0] == 0


def run_student(place, row: dict) -> None:
    teacher, folder = teacher_of(place, row), place / f"s{zlib.crc32(named(row).encode()):08x}"
    words = [*data(place, row), *words_of(row), "--teacher", teacher]
    words += ["--student", STUDENT, "--run-dir", folder]
    if check(row, run_here("distill.py", *words), folder):
        code, out = run_here("evaluate.py", "--run", folder, *words_of(row, "evaluate:"))
        assert code == 0 and json.loads(out.strip().splitlines()[-1])["method"] == row["method"], (row, code, out)


@pytest.mark.parametrize("row", rows_of(TEACHERS), ids=named)
def test_a_teacher_of_any_two_options(place, row):
    run_teacher(place, row)


@pytest.mark.parametrize("row", rows_of(STUDENTS), ids=named)
def test_a_student_of_any_two_options(place, row):
    run_student(place, row)


ENGINES = {"engine": ["torch", "openvino"]}


@pytest.mark.whole
@pytest.mark.parametrize("row", rows_of(TEACHERS | ENGINES), ids=named)
def test_a_teacher_of_any_two_options_by_any_engine(place, row):
    run_teacher(place, row)


@pytest.mark.whole
@pytest.mark.parametrize("row", rows_of(STUDENTS | ENGINES), ids=named)
def test_a_student_of_any_two_options_by_any_engine(place, row):
    run_student(place, row)


EXPORTS = {"head": [None, "sshp", "ashp"], "precision": ["float32", "float16", "int8"], "logits": [False, True]}


@pytest.mark.whole
@pytest.mark.parametrize("row", rows_of({"dataset": FEATURES["dataset"], **EXPORTS}), ids=named)
def test_an_export_of_any_two_options(place, row):
    student = {name: values[0] for name, values in STUDENTS.items()} | {"dataset": row["dataset"]}
    folder = place / f"s{zlib.crc32(named(student).encode()):08x}"
    if not folder.exists():
        run_student(place, student)
    flags = words_of({name: row[name] for name in EXPORTS})
    code, out = run_here("export.py", "--run", folder, "--out", place / "out", *flags)
    assert code == 0, (row, code, out[-1500:])


PROCESSES = ENGINES | {name: STUDENTS[name] for name in ("dataset", "views", "method", "bn", "student-size")}


@pytest.mark.whole
@pytest.mark.parametrize("row", rows_of(PROCESSES), ids=named)
def test_two_processes_with_any_two_options(place, command, row):
    folder = place / f"p{zlib.crc32(named(row).encode()):08x}"
    words = [*data(place, row), *words_of(row), "--clusters", 3, "--teacher", teacher_of(place, row)]
    words += ["--student", STUDENT, "--device", "cpu", "--run-dir", folder]
    done = command("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "distill.py", *words)
    assert done.returncode == 0, (row, done.stderr[-1500:])
