"""Run folders: arguments, environment, log and summary."""

import argparse
import contextlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
import yaml

from utils import distributed
from utils.devices import numerics
from utils.errors import UserError
from utils.files import ASIDE, held_alone, read_json, remove_torn, write_csv, write_json, written_aside
from utils.options import COLUMN, FREE, Parser

DEFAULTS = "defaults.json"


def as_text(values: dict) -> dict:
    """Sorted by name; paths as text."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in sorted(values.items())}


def write_yaml(file: Path, values: dict) -> None:
    with written_aside(file, "w") as out:
        yaml.safe_dump(values, out)


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
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,  # pick_device made it the current
        "cuda_numerics": numerics(),
    }


class Run:
    """A folder that belongs to one set of arguments.

    Args:
        args: the parsed command line.
        parser: what parsed it; the defaults of the options that name a row of a table are kept with the run.
        idle: options that do nothing beside the others, and so name no row.

    Raises:
        UserError: the folder holds another run, or the same one and ``resume`` was not given, or it is in use.
    """

    def __init__(self, args: argparse.Namespace, parser: Parser, idle: Collection[str] = ()):
        self.folder = distributed.run_folder(args.run_dir)
        self.rows: list[dict] = []
        plain, known = as_text(vars(args)), self.folder / "args.yaml"
        if known.exists():
            self._same_arguments(plain, parser)
            if not args.resume:
                raise UserError(
                    f"{self.folder}: holds this run already; go on with --resume, or choose another --run-dir"
                )
        elif self.folder.is_symlink() and not self.folder.exists():
            raise UserError(f"{self.folder}: a link to nothing; remove it, or choose another --run-dir")
        elif self.folder.exists() and any(
            p.name != ".lock" and not p.name.startswith(ASIDE) for p in self.folder.iterdir()
        ):
            raise UserError(f"{self.folder}: is not empty and holds no run (no args.yaml); choose another --run-dir")
        self.new = not known.exists()
        self._made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]  # by us, innermost first
        self._lock = held_alone(self.folder)
        if self.new:
            write_yaml(known, plain)
        remove_torn(self.folder)
        if not self.path(DEFAULTS).exists():
            unnamed = parser.having(FREE, COLUMN) | set(idle)
            named = {k: v for k, v in parser.defaults().items() if k not in unnamed}
            write_json(self.path(DEFAULTS), as_text(named))  # not YAML, which reads on where it was cut
        if not self.path("environment.json").exists():
            write_json(self.path("environment.json"), environment())

    def _same_arguments(self, now: dict, parser: Parser) -> None:
        free = parser.having(FREE)
        before = as_text(parser.defaults()) | read_args(self.folder)  # an older run may lack a newer option
        other = [
            f"{k}: {before.get(k)!r} there, {now.get(k)!r} now"
            for k in sorted(before.keys() | now.keys())
            if k not in free and before.get(k) != now.get(k)
        ]
        if other:
            raise UserError(
                f"{self.folder}: holds a run with other arguments ({'; '.join(other)}); choose another --run-dir"
            )

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """What is refused in here, before training starts, leaves no folder that was not there before."""
        try:
            yield
        except UserError:
            if self.new:
                shutil.rmtree(self.folder)
                with contextlib.suppress(OSError):  # somebody else's by now
                    for parent in self._made[1:]:
                        parent.rmdir()
            raise

    def path(self, name: str) -> Path:
        return self.folder / name

    def write_log(self) -> None:
        write_csv(self.path("log.csv"), self.rows)

    def finish(self, summary: dict) -> None:
        """The run's last file: it is there only when all others are. Nothing will be resumed any more."""
        write_json(self.path("summary.json"), summary)
        self.path("last.pt").unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        return distributed.from_first(self.path("summary.json").exists() and bool(read_summary(self.folder)))


def read_summary(folder: Path) -> dict:
    """How a finished run ended.

    Raises:
        UserError: it has not, or the file is damaged.
    """
    file = Path(folder) / "summary.json"
    if not file.exists():
        raise UserError(f"{folder}: not finished (no summary.json); go on with it by --resume")
    summary = read_json(file)
    best = summary.get("best")
    whole = isinstance(best, dict) and all(
        isinstance(one, dict) and isinstance(one.get("value"), int | float) and isinstance(one.get("epoch"), int)
        for one in best.values()
    )
    if not whole or not isinstance(summary.get("epochs"), int):
        raise UserError(f"{file}: damaged; delete it and go on with that run by --resume")
    return summary


def read_args(folder: Path) -> dict:
    """The arguments of a run.

    Raises:
        UserError: no run there, or a damaged file.
    """
    return _read_yaml(Path(folder) / "args.yaml", f"{folder}: no run folder (no args.yaml in it)")


def read_defaults(folder: Path) -> dict:
    """The defaults, when a run was started, of those options that name a row of a table.

    Raises:
        UserError: the file is missing (the run is of older code) or damaged.
    """
    if not (file := Path(folder) / DEFAULTS).exists():
        raise UserError(
            f"{folder}: no {DEFAULTS} in it; run the command that made it again with --resume, which writes it"
        )
    return read_json(file)


def _read_yaml(file: Path, lacking: str) -> dict:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(values, dict) and all(isinstance(name, str) for name in values):
            return values
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(lacking) from None
    except (yaml.YAMLError, ValueError, RecursionError):  # also what is not UTF-8
        pass
    raise UserError(f"{file}: damaged; train that run again in another folder")


def read_environment(folder: Path) -> dict:
    """The environment that a run was started in.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = Path(folder) / "environment.json"
    known = read_json(file)
    if not all(isinstance(known.get(key), str) for key in ("commit", "command")):
        raise UserError(f"{file}: damaged; delete it and resume that run, and it is written again")
    return known
