"""Goes on looking for faults: damaged files for every reader, kills at any moment, full and read-only disks.

    python benchmarks/faults.py --minutes 20

A third of the time goes to damaged files, a half to kills, the rest to disks. What is drawn depends on --seed; how much
of it is done, on the time. Every damaged file must give what tests/damage.py says, every command that was stopped must
end in the bits of an undisturbed run when it is run again. All else is a finding: it is listed, the bytes of a damaged
file are kept beside --out, and the exit status is 1.
"""

import argparse
import contextlib
import faulthandler
import importlib
import io
import itertools
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "search")]

from damage import FORMATS, canonical, look  # noqa: E402

from utils.files import ASIDE, write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

SHARES = {"inputs": 0.35, "kills": 0.5, "disks": 0.15}
INPUTS = 60  # of a reader at each of its turns
MEMORY = 4 << 30  # what all readers together may take: a header may promise a million million pixels
JOBS = 2  # commands side by side
LIMIT = 120  # seconds; a command that takes longer hangs
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LATE = 0.75  # share of the kills that come in the second half, since the first one goes to imports
DISKS = ("full", "read-only")
ROOM = 256 << 20

# One thread a process, so that the bits depend on nothing else; few lines of progress bars.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "60", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
NETWORK = "efficientnet_lite0"
DATA = ["--dataset", "digits", "--limit", 60, "--size", 64, "--views", 2, "--device", "cpu", "--engine", "torch"]
UNLIKE = re.compile(rb'"(seconds|\w*commit)": [^,}\n]*')
EPOCHS = ["--epochs", 60, "--validate-every", 2, "--patience", 99]


class Findings:
    """By where and what, each kind once, with the bytes of the first damaged file of each in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.kinds = folder, {}

    def add(self, where: str, what: str, by: str, data: bytes | None = None) -> None:
        new = {"where": where, "what": what, "by": by, "count": 0, "file": None}
        kind = self.kinds.setdefault((where, what.partition(": ")[0]), new)
        kind["count"] += 1
        if data is not None and kind["file"] is None:
            kind["file"] = f"{len(self.kinds)}_{Path(where).name.replace('*', '')}"
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / kind["file"]).write_bytes(data)

    def listed(self) -> list[dict]:
        return [kind for _, kind in sorted(self.kinds.items())]


# Damaged files


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def damaged(folder: Path, seconds: float, seed: int, findings: Findings) -> dict[str, Counter]:
    """Batch after batch, reader after reader, until the time is over; the tally of each reader."""
    readers = []
    for name in ("test_damage", "test_damage_search"):
        if name == "test_damage" or (ROOT / "search").exists():  # a leaf
            tests = importlib.import_module(name)
            (folder / name).mkdir(parents=True)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                tests.make_files(folder / name)
            readers += [(folder / name, reader) for reader in tests.READERS]
    tallies = {reader.file: Counter() for _, reader in readers}
    until = time.monotonic() + seconds
    with little_memory(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for number, (place, reader) in enumerate(itertools.cycle(readers)):
            if time.monotonic() > until:
                return tallies
            tally, found = look(reader, place, INPUTS, seed + number)
            tallies[reader.file].update(tally)
            for what, by, data in found:
                findings.add(reader.file, what, by, data)


# The commands, as a user runs them, and what they make


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        words: (folder of this try, the bench's folder) -> script or module, and arguments.
        begins: the command whose finished folder each try begins with.
    """

    words: Callable[[Path, Path], list]
    begins: str | None = None


def train_words(here: Path, bench: Path) -> list:
    options = ["--backbone", NETWORK, "--bits", 16, *EPOCHS, "--run-dir", here / "run", "--resume"]
    return ["train_teacher.py", *DATA, "--cache-dir", here / "cache", *options]


def distill_words(here: Path, bench: Path) -> list:
    options = ["--student", NETWORK, "--clusters", 3, *EPOCHS, "--run-dir", here / "run", "--resume"]
    return ["distill.py", "--teacher", bench / "training" / "run", *options]


