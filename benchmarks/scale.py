"""Milvus, encoding and the grid beyond one machine, here: python benchmarks/scale.py --student EXPORT --photos FOLDER

    --parts milvus    the same codes in a file and on a real Milvus server: adding, single queries, 1,000 queries alike?
    --parts encode    pictures in WebDataset shards by search.encode, beside the network alone on ready pixels
    --parts grid      the digits grid by the local runner and by Ray: seconds, peak memory, the same table?

Each part adds to what --out holds, so that they may be run one by one. A smoke run takes two minutes:

    python benchmarks/scale.py --parts milvus grid --codes 3000 --queries 20 --singles 5 --small-grid
"""

import argparse
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from search_engines import rate  # noqa: E402

from data.decode import pixels_of  # noqa: E402
from models.exported import Exported  # noqa: E402
from search.engines import NPROBE, open_index  # noqa: E402
from search.index import Row  # noqa: E402
from search.pictures import Part, pictures  # noqa: E402
from utils.files import read_json, write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

PARTS = ("milvus", "encode", "grid")
BITS, K = 64, 100
CARD = {"bits": BITS, "role": "student", "backbone": "none", "method": "none", "model_sha256": "0" * 64}
SHARD = 500  # pictures a shard
# What scripts/compare.sh does if it is not told otherwise, and a smoke run's.
GRID = (
    "--views 6 --bits 16 32 64 --teacher-epochs 100 --epochs 60 --methods none rkd pkt sp kl crd sskd crcd packd brcd"
)
SMALL_GRID = "--flags=--limit=60 --bits 16 --views 2 --teacher-epochs 20 --epochs 10 --methods none rkd brcd"


# Processes


