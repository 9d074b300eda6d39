"""Commands that write to a full disk, a read-only one, or a folder that they have no right to: one line, nothing lost,
and the right result when they are run again with space and rights."""

import contextlib
import ctypes
import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fault_commands import COMMANDS, Bench, Command, Ended, begin, finished, run, torn
from fault_inputs import Findings
from fault_kills import Undisturbed

# What each command writes, below the folder of a try.
WRITES = {"training": "run", "distillation": "run", "extraction": "cache", "evaluation": "out", "report": "out"}
MOUNTED = ("full", "read-only")
KINDS = (*MOUNTED, "no permission")
ROOM = 256 << 20


def mount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], check=True, capture_output=True)


def remount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), folder], check=True, capture_output=True)


def can_mount(folder: Path) -> str:
    """Why no small file system can be made here; empty where it can."""
    folder.mkdir(parents=True)
    try:
        mount(folder, "size=64k")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no tmpfs could be mounted ({getattr(error, 'stderr', error)!r}): full and read-only disks were skipped"
    subprocess.run(["umount", folder], check=True)
    return ""


def without_rights() -> None:
    """Root's right to pass every permission goes. (Another user could not read an interpreter in root's home.)"""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, nothing) == 0


def allow(folder: Path, writing: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o755 if writing else 0o555) if path.is_dir() else (0o644 if writing else 0o444))


def bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def break_disk(kind: str, folder: Path, draw: random.Random) -> str:
    """Make the fault; returns what it is in words."""
    if kind == "full":
        used = shutil.disk_usage(folder).used
        # Small sizes stop a command at its first file, larger ones somewhere on its way.
        free = draw.choice([0, 4096 * draw.randint(1, 20), 4096 * draw.randint(20, 300)])
        remount(folder, f"size={max(4096, used + free)}")
        return f"{free} bytes free of {used + free}"
    if kind == "read-only":
        remount(folder, "ro")
    else:
        allow(folder, False)
    return "a read-only mount" if kind == "read-only" else "mode 555, without capabilities"


def mend_disk(kind: str, folder: Path) -> None:
    if kind in MOUNTED:
        remount(folder, "rw", f"size={ROOM}")
    else:
        allow(folder, True)


def faults_of_end(ended: Ended, folder: Path) -> str:
    said = " / ".join(ended.lines)[:300]
    if ended.hung:
        return "it hangs"
    if ended.status == 0:
        return ""
    if any("Traceback" in line for line in ended.lines):
        return f"a traceback, exit status {ended.status}: {ended.lines[-1][:200]}"
    if len(ended.lines) != 1 or not ended.lines[0].startswith("error: "):
        return f"{len(ended.lines)} lines, exit status {ended.status}: {said}"
    return "" if str(folder) in ended.lines[0] else f"the message does not name the place: {said}"


def disturb(
    bench: Bench, undisturbed: Undisturbed, here: Path, command: Command, kind: str, draw: random.Random
) -> tuple:
    """One fault: (whether the command stopped, what is wrong, what was done)."""
    made, seconds = undisturbed.of(command)
    folder = here / WRITES[command.name]
    here.mkdir(parents=True)
    command.prepare(here, bench)
    folder.mkdir(exist_ok=True)
    if kind in MOUNTED:
        mount(folder, f"size={ROOM}")
    try:
        half = draw.random() < 0.5
        if half:  # something is there already, from a run that was killed
            process = begin(command, bench, here)
            time.sleep(draw.random() * seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            finished(process)
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        what = break_disk(kind, folder, draw) + (", a killed run's files there" if half else "")
        ended = run(command, bench, here, before=without_rights if kind == "no permission" else None)
        wrong = [faults_of_end(ended, folder), torn(folder)]
        lost = [p.name for p in before if not p.name.startswith(".") and not p.exists()]
        wrong.append(f"files are lost: {', '.join(lost)}" if lost else "")
        mend_disk(kind, folder)
        again = run(command, bench, here)
        if again.status:
            wrong.append(f"the run after it fails, exit status {again.status}: {' / '.join(again.lines)[:300]}")
        elif command.made(here) != made:
            wrong.append("other bits after it")
    finally:
        if kind in MOUNTED:
            subprocess.run(["umount", "-l", folder], check=False)
    return ended.status != 0, [w for w in wrong if w], what


def disks(
    undisturbed: Undisturbed,
    seconds: float,
    seed: int,
    findings: Findings,
    jobs: int,
    names: tuple[str, ...] = tuple(WRITES),
    most: int | None = None,
) -> dict:
    """Fault after fault until the time is over; tallies by kind and command."""
    bench, tallies = undisturbed.bench, {}
    skipped = can_mount(bench.folder / "mounted")
    kinds = KINDS[2:] if skipped else KINDS
    for name in names:
        undisturbed.of(COMMANDS[name])
    until = time.monotonic() + seconds

    def one(number: int) -> None:
        # Five commands and three kinds (or one): every pair has its turn, and a few tries see something of all.
        name, kind = names[number % len(names)], kinds[number % len(kinds)]
        here = bench.folder / f"disk_{number}"
        draw = random.Random(f"{seed} disk {number}")
        stopped, wrong, what = disturb(bench, undisturbed, here, COMMANDS[name], kind, draw)
        tally = tallies.setdefault(kind, {}).setdefault(name, Counter())
        tally.update(tries=1, refused=int(stopped), findings=int(bool(wrong)))
        for fault in wrong:
            findings.add(name, f"{kind}, {fault}", f"disk {number}: {what}")
        shutil.rmtree(here, ignore_errors=True)

    def go_on(worker: int) -> None:
        for number in itertools.count(worker, jobs):
            if number >= most if most is not None else time.monotonic() > until:
                return
            one(number)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(go_on, worker) for worker in range(jobs)]:
            done.result()
    tallies = {kind: {name: dict(t) for name, t in by.items()} for kind, by in tallies.items()}
    return {"skipped": skipped, **tallies}