COMMANDS = {  # each needs those before it
    "training": Command(train_words),
    "distillation": Command(distill_words),
    "evaluation": Command(lambda here, _: ["evaluate.py", "--run", here / "run", "--pictures", 0], "distillation"),
    "report": Command(
        lambda here, _: ["scripts.report", here / "run" / "test.json", "--out", here / "report"], "evaluation"
    ),
}


@dataclass
class Ended:
    """How a command ended: exit status (negative: the signal), and what it said of errors."""

    status: int
    said: str

    @property
    def lines(self) -> list[str]:
        """Less its progress bars."""
        return [line for line in re.split(r"[\r\n]+", self.said) if line.strip() and not re.search(r"\d+%\|", line)]

    @property
    def short(self) -> str:
        return f"exit status {self.status}, {len(self.lines)} lines, the last: {''.join(self.lines[-1:])[:300]}"


def start(words: list, here: Path) -> subprocess.Popen:
    script = [ROOT / words[0]] if str(words[0]).endswith(".py") else ["-m", words[0]]
    return subprocess.Popen(
        [sys.executable, *map(str, (*script, *words[1:]))],
        cwd=here,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env=os.environ | ENVIRONMENT,
    )


def end(process: subprocess.Popen) -> Ended:
    try:
        said = process.communicate(timeout=LIMIT)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = f"{process.communicate()[1]}\nstill at work after {LIMIT} s"
    return Ended(process.returncode, said)


def content_of(file: Path) -> object:
    """What is in a file; raises where it is torn."""
    if file.suffix not in FORMATS:
        return file.read_bytes()
    with open(file, "rb") as opened:
        return FORMATS[file.suffix][0](opened)


