"""What search.encode does on Ray, by Daft on this machine: python benchmarks/scale_daft.py STUDENT SHARDS OUT WORKERS

Run by scale.py, which sets PYTHONPATH, in an environment of its own: Daft pins an older pyarrow.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import daft

from search.encoding import Encoder
from search.pictures import parts_of


class Worker:
    """Holds one student, in a process of its own."""

    def __init__(self, student: str, out: str):
        self.encoder = Encoder(student, out)

    def __call__(self, row: dict) -> int:
        return self.encoder.make(row)["coded"]


def main(student: str, shards: str, out: str, workers: str) -> None:
    rows = [{"row": {"number": n, **asdict(part)}} for n, part in enumerate(parts_of(shards, 1000))]
    Path(out).mkdir()
    worker = daft.cls(Worker, cpus=1, use_process=True, max_concurrency=int(workers), max_retries=3)(student, out)
    done = daft.from_pylist(rows).into_batches(1).select(worker(daft.col("row")).alias("coded")).to_pydict()
    print(sum(done["coded"]), "pictures")


if __name__ == "__main__":
    main(*sys.argv[1:])
