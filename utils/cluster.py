"""Ray on this machine or on a cluster; only what asks for it imports it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.errors import UserError, first_line

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 10  # seconds in which a cluster must answer
STORE = 100 * 2**20  # bytes of shared memory on this machine; what passes through it here is small
# Of the code that a cluster is sent: what was made here stays here.
EXCLUDED = ["/data/*/", "/runs", "/cache", "/codes", "/results", "/image", "/tests", ".git", ".venv", "__pycache__"]


@contextlib.contextmanager
def ray_on(address: str | None, cpus: int) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at ``address``, or started here with ``cpus`` cores; ended afterwards.

    Raises:
        UserError: Ray is not installed, no cluster answers, or what a task raised.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reports to its makers unless told not to
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed; pip install -r requirements-scale.txt -c constraints.txt") from None
    here = {"address": "local", "num_cpus": cpus, "object_store_memory": STORE, "include_dashboard": False}
    # Workers import the project: on this machine from where it is, a cluster is sent it.
    here["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    there = {"address": address, "runtime_env": {"working_dir": str(ROOT), "excludes": EXCLUDED}}
    how: dict[str, Any] = {**(there if address else here), "logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(**how)
    except Exception as error:  # a dozen kinds, by what answers or does not
        what = f"no Ray cluster that can be used answers at {address}" if address else "Ray did not start"
        raise UserError(f"{what} ({first_line(error)})") from None
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray lost what was at work ({first_line(error)}); run the same command again") from None
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Before anything is written: raises UserError where nothing answers; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdigit():
            socket.create_connection((host, int(port)), PATIENCE).close()
        elif address != "auto":
            raise OSError("HOST:PORT or 'auto' is needed")
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {address} ({first_line(error)}); see `ray start --head`") from None
