"""The grid: methods x code lengths x seeds, in parallel processes; run again, it does what is missing.

Every cell is one run of distill.py and evaluate.py, as a user would type them; its teacher is shared. A cell that is
done is skipped, one that was killed resumes. Used through scripts/compare.sh.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data.load import DATASETS
from losses.hashing import HASHING
from losses.methods import METHODS
from models.backbones import backbone_name
from models.itq import ITQ
from retrieval.tables import read_rows
from scripts.report import write_report
from utils.cluster import check_address, ray_on
from utils.devices import CHOICES
from utils.errors import UserError, guarded
from utils.machine import cores
from utils.options import NEW_FEATURES, Parser, one_of, real, view_count, whole

# Methods whose steps take several times as long as the others' begin first, so that no core waits for one at the end.
SLOW = ("crcd",)
RETRIES = 3  # of a task whose worker was lost


@dataclass(frozen=True)
class Cell:
    """One student: a method, with flags of its own if it is an ablation, for one teacher."""

    method: str  # "brcd --no-mask"
    bits: int
    seed: int
    teacher: Path
    folder: Path

    @property
    def features(self) -> tuple:
        """What kind of features it needs; the first cell that needs some gets the whole machine."""
        args = student_args("--method", *self.method.split())
        flags = tuple(str(getattr(args, name)) for name in sorted(parser_of("distill").having(NEW_FEATURES)))
        return (METHODS[args.method].rotations, *flags)


def parser_of(command: str) -> Parser:
    """The options of one of the commands, which are run as their users run them."""
    return importlib.import_module(command).make_parser()


def student_args(*words: str) -> argparse.Namespace:
    return parser_of("distill").parse_args(["--run-dir", "r", "--teacher", "t", *words])


class Runner:
    """Runs command lines with a share of the cores, logs each beside its run, remembers what failed.

    Attributes:
        machines: (cores, jobs at most) of each machine; a job lies on one.
    """

    def __init__(self, cores: int, gpus: int = 0):
        self.machines, self.lock = [(cores, gpus or cores)], threading.Lock()
        self.failed: list[Path] = []
        self.gpus = gpus
        # Every job has a GPU to itself until JOBS asks for more.
        self.free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.asking = threading.Lock()
        # Importing PyTorch and the rest costs seconds, of which short runs are mostly made: a server imports them once,
        # and every command line is a process forked from it.
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["train_teacher", "distill", "evaluate"])
        # Ctrl-C reaches the server and what it forks too: deaf until their output is a log, only the grid tells of it.
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, heard)

    def run(self, job: "Job", threads: int) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        gpu = self.free.get() if self.gpus else None
        try:
            self._run(job, threads, gpu)
        finally:
            if self.gpus:
                self.free.put(gpu)

    def _run(self, job: "Job", threads: int, gpu: int | None) -> None:
        for words in job.commands:
            process = self.processes.Process(target=command_line, args=(job.log, threads, list(map(str, words)), gpu))
            # Starting one asks all others for their exit status, and of two threads that ask for the same one at once
            # the second is told 255: one asks at a time.
            with self.asking:
                process.start()
            connection.wait([process.sentinel])
            with self.asking:
                process.join()
            if process.exitcode:
                with self.lock:
                    self.failed.append(job.log)
                return

    def deal(self, parallel: int) -> None:
        """GPUs for so many jobs side by side, one each while there are enough."""
        self.free = queue.SimpleQueue()
        for number in range(max(parallel, self.gpus)) if self.gpus else ():
            self.free.put(number % self.gpus)

    def stop(self) -> None:
        """Ctrl-C reaches its processes by itself."""


class OnRay:
    """The same on Ray: a job is a task, which runs again elsewhere if its worker is lost, and resumes."""

    def __init__(self, ray: ModuleType, gpus: float):
        self.ray, self.gpus, self.lock = ray, gpus, threading.Lock()
        self.tasks: list[Any] = []
        self.failed: list[Path] = []
        self.machines: list[tuple[int, int]] = []
        for has in (node["Resources"] for node in ray.nodes() if node["Alive"]):
            cores = int(has.get("CPU", 0))
            if most := min(cores, int(has.get("GPU", 0) / gpus)) if gpus else cores:
                self.machines.append((cores, most))
        if not self.machines:
            raise UserError(f"no machine of the Ray cluster has a core and {gpus:g} of a GPU for a cell; see --gpus")

    def run(self, job: "Job", threads: int) -> None:
        how = {"num_cpus": threads, "num_gpus": self.gpus, "max_retries": RETRIES}
        task = self.ray.remote(**how)(run_on_worker).remote(os.getcwd(), job, threads)
        self.tasks.append(task)
        if self.ray.get(task):
            with self.lock:
                self.failed.append(job.log)

    def deal(self, parallel: int) -> None:
        """Ray deals its GPUs itself."""

    def stop(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task, force=True)


@functools.cache
def runner_here() -> Runner:
    """A worker's: what it has imported serves its next task too."""
    return Runner(1)