def tree(process: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(process)
        return [top, *top.children(recursive=True)]
    return []


def pss_mib(process: int) -> float:
    """Memory of a process and all below it; what several share counts once."""
    total = 0
    for one in tree(process):
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total / 2**20


def watched(words: list, folder: Path, **env) -> tuple[float, float, str]:
    """(seconds, peak of memory in MiB, what it said) of a command."""
    process = begin(words, folder, **env)
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            peak[0] = max(peak[0], pss_mib(process.pid))

    started = time.perf_counter()
    watcher = threading.Thread(target=watch)
    watcher.start()
    said = process.communicate()[0]
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{words}: {said.strip().splitlines()[-1:]}")
    return seconds, peak[0], said


def begin(words: list, folder: Path, **env) -> subprocess.Popen:
    return subprocess.Popen(
        list(map(str, words)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TQDM_MININTERVAL": "60", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# Milvus


@contextlib.contextmanager
def milvus_server(folder: Path) -> Iterator[tuple[str, int]]:
    """(address, process) of a server as scripts/milvus.sh starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "DATA": str(folder), "PORT": str(port), "PYTHON": sys.executable}

    def script(what: str) -> None:
        subprocess.run(["sh", ROOT / "scripts" / "milvus.sh", what], env=env, check=True, capture_output=True)

    script("start")
    try:
        yield f"milvus://127.0.0.1:{port}/codes", int((folder / "server.pid").read_text())
    finally:
        script("stop")


def clustered(n: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [n, 8] and [queries, 8]: one of 1,000 centres each, with a tenth of its bits turned."""
    draw = np.random.default_rng(0)
    centres = draw.integers(0, 2, (1000, BITS), dtype=np.uint8)
    bits = centres[draw.integers(0, 1000, n + queries)] ^ (draw.random((n + queries, BITS), dtype=np.float32) < 0.1)
    codes = np.packbits(bits, axis=1)
    return codes[:n], codes[n:]


def fill(index, codes: np.ndarray, part: int = 10_000) -> tuple[float, np.ndarray]:
    """(seconds, ids) of adding made-up pictures of these codes."""
    index.set_card(CARD)
    ids, seconds = [], 0.0
    for first in range(0, len(codes), part):
        rows = [
            Row(f"/made/up/{i // 1000:06d}/{i:09d}.jpg", 1, 1, b"%032d" % i, code, b"", float(i))
            for i, code in enumerate(codes[first : first + part], first)
        ]
        started = time.perf_counter()
        ids += index.add(rows)
        seconds += time.perf_counter() - started
    return seconds, np.array(ids)


def singles(index, queries: np.ndarray) -> dict[str, float]:
    """Milliseconds of queries one at a time, paths included."""
    times = []
    for query in queries:
        started = time.perf_counter()
        index.search(query[None], K)
        times.append(1000 * (time.perf_counter() - started))
    times = times[len(times) // 10 :]  # the first are not counted
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99))}


def milvus(folder: Path, n: int, queries: int, one_at_a_time: int) -> dict:
    codes, asked = clustered(n, queries)
    found, result = {}, {"codes": n, "bits": BITS, "k": K}
    with milvus_server(folder / "milvus") as (address, process):
        empty = pss_mib(process)
        for name, where in (("file", str(folder / "my.index")), ("milvus", address)):
            with open_index(where, write=True) as index:
                seconds, ids = fill(index, codes)
            row = {"add_seconds": seconds, "rows_per_second": n / seconds}
            with open_index(where) as index:
                row |= singles(index, asked[:one_at_a_time])
                started = time.perf_counter()
                distances, nearest = index.nearest(asked, K)
                row["seconds_of_all_queries"] = time.perf_counter() - started
                found[name] = distances, np.searchsorted(ids, nearest)
                if name == "milvus":
                    row["memory_mib"], row["memory_mib_empty"] = pss_mib(process), empty
                    row["version"] = index.info()["milvus"]
            result[name] = row
        with open_index(f"{address}?consistency=Bounded") as index:
            result["milvus, bounded"] = singles(index, asked[:one_at_a_time])
        (d, at), (d2, at2) = found["file"], found["milvus"]
        result["queries"], result["equal"] = queries, int(((d == d2) & (at == at2)).all(axis=1).sum())
        result["with_ties_at_the_end"] = int((d[:, -1] == d[:, -2]).sum())
        started = time.perf_counter()
        with open_index(address, write=True) as index:
            index.make_approximate()
        lists = {"build_seconds": time.perf_counter() - started, "lists": NPROBE}
        with open_index(f"{address}?consistency=Bounded", nprobe=NPROBE) as index:
            lists["recall"], lists["recall_at"] = index.recall()
            result["approximate, bounded"] = lists | singles(index, asked[:one_at_a_time])
        result["disk_mib"] = (
            sum(f.stat().st_size for f in (folder / "milvus" / "data").rglob("*") if f.is_file()) / 2**20
        )
    return result


# Encoding


def shards_of(photos: Path, most: int | None, folder: Path) -> int:
    """Pictures in the shards that are put into a folder: those that are there, or written of JPEG files."""
    folder.mkdir()
    if tars := sorted(photos.glob("*.tar")):
        n = 0
        for tar in tars:
            if most is None or n < most:
                (folder / tar.name).symlink_to(tar.resolve())
                n += sum(1 for _ in pictures(Part("shard", str(tar))))
        return n
    files = sorted(photos.rglob("*.jpg"))[:most]
    for number, first in enumerate(range(0, len(files), SHARD)):
        with tarfile.open(folder / f"{number:05d}.tar", "w", dereference=True) as tar:
            for file in files[first : first + SHARD]:
                tar.add(file, file.name)
    return len(files)


def network_alone(student: str, shards: Path, threads: int, n: int = 600) -> float:
    """Pictures a second of threads that each hash pixels which lie ready."""
    first = pictures(Part("shard", str(min(shards.iterdir()))))
    ready = [pixels_of(io.BytesIO(content), name, upright=True) for name, content in islice(first, 200)]
    model = Exported(Path(student))
    rate(model.code, ready, threads)
    return rate(model.code, list(islice(cycle(ready), n)), threads)


def encode_words(student: str, shards: Path, out: Path, workers: int) -> list:
    words = [sys.executable, "-m", "search.encode", "--student", student, "--input", shards, "--out", out]
    return [*words, "--workers", workers]


def steady(out: Path, n: int) -> float:
    """Pictures a second after the first part was there, by the parts' times: without start-up."""
    times = sorted(file.stat().st_mtime for file in out.glob("part-*"))
    return n * (1 - 1 / len(times)) / max(times[-1] - times[0], 1e-3)


def encoding(student: str, shards: Path, n: int, out: Path, workers: int) -> dict:
    alone = network_alone(student, shards, workers)
    words = encode_words(student, shards, out, workers)
    seconds, peak, _ = watched(words, shards.parent)
    row = {"pictures": n, "seconds": seconds, "per_second": n / seconds, "per_second_after_start": steady(out, n)}
    row |= {"network_alone_per_second": alone, "share": row["per_second"] / alone, "memory_mib": peak}
    return row | {"share_after_start": row["per_second_after_start"] / alone}


# The grid


def grid(folder: Path, words: str, cache: str) -> dict:
    result, tables = {"grid": words}, []
    for engine in ("local", "ray"):
        here = folder / engine
        here.mkdir()
        command = [sys.executable, "-m", "scripts.compare", "--name", "grid", "--engine", engine, "--cache-dir", cache]
        seconds, peak, _ = watched([*command, *words.split()], here)
        result[engine] = {"seconds": seconds, "memory_mib": peak}
        tables.append((here / "results" / "grid" / "table.md").read_bytes())
    result["ray to local"] = result["ray"]["seconds"] / result["local"]["seconds"]
    return result | {"same_table": tables[0] == tables[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "scale.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--codes", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000, help="asked together, and compared")
    parser.add_argument("--singles", type=int, default=200, help="of these one at a time")
    parser.add_argument("--student", type=os.path.abspath, help="an export, for encode")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files, or of shards")
    parser.add_argument("--pictures", type=int, help="only so many of them")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--small-grid", action="store_true")
    parser.add_argument("--cache-dir", type=os.path.abspath, help="of the grid (default: each engine's own)")
    args = parser.parse_args()
    results = read_json(args.out) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)

        def keep(part: str, result: dict) -> None:
            print(part, json.dumps(result), flush=True)
            results[part] = result | {"environment": environment()}
            write_json(args.out, results)

        if "milvus" in args.parts:
            keep("milvus", milvus(folder, args.codes, args.queries, args.singles))
        if "encode" in args.parts:
            n = shards_of(args.photos, args.pictures, shards := folder / "shards")
            for workers in args.workers:
                row = encoding(args.student, shards, n, folder / f"encode_{workers}", workers)
                keep(f"encode, {args.photos.name}, {workers} workers", row)
        if "grid" in args.parts:
            keep("grid", grid(folder, SMALL_GRID if args.small_grid else GRID, args.cache_dir or "cache"))


if __name__ == "__main__":
    main()