def files_below(here: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of all that counts: no locks, nothing that is being written aside, no times of TensorBoard."""
    for file in sorted(here.rglob("*")):
        name = file.relative_to(here)
        if file.is_file() and not any(part.startswith(".") or part in ("tensorboard", "lock") for part in name.parts):
            yield str(name), file


def made(here: Path) -> dict[str, object]:
    """All that a command has left, to the bit, less where that was, how long it took and a commit made meanwhile."""
    found = {}
    for name, file in files_below(here):
        if file.suffix == ".pt":  # equal content may be pickled in other bytes
            found[name] = canonical(content_of(file))
        else:
            found[name] = UNLIKE.sub(b"", file.read_bytes().replace(os.fsencode(here), b"HERE"))
    return found


def torn(here: Path) -> str:
    """The first file that is there but not whole."""
    for name, file in files_below(here):
        try:
            content_of(file)
        except Exception as error:  # whatever a reader says of a file, it is not whole
            return f"a torn file: {name} ({type(error).__name__})"
    return ""


class Bench:
    """What each command makes, and how long it takes, when nobody disturbs it.

    Args:
        folder: where all is made.
        last: the last command that is needed.
    """

    def __init__(self, folder: Path, last: str = "report"):
        self.folder, self.made, self.seconds = folder, {}, {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in itertools.takewhile(lambda name: last not in self.made, COMMANDS):
            begun = time.monotonic()
            ended = self.run(name, self.begin(name, folder / name))
            assert ended.status == 0, f"{name}: {ended.said}"
            self.made[name], self.seconds[name] = made(folder / name), time.monotonic() - begun

    def begin(self, name: str, here: Path) -> Path:
        """The folder of a try, with what its command needs."""
        here.mkdir(exist_ok=True)
        if before := COMMANDS[name].begins:
            shutil.copytree(self.folder / before, here, dirs_exist_ok=True)
        return here

    def start(self, name: str, here: Path) -> subprocess.Popen:
        return start(COMMANDS[name].words(here, self.folder), here)

    def run(self, name: str, here: Path) -> Ended:
        return end(self.start(name, here))

    def killed(self, name: str, here: Path, number: signal.Signals, draw: random.Random) -> Ended:
        """Send a signal at a random moment: Ctrl-C reaches the whole group, the others the one process."""
        process = self.start(name, here)
        moment = draw.uniform(0.5 if draw.random() < LATE else 0, 1) * self.seconds[name]
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        return end(process)

    def wrong_again(self, name: str, here: Path) -> str:
        """Run it, undisturbed now; how what it made differs from what it should."""
        again = self.run(name, here)
        if again.status:
            return f"the run after it fails: {again.short}"
        right, now = self.made[name], made(here)
        other = sorted(file for file in right.keys() | now.keys() if right.get(file) != now.get(file))
        return f"other bits in the end: {', '.join(other)}" if other else ""


def in_turn(one: Callable[[int], None], seconds: float, most: float = math.inf) -> None:
    """``one(0)``, ``one(1)``, ..., some side by side, until the time is over."""
    until, numbers = time.monotonic() + seconds, itertools.count()

    def go_on(worker: int) -> None:
        for number in numbers:
            if number >= most or time.monotonic() > until:
                return
            one(number)

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(go_on, range(JOBS)))


# Kills


def wrong_end(ended: Ended, number: signal.Signals) -> str:
    """What is wrong with how a command ended after a signal; one that had ended before is right."""
    if ended.status in (0, -number) and number != signal.SIGINT:
        return ""
    if "Traceback" in ended.said and "in guarded" not in ended.said:
        # Before the command begins and after it has ended Ctrl-C is Python's.
        return "" if number == signal.SIGINT else f"a traceback: {ended.short}"
    if number == signal.SIGINT and (ended.status == 0 or (ended.status == -number and not ended.lines)):
        return ""
    one = len(ended.lines) == 1 and "interrupted" in ended.lines[0]
    return "" if number == signal.SIGINT and ended.status == 130 and one else f"a wrong end: {ended.short}"


def kills(
    bench: Bench,
    names: tuple[str, ...],
    findings: Findings,
    seed: int,
    seconds: float = math.inf,
    most: float = math.inf,
) -> dict[str, Counter]:
    """Commands killed and run again, until the time is over or there were so many; tallies by command and signal."""
    tallies = {name: Counter() for name in (*names, *(number.name for number in SIGNALS))}

    def one(turn: int) -> None:
        draw, number = random.Random(f"{seed} kill {turn}"), SIGNALS[turn % len(SIGNALS)]
        name = names[turn % len(names)]
        here = bench.begin(name, bench.folder / f"kill_{turn}")
        ended = bench.killed(name, here, number, draw)
        left = torn(here)
        wrong = [wrong_end(ended, number), left, bench.wrong_again(name, here)]
        counts = {"tries": 1, "too late": ended.status == 0, "litter": any(here.rglob(f"{ASIDE}*"))}
        for key in (name, number.name):
            tallies[key].update({**counts, "findings": any(wrong)})
        for what in filter(None, wrong):
            findings.add(name, f"after {number.name}, {what}", f"kill {turn} of seed {seed}")
        shutil.rmtree(here)

    in_turn(one, seconds, most)
    return tallies


# Disks


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)


def cannot_mount(folder: Path) -> str:
    """Why no small file system can be made here; empty where it can."""
    folder.mkdir()
    try:
        mount(folder, "size=64k")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no tmpfs could be mounted ({error}): disks were skipped"
    subprocess.run(["umount", folder], check=True)
    return ""


def break_disk(kind: str, here: Path, draw: random.Random) -> str:
    """Make it full or read-only; what it is, in words."""
    # Small sizes stop a command at its first file, larger ones somewhere on its way.
    free = draw.choice([0, 4096 * draw.randint(1, 20), 4096 * draw.randint(20, 300)])
    size = max(4096, shutil.disk_usage(here).used + free)
    mount(here, "remount,ro" if kind == "read-only" else f"remount,size={size}")
    return "a read-only mount" if kind == "read-only" else f"{free:,} bytes free"


def wrong_refusal(ended: Ended, here: Path) -> str:
    if ended.status == 0:
        return ""
    one = len(ended.lines) == 1 and ended.lines[0].startswith("error: ") and str(here) in ended.lines[0]
    return "" if one else f"not one line that names the place: {ended.short}"


def disturbed(bench: Bench, name: str, kind: str, here: Path, draw: random.Random) -> tuple[bool, list[str], str]:
    """A command on a bad disk, and again on a good one: (whether it was refused, what is wrong, what was done)."""
    here.mkdir()
    mount(here, f"size={ROOM}")
    try:
        bench.begin(name, here)
        half = draw.random() < 0.5
        if half:  # something is there already
            bench.killed(name, here, signal.SIGKILL, draw)
        before = dict(files_below(here))
        what = break_disk(kind, here, draw) + (", a killed run's files there" if half else "")
        ended = bench.run(name, here)
        lost = sorted(before.keys() - dict(files_below(here)).keys() - {"run/last.pt"})
        wrong = [wrong_refusal(ended, here), torn(here), f"lost: {', '.join(lost)}" if lost else ""]
        mount(here, f"remount,rw,size={ROOM}")
        return ended.status != 0, [*filter(None, [*wrong, bench.wrong_again(name, here)])], what
    finally:
        subprocess.run(["umount", "-l", here], check=True)
        here.rmdir()


def disks(
    bench: Bench,
    names: tuple[str, ...],
    findings: Findings,
    seed: int,
    seconds: float = math.inf,
    most: float = math.inf,
) -> dict[str, Counter]:
    """Disk after disk, until the time is over or there were so many; tallies by command and kind."""
    kinds = [(name, kind) for kind in DISKS for name in names]
    tallies = {f"{name}, {kind}": Counter() for name, kind in kinds}

    def one(turn: int) -> None:
        name, kind = kinds[turn % len(kinds)]
        draw = random.Random(f"{seed} disk {turn}")
        refused, wrong, what = disturbed(bench, name, kind, bench.folder / f"disk_{turn}", draw)
        tallies[f"{name}, {kind}"].update({"tries": 1, "refused": refused, "findings": bool(wrong)})
        for fault in wrong:
            findings.add(name, f"on a {kind} disk, {fault}", f"disk {turn} of seed {seed}: {what}")

    in_turn(one, seconds, most)
    return tallies


# What came of it


def print_table(title: str, columns: tuple[str, ...], tallies: dict[str, Counter]) -> None:
    print(f"\n{title:28} {' '.join(f'{column:>9}' for column in columns)}")
    for name, tally in tallies.items():
        print(f"{name:28} {' '.join(f'{tally[column]:9,}' for column in columns)}", flush=True)


def search(minutes: float, seed: int, findings: Findings, top: Path) -> dict:
    """All three, one after the other."""
    seconds, names = {what: 60 * minutes * share for what, share in SHARES.items()}, tuple(COMMANDS)
    inputs = damaged(top / "files", seconds["inputs"], seed, findings)
    total = sum(inputs.values(), Counter())
    columns = ("inputs", "right", "changed", "refused", "finding")
    print_table("damaged file", columns, inputs | {"all": total})
    bench = Bench(top / "bench")
    killed = kills(bench, names, findings, seed, seconds["kills"])
    print_table("kills", ("tries", "too late", "litter", "findings"), killed)
    skipped = cannot_mount(top / "mount")
    print(f"\n{skipped}" if skipped else "", end="")
    bad = {} if skipped else disks(bench, names, findings, seed, seconds["disks"])
    print_table("disks", ("tries", "refused", "findings"), bad)
    totals = {"inputs": total["inputs"], "kills": sum(killed[name]["tries"] for name in names)}
    totals |= {"disks": sum(tally["tries"] for tally in bad.values()), "kinds_of_findings": len(findings.kinds)}
    return {"totals": totals, "skipped": skipped, "inputs": inputs, "kills": killed, "disks": bad}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="how long to look, about")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "faults.json")
    args = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    out = args.out.resolve()
    findings = Findings(out.with_name(f"{out.stem}_findings"))
    shutil.rmtree(findings.folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="brcd_faults_") as top:
        os.chdir(top)  # whatever is written to a relative path
        result = search(args.minutes, args.seed, findings, Path(top))
        os.chdir(ROOT)
    print(f"\n{len(findings.kinds)} kinds of findings{f', bytes in {findings.folder}' if findings.kinds else ''}")
    for one in findings.listed():
        print(f"- {one['where']}, {one['count']} times: {one['what'][:300]}\n    by {one['by'][:200]}")
    facts = {"environment": environment(), "minutes": args.minutes, "seed": args.seed}
    write_json(out, {**facts, **result, "findings": findings.listed()})
    print(f"\nwrote {out}")
    sys.exit(1 if findings.kinds else 0)


if __name__ == "__main__":
    main()
