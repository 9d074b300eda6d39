"""The project's commands on a small set, run in forks of a server that has imported everything, or as a user runs them;
what they leave behind, to be compared bit by bit."""

import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from fault_inputs import digest

from utils.errors import guarded

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "efficientnet_lite0"
LIMIT, EPOCHS = 60, 12
ENGINE = ["--device", "cpu", "--engine", "torch"]  # eager: nothing is compiled, which would take most of the time
SECONDS = 120  # a command that takes longer hangs
PROGRESS = re.compile(r"\d+%\|")
# One thread a process, so that the bits depend on nothing else; few lines of progress bars.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TQDM_MININTERVAL": "60",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}",
}


@dataclass(frozen=True)
class Command:
    """A command line and what it makes.

    Attributes:
        words: (folder of this try, the bench) -> script or module, and arguments.
        made: folder of this try -> what is compared between runs.
        forks: whether it can run in a fork of the server; the grid has a server of its own.
        prepare: puts in place what the command needs of its own.
    """

    name: str
    words: Callable[[Path, "Bench"], list]
    made: Callable[[Path], dict]
    forks: bool = True
    prepare: Callable[[Path, "Bench"], None] = lambda folder, bench: None


@dataclass
class Bench:
    """Finished runs and a warm cache, which every try begins from."""

    folder: Path
    context: object = None
    startup: float = 0.0

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    def student(self, method: str) -> Path:
        return self.folder / method


def digits(cache: Path) -> list:
    return ["--dataset", "digits", "--limit", LIMIT, "--size", 64, "--views", 2, "--cache-dir", cache, *ENGINE]


def epochs(number: int) -> list:
    return ["--epochs", number, "--validate-every", 2, "--patience", 99]


def train_words(run: Path, cache: Path, number: int = EPOCHS) -> list:
    options = ["--backbone", NETWORK, "--bits", 16, *epochs(number), "--run-dir", run, "--resume"]
    return ["train_teacher.py", *digits(cache), *options]


def distill_words(run: Path, cache: Path, teacher: Path, method: str = "brcd") -> list:
    options = ["--teacher", teacher, "--student", NETWORK, "--method", method, "--clusters", 3]
    return ["distill.py", *digits(cache), *options, *epochs(EPOCHS), "--run-dir", run, "--resume"]


def report_words(out: Path, bench: Bench) -> list:
    return ["scripts.report", *(bench.student(m) / "test.json" for m in ("brcd", "none")), "--out", out]


def grid_words(folder: Path, bench: Bench) -> list:
    flags = f"--size 64 --limit {LIMIT} --validate-every 2 --engine torch"
    options = [
        "--methods",
        "brcd --clusters 3",
        "none",
        "--bits",
        16,
        "--views",
        2,
        "--teacher-epochs",
        6,
        "--epochs",
        6,
    ]
    options += ["--teacher", NETWORK, *ENGINE[:2], "--cache-dir", bench.cache, "--jobs", 2]
    return ["scripts.compare", "--name", "grid", "--flags", flags, *options]


def copy_student(folder: Path, bench: Bench) -> None:
    """The run itself is copied, since its results are written into it; what was written before is left out."""
    shutil.copytree(bench.student("brcd"), folder / "run", ignore=shutil.ignore_patterns("test*", ".lock"))


COMMANDS = {
    c.name: c
    for c in (
        Command("training", lambda f, b: train_words(f / "run", b.cache), lambda f: run_made(f / "run")),
        Command(
            "distillation", lambda f, b: distill_words(f / "run", b.cache, b.teacher), lambda f: run_made(f / "run")
        ),
        Command("extraction", lambda f, b: train_words(f / "run", f / "cache", 2), lambda f: cache_made(f / "cache")),
        Command(
            "evaluation",
            lambda f, b: ["evaluate.py", "--run", f / "run", "--json", f / "out" / "test.json", "--pictures", 0],
            lambda f: result_made(f / "out" / "test.json"),
            prepare=copy_student,
        ),
        Command("report", lambda f, b: report_words(f / "out", b), lambda f: report_made(f / "out")),
        Command("grid", grid_words, lambda f: grid_made(f), forks=False),
    )
}


# What a command has made, without times and paths.


def content(file: Path) -> object:
    """A file's content; raises where it is torn."""
    data = file.read_bytes()
    if file.suffix == ".json":
        return json.loads(data)
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in data.splitlines()]
    if file.suffix == ".yaml":
        return yaml.safe_load(data)
    if file.suffix == ".pt":
        return torch.load(file, weights_only=True)
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    if file.suffix == ".png":
        assert data[-8:-4] == b"IEND", "a cut picture"
    return data


def run_made(run: Path) -> dict:
    names = [
        "best_map.pt",
        "best_sshp.pt",
        "best_ashp.pt",
        "log.csv",
        "train_codes.npz",
        "clusters.npz",
        "summary.json",
    ]
    made = {name: content(run / name) for name in names if (run / name).exists()}
    made["summary.json"].pop("seconds", None)
    return {name: digest(value) for name, value in made.items()}


def cache_made(cache: Path) -> dict:
    return {str(f.relative_to(cache)): digest(content(f)) for f in sorted(cache.glob("*/*")) if f.name != "lock"}


def result_made(file: Path) -> dict:
    result = content(file)
    reports = {name: result.get(name) for name in ("sshp", "ashp", "teacher", "data", "options", "seed", "bits")}
    kinds = {ending: content(file.with_suffix(ending)) for ending in (".npz", ".csv")}
    return {name: digest(value) for name, value in {**reports, **kinds}.items()}


