"""What several benchmarks measure with."""

import time
from pathlib import Path

import numpy as np


def _status(field: str) -> int:
    """A size of this process in KiB, as Linux counts it."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def peak_gib() -> float:
    """Most memory that this process has had. (getrusage would begin with what its parent had.)"""
    return _status("VmHWM") / 2**20


def anonymous_mib() -> float:
    """Memory of this process that no file backs."""
    return _status("RssAnon") / 2**10


def median_seconds(function, times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
