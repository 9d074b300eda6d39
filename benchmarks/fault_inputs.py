"""Mutated files fed to every reader, and the judgement of what came out: right, refused in one line, or a finding."""

import contextlib
import hashlib
import itertools
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import torch
from fault_mutations import apply, describe, edit, mutations
from fault_readers import Reader, readers
from hypothesis import HealthCheck, Phase, given, settings

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 10  # longer than this, and a reader hangs
LONGEST = 1000  # characters of a message that is still a line
MEMORY = 4 << 30  # what a reader may take beside what its imports took
BATCHES = 60, 300  # inputs of a reader at its first turn, so that each has one soon, and at every other
KEPT = 3  # files of one kind of finding
# What a person might put in a file's place by mistake; each reader also gets other variants of its own.
FOREIGN = [
    b"\x00" * 4096,
    b"<html>404</html>\n",
    b"{}\n",
    b"[]\n",
    b"a: 1\n",
    b"\x80\x02}q\x00.",
    b"PK\x05\x06" + bytes(18),
]
FOREIGN += [
    b"\x89PNG\r\n\x1a\n",
    b"%!PS-Adobe-3.0\nshowpage\n",
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}",
    b"PAR1PAR1",
    bytes(1024),
]


class Hang(BaseException):
    """Raised by the alarm; no reader's except clause catches it."""


def digest(value: object) -> str:
    return hashlib.sha256(repr(canonical(value)).encode(errors="surrogatepass")).hexdigest()


def canonical(value: object) -> object:
    """Plain nested tuples that are equal where two results are the same, to the bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("list")
    if isinstance(value, np.ndarray) and value.dtype != object:
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return tuple((str(k), canonical(v)) for k, v in sorted(value.items(), key=lambda item: str(item[0])))
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(map(canonical, value))
    return type(value).__name__, str(value)


class Case:
    """One reader's valid case in a folder of its own, made anew before each input."""

    def __init__(self, reader: Reader, folder: Path):
        self.reader, self.folder = reader, folder
        self.own = []
        for variant in (1, 0):  # in one place, for files that hold paths of others
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            reader.make(folder, variant)
            self.file = next(folder.glob(reader.file))
            self.own.insert(0, self.file.read_bytes())
        self.pristine = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.edits = reader.edits(folder) if reader.edits else []
        self.right = {digest(reader.read(folder))}
        if reader.swaps:
            self.put(self.own[1])
            with contextlib.suppress(UserError):
                self.right.add(digest(reader.read(folder)))

    def put(self, data: bytes) -> None:
        for path in self.folder.rglob("*"):
            if path not in self.pristine and path.is_file():
                path.unlink()
        for path, content in self.pristine.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if path == self.file else content)

    def judge(self, data: bytes, edited: bool) -> tuple[str, str]:
        """(right, changed, refused or finding; for a finding what it is)."""
        self.put(data)
        try:
            with warnings.catch_warnings(record=True) as said:
                value = self.read()
            same = digest(value) in self.right
            valid = same or bool(self.reader.valid(value, self.folder))
        except UserError as error:
            return self.judge_message(error, said)
        except KeyboardInterrupt:  # of who runs this
            raise
        except BaseException as error:  # all but a UserError is what is looked for, SystemExit too
            return "finding", f"{type(error).__name__} in {place(error)}: {first_line(error)}"
        if said := loud(said):
            return "finding", f"a warning is printed: {said}"
        if same:
            return "right", ""
        if self.reader.exact and not edited:
            return "finding", "another result in silence, where a checksum could tell"
        return ("changed", "") if valid else ("finding", f"nonsense is accepted in silence: {first_line(value)}")

    def read(self) -> object:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            return self.reader.read(self.folder)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def judge_message(self, error: UserError, said: list) -> tuple[str, str]:
        message = str(error)
        words = self.reader.named(self.folder) if self.reader.named else None
        whole = str(self.file.parent) in message and self.file.name in message
        wrong = {
            "the message has several lines": len(message.splitlines()) != 1,
            "the message is very long": len(message) > LONGEST,
            "the message cannot be printed": not printable(message),
            "the message does not name the file": not (any(w in message for w in words) if words else whole),
            f"a warning is printed before the error: {loud(said)}": bool(loud(said)),
        }
        for what, is_so in wrong.items():
            if is_so:
                return "finding", f"{what}, in {place(error)}: {first_line(error)}"
        return "refused", ""


def printable(message: str) -> bool:
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return True


def loud(said: list) -> str:
    """The first warning that a user would see; Python shows no deprecations of libraries."""
    quiet = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning, ImportWarning)
    shown = [w for w in said if not issubclass(w.category, quiet)]
    return f"{shown[0].category.__name__}: {first_line(shown[0].message)}" if shown else ""