def run_on_worker(folder: str, job: "Job", threads: int) -> bool:
    """Whether a job failed, run in the folder that the grid was started in."""
    os.chdir(folder)
    runner = importlib.import_module("scripts.compare").runner_here()  # of this process; Ray would send it by value
    runner.failed.clear()
    runner.run(job, threads)
    return bool(runner.failed)


def command_line(log: Path, threads: int, words: list[str], gpu: int | None = None) -> None:
    """Run ``words``, a script and its arguments, in this process, which sees one GPU of those there are, if it has a
    number; what it prints is added to ``log``."""
    if gpu is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[gpu] if seen else str(gpu)
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"$ python {' '.join(words)}", flush=True)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = words
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        guarded(importlib.import_module(Path(words[0]).stem).main)


def end_with_parent() -> None:
    """A grid that was killed leaves no run behind that the next one would meet."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def slug(method: str) -> str:
    return "_".join(word.lstrip("-") for word in method.split())


def check_methods(args: argparse.Namespace) -> None:
    """Raises UserError for a method or a flag that distill.py would refuse, before anything starts."""
    parser_of("train_teacher").parse_args(["--run-dir", "r", *args.flags.split()])
    for method in args.methods:
        try:
            student_args(*args.flags.split(), *args.student_flags.split(), "--method", *method.split())
        except UserError as error:
            raise UserError(f"{method}: {error}") from None


def plan(args: argparse.Namespace) -> list[Cell]:
    """Neighbours differ in seed: with --redraw each extracts the views of its own seed and none waits for another."""
    cells = []
    for bits, method, seed in itertools.product(args.bits, args.methods, args.seeds):
        group = args.runs / f"{bits}bits_seed{seed}"
        cells.append(Cell(method, bits, seed, group / "teacher", group / slug(method)))
    return cells


@dataclass(frozen=True)
class Job:
    """Command lines that run one after the other.

    Attributes:
        log: what they print.
        commands: each a script and its arguments.
        features: what kind of features they need; the first job of a kind extracts them.
        slow: begin it before the others.
    """

    log: Path
    commands: list[list]
    features: object
    slow: bool = False


def teacher_jobs(args: argparse.Namespace, common: list, cells: list[Cell]) -> list[Job]:
    missing = {c.teacher: c for c in cells if not (c.teacher / "summary.json").exists()}
    jobs = []
    for folder, c in missing.items():
        options = ["--backbone", args.teacher, "--hashing", args.teacher_hashing, "--bits", c.bits, "--seed", c.seed]
        options += ["--epochs", args.teacher_epochs, "--run-dir", folder, "--resume"]
        options += ["--view-seed", c.seed, "--split-seed", c.seed] if args.redraw else []  # which its students inherit
        jobs.append(Job(folder.with_suffix(".log"), [["train_teacher.py", *common, *options]], "features"))
    return jobs


def student_jobs(args: argparse.Namespace, common: list, cells: list[Cell]) -> list[Job]:
    jobs = []
    for c in cells:
        if (c.folder / "test.json").exists() or not (c.teacher / "summary.json").exists():
            continue
        options = ["--teacher", c.teacher, "--student", args.student, "--epochs", args.epochs, "--seed", c.seed]
        options += ["--run-dir", c.folder, "--resume", *args.student_flags.split(), "--method", *c.method.split()]
        commands = [["distill.py", *common, *options], ["evaluate.py", "--run", c.folder, "--pictures", 0]]
        jobs.append(Job(c.folder.with_name(f"{c.folder.name}.log"), commands, c.features, c.method.split()[0] in SLOW))
    return jobs


def gpus_for(device: str) -> int:
    """How many GPUs the jobs of a grid are dealt; a device that was named with its number is not dealt."""
    return torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0


def share(machines: list[tuple[int, int]], parallel: int) -> int:
    """The most cores a job with which so many still run side by side."""
    most = max(cores for cores, _ in machines)
    room = {t: sum(min(cores // t, jobs) for cores, jobs in machines) for t in range(1, most + 1)}
    return max((threads for threads, jobs in room.items() if jobs >= parallel), default=1)


def run_all(runner: Runner | OnRay, jobs: list[Job], title: str, parallel: int | None) -> None:
    """The first job of each kind of features runs alone with all cores of a machine, since it extracts them; the rest
    side by side, as many as there is room for unless ``parallel`` says how many."""
    parallel = parallel or sum(most for _, most in runner.machines)
    runner.deal(parallel)
    first = {job.features: job for job in reversed(jobs)}
    with tqdm(total=len(jobs), desc=title, unit="run") as bar:
        for job in jobs:
            if first[job.features] is job:
                runner.run(job, share(runner.machines, 1))
                bar.update()
        rest = [job for job in jobs if first[job.features] is not job]
        with ThreadPoolExecutor(parallel) as pool:
            threads = share(runner.machines, parallel)
            running = [pool.submit(runner.run, job, threads) for job in sorted(rest, key=lambda job: not job.slow)]
            try:
                for done in as_completed(running):
                    done.result()
                    bar.update()
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                runner.stop()
                raise
            finally:
                pool.shutdown(cancel_futures=True)  # interrupted, it begins no more


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="results/NAME and runs/NAME are written")
    parser.add_argument("--dataset", type=one_of(DATASETS), default="digits", help="name of the data set")
    parser.add_argument("--data-dir", type=Path, help="folder of the data set (default: data/NAME)")
    parser.add_argument("--teacher", type=backbone_name, default="efficientnet_lite2", help="backbone")
    parser.add_argument(
        "--teacher-hashing", type=one_of((*HASHING, ITQ)), default="cibhash", help="the teacher's objective"
    )
    parser.add_argument("--student", type=backbone_name, default="efficientnet_lite0", help="backbone")
    parser.add_argument("--flags", default="", help="for every run, teachers too, such as '--precision bfloat16'")
    parser.add_argument("--student-flags", default="", help="for every student, such as '--student-size 112'")
    parser.add_argument("--methods", nargs="+", required=True, help="each a method with flags: 'brcd --no-mask'")
    parser.add_argument("--against", help="one of them, which the others are tested against (default: brcd)")
    parser.add_argument(
        "--primary", nargs="+", default=[], help="comparisons that are claims, such as sshp:kl (default: all)"
    )
    parser.add_argument("--redraw", action="store_true", help="a seed (not 0) also draws the views and the split")
    parser.add_argument("--bits", type=whole(1), nargs="+", default=[16, 32, 64], help="code lengths")
    parser.add_argument("--seeds", type=whole(0, 2**32 - 1), nargs="+", default=[0], help="of teacher and student")
    parser.add_argument("--views", type=view_count, default=8, help="random views an image, cached")
    parser.add_argument("--teacher-epochs", type=whole(1), default=200, help="at most")
    parser.add_argument("--epochs", type=whole(1), default=400, help="at most")
    parser.add_argument("--device", default="auto", help=CHOICES)
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="where features are kept")
    parser.add_argument("--jobs", type=whole(1), help="side by side (default: the GPUs, else cores, of all machines)")
    parser.add_argument("--engine", type=one_of(("local", "ray")), default="local", help="what shares the cells out")
    parser.add_argument("--ray", default="", help="address of a Ray cluster; without it Ray is started here")
    parser.add_argument("--gpus", type=real(0), default=0, help="of Ray: share of a GPU a cell")
    args = parser.parse_args()
    args.runs = Path("runs") / args.name
    os.environ["TQDM_MININTERVAL"] = "60"  # of the runs' bars, which end in files
    common = ["--dataset", args.dataset, "--views", args.views, "--device", args.device, "--cache-dir", args.cache_dir]
    common += ["--data-dir", args.data_dir] if args.data_dir else []
    common += args.flags.split()
    check_methods(args)
    if args.against and args.against not in args.methods:
        raise UserError(f"--against '{args.against}' is none of --methods; there are: {', '.join(args.methods)}")
    if args.redraw and 0 in args.seeds:
        raise UserError("--redraw with --seeds 0: 0 is the views and split of all other tables; take 1 and above")
    if (args.ray or args.gpus) and args.engine != "ray":
        raise UserError("--ray and --gpus need --engine ray")
    if args.ray:
        check_address(args.ray)
    cells = plan(args)
    with contextlib.ExitStack() as stack:
        runner = (
            OnRay(stack.enter_context(ray_on(args.ray, cores())), args.gpus)
            if args.engine == "ray"
            else Runner(cores(), gpus_for(args.device))
        )
        run_all(runner, teacher_jobs(args, common, cells), "teachers", args.jobs)
        run_all(runner, student_jobs(args, common, cells), "students", args.jobs)
    done = [c.folder / "test.json" for c in cells if (c.folder / "test.json").exists()]
    if done:
        out, rows = Path("results") / args.name, read_rows(done)
        named = [str(c.folder / "test.json") for c in cells if c.method == args.against]
        ours = (rows["base"] != "teacher") & rows["file"].isin(named)  # a teacher's row is read from a student's file
        against = next(iter(rows.loc[ours, "method"]), args.against)  # as the tables call it
        try:
            text = write_report(rows, out, against, args.primary)
            print(f"\n{text}\n\n{len(done)} of {len(cells)} cells; wrote {out}/")
        except UserError:
            if not runner.failed:  # else that is why rows are missing
                raise
    if runner.failed:
        raise UserError(
            f"{len(runner.failed)} runs failed, see {', '.join(map(str, runner.failed[:5]))}; mend the cause and "
            "run the same command again"
        )


if __name__ == "__main__":
    guarded(main)
