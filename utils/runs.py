"""Run folders: arguments, environment, log and summary."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from utils import distributed
from utils.errors import UserError
from utils.files import held_alone, write_csv, write_json, written_aside

# Arguments that may differ when a run is resumed, since its result does not depend on them.
FREE = {"resume", "run_dir", "cache_dir", "cache_limit", "data_dir", "workers"}


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
