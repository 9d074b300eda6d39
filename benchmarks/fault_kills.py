"""Commands killed at random moments and run again: the result must have the bits of an undisturbed run."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fault_commands import COMMANDS, Bench, Command, Ended, begin, finished, run, torn
from fault_inputs import Findings

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
REAL = 8  # one kill of so many is of a real process, which is also hit while it imports
GRIDS = 25  # one kill of so many is of a grid, which takes thirty times as long as a run
SAID = "interrupted"
START = 0.1  # seconds until Python listens for signals


class Undisturbed:
    """What each command makes, and how long it takes, when nobody kills it."""

    def __init__(self, bench: Bench, folder: Path):
        self.bench, self.folder, self.known = bench, folder, {}

    def of(self, command: Command) -> tuple[dict, float]:
        """(what it makes, seconds), of its second run: the first may have had code to compile."""
        if command.name not in self.known:
            for number in range(2 if command.forks else 1):
                here = self.folder / f"{command.name}_{number}"
                here.mkdir(parents=True)
                command.prepare(here, self.bench)
                ended = run(command, self.bench, here)
                assert ended.status == 0, f"{command.name}: {ended.said}"
                made = command.made(here)
                assert self.known.setdefault(command.name, (made, 0))[0] == made, (
                    f"{command.name}: never the same twice"
                )
                self.known[command.name] = made, ended.seconds
                shutil.rmtree(here)
        return self.known[command.name]


def plan(seed: int, number: int, names: list[str]) -> tuple[Command, signal.Signals, float, bool]:
    """What the kill of that number is: command, signal, moment as a share of the run's time, whether a real process."""
    draw = random.Random(f"{seed} {number}")
    short = [name for name in names if COMMANDS[name].forks]
    name = "grid" if "grid" in names and number % GRIDS == 4 else draw.choice(short)
    return COMMANDS[name], SIGNALS[number % len(SIGNALS)], draw.random(), number % REAL == 0 or name == "grid"


def send(process, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole group of a terminal, the other signals the one process that they are sent to."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)


def out_of_python(ended: Ended) -> bool:
    """Whether SIGINT met a process before Python began to listen for it, or after it had ceased to: silence."""
    return ended.status == -signal.SIGINT and not ended.lines


def is_made(command: Command, folder: Path, made: dict) -> bool:
    try:
        return command.made(folder) == made
    except (OSError, KeyError):
        return False


def faults_of_end(ended: Ended, number: signal.Signals) -> str:
    """What is wrong with how a command ended after a signal; one that had ended before is right."""
    if ended.hung:
        return f"it hangs after {number.name}"
    if ended.status == 0 or (ended.status == -number and number != signal.SIGINT):
        return ""
    if any("Traceback" in line for line in ended.lines):
        return f"a traceback after {number.name}, exit status {ended.status}: {ended.lines[-1][:200]}"
    if number == signal.SIGINT and ended.status != 130:
        return f"exit status {ended.status} after SIGINT, not 130: {' / '.join(ended.lines)[:200]}"
    if number == signal.SIGINT and (len(ended.lines) != 1 or SAID not in ended.lines[0]):
        return f"{len(ended.lines)} lines after SIGINT: {' / '.join(ended.lines)[:300]}"
    return ""


def kill(
    undisturbed: Undisturbed, folder: Path, command: Command, number: signal.Signals, share: float, real: bool
) -> dict:
    """One kill and the run after it: whether it came too late, left files written aside, and what is wrong."""
    bench = undisturbed.bench
    made, seconds = undisturbed.of(command)
    folder.mkdir(parents=True)
    command.prepare(folder, bench)
    if real and command.forks:
        seconds += bench.startup
    process = begin(command, bench, folder, real)
    time.sleep(max(0.0, process.start + share * seconds - time.monotonic()))
    send(process, number)
    ended = finished(process)
    late = ended.status == 0 or (out_of_python(ended) and is_made(command, folder, made))
    early = out_of_python(ended) and ended.seconds < START
    wrong = ["" if late or early else faults_of_end(ended, number), torn(folder)]
    again = run(command, bench, folder)
    if again.status:
        wrong.append(f"the run after {number.name} fails, exit status {again.status}: {' / '.join(again.lines)[:300]}")
    else:
        now = command.made(folder)
        other = sorted(name for name in made.keys() | now.keys() if made.get(name) != now.get(name))
        wrong.append(f"other bits after {number.name}: {', '.join(other)}" if other else "")
    left = any(p.is_file() for p in folder.rglob(".*.*"))  # written aside, and no longer of use to anybody
    return {"late": late, "litter": left, "wrong": [w for w in wrong if w]}


def kills(
    undisturbed: Undisturbed,
    seconds: float,
    seed: int,
    findings: Findings,
    jobs: int,
    names: list[str],
    most: int | None = None,
) -> dict:
    """Kill after kill until the time is over, ``jobs`` side by side; tallies by command and by signal."""
    bench, tallies = undisturbed.bench, {}
    for name in names:
        undisturbed.of(COMMANDS[name])
    until = time.monotonic() + seconds

    def one(number: int) -> None:
        command, sent, share, real = plan(seed, number, names)
        folder = bench.folder / f"kill_{number}"
        result = kill(undisturbed, folder, command, sent, share, real)
        for key in (command.name, sent.name, "real processes" if real else "forks"):
            tally = tallies.setdefault(key, Counter())
            counts = {"late": result["late"], "litter": result["litter"], "findings": bool(result["wrong"])}
            tally.update(kills=1, **{what: int(count) for what, count in counts.items()})
        for what in result["wrong"]:
            kept = "real process" if real else "fork"
            findings.add(command.name, f"kill, {what}", f"kill {number}: {sent.name} at {share:.3f} of {kept}'s run")
        shutil.rmtree(folder, ignore_errors=True)

    def go_on(worker: int) -> None:
        for number in itertools.count(worker, jobs):
            if number >= most if most is not None else time.monotonic() > until:
                return
            one(number)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(go_on, worker) for worker in range(jobs)]:
            done.result()
    return {key: dict(tally) for key, tally in tallies.items()}
