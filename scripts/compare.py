"""The grid: methods x code lengths x seeds, in parallel processes; run again, it does what is missing.

Every cell is one run of distill.py and evaluate.py, as a user would type them; its teacher is shared. A cell that is
done is skipped, one that was killed resumes. Used through scripts/compare.sh.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from scripts.report import read_rows, write_report
from utils.errors import UserError, guarded

# Flags that change which features a student needs; the first cell that needs some gets the whole machine.
FEATURE_FLAGS = ("--bn", "--student-size", "--student-features", "--views")
# Methods whose steps take several times as long as the others' begin first, so that no core waits for one at the end.
SLOW = ("crcd",)


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
        words = self.method.split()
        flags = tuple((w, words[i + 1]) for i, w in enumerate(words[:-1]) if w in FEATURE_FLAGS)
        return ("rotations" if words[0] == "sskd" else "plain", *flags)


class Runner:
    """Runs command lines with a share of the cores, logs each beside its run, remembers what failed."""

    def __init__(self, cores: int):
        self.cores, self.failed, self.lock = cores, [], threading.Lock()
        # Importing PyTorch and the rest costs seconds, of which short runs are mostly made: a server imports them once,
        # and every command line is a process forked from it.
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["train_teacher", "distill", "evaluate"])

    def run(self, log: Path, threads: int, *commands: list) -> bool:
        log.parent.mkdir(parents=True, exist_ok=True)
        for words in commands:
            process = self.processes.Process(target=command_line, args=(log, threads, list(map(str, words))))
            process.start()
            process.join()
            if process.exitcode:
                with self.lock:
                    self.failed.append(log)
                return False
        return True


def command_line(log: Path, threads: int, words: list[str]) -> None:
    """Run ``words``, a script and its arguments, in this process; what it prints is added to ``log``."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    print(f"$ python {' '.join(words)}", flush=True)
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = words
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        guarded(importlib.import_module(Path(words[0]).stem).main)


def end_with_parent() -> None:
    """A grid that was killed leaves no run behind that the next one would meet."""
    multiprocessing.parent_process().join()
    os._exit(1)


def slug(method: str) -> str:
    return "_".join(word.lstrip("-") for word in method.split())


def plan(args) -> list[Cell]:
    cells = []
    for bits in args.bits:
        for seed in args.seeds:
            group = args.runs / f"{bits}bits_seed{seed}"
            cells += [Cell(m, bits, seed, group / "teacher", group / slug(m)) for m in args.methods]
    return cells


def train_teachers(args, common: list, runner: Runner, cells: list[Cell]) -> None:
    wanted = {c.teacher: c for c in cells if not (c.teacher / "summary.json").exists()}
    jobs = [
        (
            folder,
            [
                "train_teacher.py",
                *common,
                "--backbone",
                args.teacher,
                "--hashing",
                args.teacher_hashing,
                "--bits",
                c.bits,
                "--epochs",
                args.teacher_epochs,
                "--seed",
                c.seed,
                "--run-dir",
                folder,
                "--resume",
            ],
        )
        for folder, c in wanted.items()
    ]
    run_all(
        runner,
        [(folder.with_suffix(".log"), [words], "features", False) for folder, words in jobs],
        "teachers",
        args.jobs,
    )


def train_students(args, common: list, runner: Runner, cells: list[Cell]) -> None:
    jobs = []
    for c in cells:
        if (c.folder / "test.json").exists() or not (c.teacher / "summary.json").exists():
            continue
        distill = [
            "distill.py",
            *common,
            "--teacher",
            c.teacher,
            "--student",
            args.student,
            "--epochs",
            args.epochs,
            "--seed",
            c.seed,
            "--run-dir",
            c.folder,
            "--resume",
            *args.student_flags.split(),
            "--method",
            *c.method.split(),
        ]
        evaluate = ["evaluate.py", "--run", c.folder, "--pictures", 0]
        jobs.append((c.folder.with_suffix(".log"), [distill, evaluate], c.features, c.method.split()[0] in SLOW))
    run_all(runner, jobs, "students", args.jobs)


def run_all(runner: Runner, jobs: list[tuple[Path, list, object, bool]], title: str, parallel: int) -> None:
    """Of the jobs (log, commands, kind of features, whether slow), the first of each kind runs alone with all cores,
    since it extracts the features; the rest side by side."""
    with tqdm(total=len(jobs), desc=title, unit="run") as bar:
        rest, seen = [], set()
        for job in jobs:
            log, commands, kind, _ = job
            if kind in seen:
                rest.append(job)
                continue
            seen.add(kind)
            runner.run(log, runner.cores, *commands)
            bar.update()
        rest.sort(key=lambda job: not job[3])
        with ThreadPoolExecutor(parallel) as pool:
            threads = max(1, runner.cores // parallel)
            running = [pool.submit(runner.run, log, threads, *commands) for log, commands, *_ in rest]
            try:
                for done in as_completed(running):
                    done.result()
                    bar.update()
            finally:
                pool.shutdown(cancel_futures=True)  # interrupted, it begins no more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--name", required=True, help="results/NAME and runs/NAME are written")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--teacher", default="efficientnet_lite2", help="backbone")
    parser.add_argument("--teacher-hashing", default="cibhash")
    parser.add_argument("--student", default="efficientnet_lite0", help="backbone")
    parser.add_argument("--flags", default="", help="for every run, teachers too, such as '--precision bfloat16'")
    parser.add_argument("--student-flags", default="", help="for every student, such as '--student-size 112'")
    parser.add_argument("--methods", nargs="+", required=True, help="each a method with flags: 'brcd --no-mask'")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    parser.add_argument("--jobs", type=int, default=cores, help="processes side by side")
    args = parser.parse_args()
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: it must be at least 1")
    args.runs = Path("runs") / args.name
    os.environ["TQDM_MININTERVAL"] = "60"  # of the runs' bars, which end in files
    common = ["--dataset", args.dataset, "--views", args.views, "--device", args.device, "--cache-dir", args.cache_dir]
    common += ["--data-dir", args.data_dir] if args.data_dir else []
    common += args.flags.split()
    cells, runner = plan(args), Runner(cores)
    train_teachers(args, common, runner, cells)
    train_students(args, common, runner, cells)
    done = [c.folder / "test.json" for c in cells if (c.folder / "test.json").exists()]
    if done:
        out = Path("results") / args.name
        print(f"\n{write_report(read_rows(done), out)}\n\n{len(done)} of {len(cells)} cells; wrote {out}/")
    if runner.failed:
        raise UserError(
            f"{len(runner.failed)} runs failed, see {', '.join(map(str, runner.failed[:5]))}; mend the cause and "
            "run the same command again"
        )


if __name__ == "__main__":
    guarded(main)
