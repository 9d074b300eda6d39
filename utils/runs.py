"""Run folders: arguments, environment, log and checkpoints, each file written aside and then renamed."""

import contextlib
import csv
import fcntl
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from utils import distributed
from utils.errors import UserError

# Arguments that may differ when a run is resumed, since its result does not depend on them.
FREE = {"resume", "run_dir", "cache_dir", "cache_limit", "data_dir", "workers"}


@contextlib.contextmanager
def written_aside(path: Path, mode: str = "wb") -> Iterator:
    """Open a file that appears at ``path`` whole or not at all, also when the power goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Of several processes one is inside, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def held_alone(folder: Path):
    """A lock on ``folder`` that lasts as long as what is returned, and no longer than this process.

    Raises:
        UserError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"{folder}: another process is at work there; wait for its end, or choose another --run-dir"
        ) from None
    return lock


def save_atomically(path: Path, content) -> None:
    # Through memory: torch turns a full disk into its own error, a plain write says what happened.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with written_aside(path) as file:
        file.write(buffer.getbuffer())


def write_json(path: Path, content) -> None:
    with written_aside(path, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """One header for all rows; a value a row lacks stays empty."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    with written_aside(path, "w") as file:
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def git_commit() -> str:
    """The commit this code is at, "+changes" behind it where tracked files other than results differ; "unknown" outside
    a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)results")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment() -> dict:
    """What a number may depend on beside the arguments."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


class Run:
    """A folder that belongs to one set of arguments.

    Raises:
        UserError: the folder holds another run, or the same one and ``resume`` was not given, or it is in use.
    """

    def __init__(self, folder: Path, args: dict, resume: bool):
        self.folder = distributed.run_folder(folder)
        self.rows: list[dict] = []
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in sorted(args.items())}
        known = self.folder / "args.yaml"
        if known.exists():
            self._same_arguments(known, plain)
            if not resume:
                raise UserError(
                    f"{self.folder}: holds this run already; go on with --resume, or choose another --run-dir"
                )
        elif self.folder.exists() and any(not p.name.startswith(".") for p in self.folder.iterdir()):
            raise UserError(f"{self.folder}: is not empty and holds no run (no args.yaml); choose another --run-dir")
        self._lock = held_alone(self.folder)
        if not known.exists():
            with written_aside(known, "w") as file:
                yaml.safe_dump(plain, file)
        for torn in self.folder.glob(".*.*"):  # what a killed process was writing aside
            torn.unlink()
        if not self.path("environment.json").exists():
            write_json(self.path("environment.json"), environment())

    def _same_arguments(self, known: Path, now: dict) -> None:
        try:
            before = yaml.safe_load(known.read_text())
            assert isinstance(before, dict)
        except (yaml.YAMLError, AssertionError, UnicodeDecodeError):
            raise UserError(f"{known}: damaged; choose another --run-dir") from None
        other = [
            f"{k}: {before.get(k)!r} there, {now.get(k)!r} now"
            for k in sorted(before.keys() | now.keys())
            if k not in FREE and before.get(k) != now.get(k)
        ]
        if other:
            raise UserError(
                f"{self.folder}: holds a run with other arguments ({'; '.join(other)}); choose another --run-dir"
            )

    def path(self, name: str) -> Path:
        return self.folder / name

    def write_log(self) -> None:
        write_csv(self.path("log.csv"), self.rows)

    def finish(self, summary: dict) -> None:
        """The run's last file: it is there only when all others are."""
        write_json(self.path("summary.json"), summary)

    @property
    def finished(self) -> bool:
        return distributed.from_first(self.path("summary.json").exists())


def read_args(folder: Path) -> dict:
    """The arguments of a run.

    Raises:
        UserError: no run there.
    """
    try:
        args = yaml.safe_load((Path(folder) / "args.yaml").read_text())
        if not isinstance(args, dict):
            raise yaml.YAMLError
        return args
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no run folder (no args.yaml in it)") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{folder}/args.yaml: damaged; train that run again") from None


def read_environment(folder: Path) -> dict:
    """The environment that a run was started in.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = Path(folder) / "environment.json"
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        raise UserError(f"{file}: missing or damaged; resume that run, and it is written again") from None