def report_made(out: Path) -> dict:
    names = ["table.md", "table.tex", "significance.csv", "logs.csv"]
    return {name: digest(content(out / name)) for name in names if (out / name).exists()}


def grid_made(folder: Path) -> dict:
    made = {
        f"results/{name}": value for name, value in report_made(folder / "results" / "grid").items() if ".md" in name
    }
    for file in sorted((folder / "runs" / "grid").glob("*/*/test.json")):
        made |= {f"{file.parent.name}/{name}": value for name, value in result_made(file).items()}
    return made


def torn(folder: Path) -> str:
    """The first file below a folder that is there but not whole; files being written aside have a dot in front."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith(".") and "tensorboard" not in file.parts:
            try:
                content(file)
            except Exception as error:  # whatever a reader says of a file, it is not whole
                return f"{file.relative_to(folder)} is torn ({type(error).__name__})"
    return ""


# Running them.


@dataclass
class Ended:
    """How a command ended: exit status (negative: the signal), what it said of errors, seconds, whether it hung."""

    status: int
    said: str
    seconds: float
    hung: bool = False

    @property
    def lines(self) -> list[str]:
        """What it said, less its progress bars."""
        return [line for line in re.split(r"[\r\n]+", self.said) if line.strip() and not PROGRESS.search(line)]


def in_fork(words: list[str], cwd: Path, log: Path, before: Callable | None, pipe) -> None:
    os.setsid()
    for number, path in ((1, os.devnull), (2, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    os.chdir(cwd)
    sys.argv = words
    torch.set_num_threads(1)
    # Features are marked as written after each batch, not every ten seconds, so that kills hit between.
    importlib.import_module("utils.cache").CHECKPOINT_SECONDS = 0.02
    main = importlib.import_module(words[0].removesuffix(".py")).main
    if before:
        before()
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def whole() -> None:  # signals come within it only; what is around it is not the project's
        pipe.send(None)
        main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    status = 0
    try:
        guarded(whole)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if status not in (0, 1, 130, 141):
        status = 99
    os._exit(status)


class Forked:
    """A command in a fork of the server; it begins when this returns."""

    def __init__(self, bench: Bench, words: list, cwd: Path, log: Path, before: Callable | None = None):
        self.log, self.start = log, time.monotonic()
        ours, theirs = bench.context.Pipe()
        arguments = (list(map(str, words)), cwd, log, before, theirs)
        self.process = bench.context.Process(target=in_fork, args=arguments)
        self.process.start()
        theirs.close()
        ours.poll(SECONDS)
        self.start, self.pid = time.monotonic(), self.process.pid

    def wait(self, seconds: float = SECONDS) -> Ended | None:
        self.process.join(seconds)
        if self.process.exitcode is None:
            return None
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        return Ended(self.process.exitcode, said, time.monotonic() - self.start)


class Real:
    """A command as a user runs it, imports and all."""

    def __init__(self, words: list, cwd: Path, log: Path, **more):
        script = [str(ROOT / words[0])] if str(words[0]).endswith(".py") else ["-m", words[0]]
        self.log, self.start = log, time.monotonic()
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, *script, *map(str, words[1:])],
                cwd=cwd,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT, **more.pop("env", {})},
                **more,
            )
        self.pid = self.process.pid

    def wait(self, seconds: float = SECONDS) -> Ended | None:
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return Ended(status, self.log.read_text(errors="replace"), time.monotonic() - self.start)


def finished(process: Forked | Real) -> Ended:
    """Waits for its end, and ends what hangs."""
    ended = process.wait()
    if ended is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Ended(-9, process.log.read_text(errors="replace"), SECONDS, hung=True)
    return ended


def begin(command: Command, bench: Bench, folder: Path, real: bool = False, before=None, **more) -> Forked | Real:
    words, log = command.words(folder, bench), folder / "stderr.log"
    log.unlink(missing_ok=True)
    if real or not command.forks:
        return Real(words, folder, log, **more)
    return Forked(bench, words, folder, log, before)


def run(command: Command, bench: Bench, folder: Path, **more) -> Ended:
    return finished(begin(command, bench, folder, **more))


def server():
    """The context of processes that are forked from one that has imported everything."""
    os.chdir(ROOT)  # the server imports from where it starts first of all, and that may be another checkout
    os.environ.update(ENVIRONMENT)
    sys.warnoptions.append("ignore:resource_tracker")  # it cleans up after those that were killed, as it should
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fault_server", "fault_commands"])
    first = context.Process(target=os.getpid)  # the server has imported all when this has run
    first.start()
    first.join()
    return context


def make_bench(folder: Path, context) -> Bench:
    """The runs that others start from; one of them as a real process, to know what a start costs."""
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, context)
    log = folder / "bench.log"
    needed = [train_words(bench.teacher, bench.cache)]
    for method in ("brcd", "none"):
        needed.append(distill_words(bench.student(method), bench.cache, bench.teacher, method))
        needed.append(["evaluate.py", "--run", bench.student(method), "--pictures", 0])
    for words in needed:
        ended = finished(Forked(bench, words, folder, log))
        assert ended.status == 0, f"{words}: {ended.said}"
    real = finished(Real(train_words(bench.teacher, bench.cache), folder, log))  # finished already: imports alone
    bench.startup = real.seconds
    return bench