def first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def place(error: BaseException) -> str:
    """The innermost function of this project that the error passed through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
    ours = [f for f in frames if "benchmarks" not in f.filename] or frames
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].name}" if ours else "the interpreter"


def signature(what: str) -> str:
    """Findings of one kind and place are one: all before the words of the error."""
    return what.partition(": ")[0]


def look_at(reader: Reader, folder: Path, seed: int, count: int, found, beat=lambda: None) -> Counter:
    """Feed ``count`` mutated files to a reader; ``found`` gets each finding as (what, mutation, bytes)."""
    case, tally = Case(reader, folder), Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(case.own, FOREIGN, case.edits, reader.text))
    def look(blows: list[tuple]) -> None:
        data = apply(case.own[0], blows)
        verdict, what = case.judge(data, blows[0][0] is edit)
        tally[verdict] += 1
        tally["inputs"] += 1
        if verdict == "finding":
            found(what, describe(blows), data)
        beat()

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        with little_memory():
            look()
    finally:
        signal.signal(signal.SIGALRM, previous)
    return tally


@contextlib.contextmanager
def little_memory():
    """A header that promises a million million pixels is to be refused, not to bring the machine down."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def ring(number, frame):
    raise Hang(f"still at work after {SECONDS} s")


# In processes of their own: a reader that crashes or hangs outside Python takes nothing with it.


def child(name: str, folder: Path, seed: int, count: int, pipe) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    torch.set_num_threads(1)
    last = [time.monotonic()]

    def beat() -> None:
        if time.monotonic() - last[0] > 1:
            pipe.send(None)
            last[0] = time.monotonic()

    def found(what: str, mutation: str, data: bytes) -> None:
        pipe.send((what, mutation, data))

    pipe.send(dict(look_at(readers()[name], folder, seed, count, found, beat)))


def batch(context, name: str, folder: Path, seed: int, count: int) -> tuple[dict, list[tuple]]:
    """(tally, findings) of one child."""
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(name, folder, seed, count, theirs))
    process.start()
    theirs.close()
    findings, tally = [], {}
    with contextlib.suppress(EOFError):
        while not tally and ours.poll(SECONDS * 6):
            said = ours.recv()
            if isinstance(said, tuple):
                findings.append(said)
            tally = said if isinstance(said, dict) else tally
    if not tally:
        process.join(1)
        what = (
            f"the process dies, exit status {process.exitcode}" if process.exitcode is not None else "it hangs for good"
        )
        file = next(folder.glob(readers()[name].file), None)
        findings.append((what, "its last input", file.read_bytes() if file else b""))
        tally = {"inputs": 1, "finding": 1}
    process.kill()
    process.join()
    return tally, findings


class Findings:
    """Findings by reader and kind, with the bytes of the first few of each in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.kinds = folder, {}

    def add(self, reader: str, what: str, mutation: str, data: bytes | None = None) -> None:
        kind = self.kinds.setdefault(
            (reader, signature(what)), {"count": 0, "what": what, "mutations": [], "files": []}
        )
        kind["count"] += 1
        if len(kind["mutations"]) < KEPT:
            kind["mutations"].append(mutation)
            if data is not None:
                kind["files"].append(str(self.keep(reader, data)))

    def keep(self, reader: str, data: bytes) -> Path:
        folder = self.folder / "".join(c if c.isalnum() else "_" for c in reader)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / hashlib.sha256(data).hexdigest()[:16]
        file.write_bytes(data)
        return file.relative_to(self.folder)

    def listed(self) -> list[dict]:
        return [{"reader": reader, **kind} for (reader, _), kind in sorted(self.kinds.items())]


def look(context, seconds: float, seed: int, findings: Findings, jobs: int) -> dict:
    """Batch after batch, reader after reader, until the time is over; the tally of each reader."""
    until, tallies = time.monotonic() + seconds, {name: Counter() for name in readers()}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

    def work(top: Path, name: str, number: int, count: int) -> None:
        folder = top / f"{number}" / "case"
        if time.monotonic() < until:
            tally, found = batch(context, name, folder, seed + number, count)
            tallies[name].update(tally)
            for what, mutation, data in found:
                findings.add(name, what, mutation, data)
            shutil.rmtree(folder.parent, ignore_errors=True)

    with tempfile.TemporaryDirectory(dir=memory) as top, ThreadPoolExecutor(jobs) as pool:

        def go_on(worker: int) -> None:
            for number, name in enumerate(itertools.cycle(readers())):
                if number % jobs == worker:
                    work(Path(top), name, number, BATCHES[number >= len(tallies)])
                if time.monotonic() > until:
                    return

        for done in [pool.submit(go_on, worker) for worker in range(jobs)]:
            done.result()
    return {name: dict(tally) for name, tally in tallies.items()}
