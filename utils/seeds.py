"""Random numbers that depend on names, not on the order of calls.

Every stream (the head's start, an epoch's order, a view's crops) has its own generator, seeded from the run's seed
and the stream's name. A resumed run rebuilds any of them from the epoch alone, so no generator state is stored.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch

# MKL's matrix products have the same bits on any number of threads only if it is asked before the first of them.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator for the stream named by ``parts``; CPU, so that a GPU run draws the same numbers."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """PyTorch's global generator seeded by name inside, as it was outside: for layers, which start from no other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*parts))
        yield
