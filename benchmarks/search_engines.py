"""Search engines beside each other on the same codes; adding; kills: python benchmarks/search_engines.py

    --parts engines   the index, and faiss alone: one query at a time on one thread, all exact?
    --parts batch     many queries at once on all cores
    --parts adding    pictures a second beside the network alone; a second add of what has not changed
    --parts kills     adds killed at random moments, and run again

Each engine runs in a process of its own. Sizes are options, so that a smoke run takes seconds:

    python benchmarks/search_engines.py --out /tmp/try.json --parts engines batch --millions 0.01 --queries 5 --batch 64
    python benchmarks/search_engines.py --out /tmp/try.json --parts adding kills --pictures 50 --unchanged 100 --kills 2
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT / "tests" / "search")]

from exports import write_export  # noqa: E402
from measure import anonymous_mib  # noqa: E402

from data.decode import pixels_of  # noqa: E402
from models.exported import Exported  # noqa: E402
from retrieval.codes import hamming_topk  # noqa: E402
from search import adding  # noqa: E402
from search.index import BLOCK, Index  # noqa: E402
from utils.files import read_json, write_json  # noqa: E402

BITS, K, WIDTH = 64, 100, 8
PARTS = ("engines", "batch", "adding", "kills")
WARM = 3  # queries that are not counted
FEWEST, SECONDS = 20, 60


def synthetic(n: int, seed: int) -> np.ndarray:
    """Codes uint8 [n, 8], every bit by chance."""
    return np.random.default_rng(seed).integers(0, 256, (n, WIDTH), dtype=np.uint8)


def fill(path: Path, codes: np.ndarray) -> None:
    """An index of made-up pictures with these codes: as ``Index.add`` writes it, but with paths made in SQL."""
    part = 256 * BLOCK
    card = {"bits": BITS, "role": "student", "backbone": "none", "method": "none", "model_sha256": "0" * 64}
    with Index(path, write=True) as index:
        index.set_card(card)
        for first in range(0, len(codes), part):
            ids = np.arange(first, min(first + part, len(codes))) + 1
            with index.transaction() as con:
                bounds = {"first": int(ids[0]), "last": int(ids[-1])}
                series = "WITH RECURSIVE s(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM s WHERE i < :last) "
                con.execute(
                    f"INSERT OR IGNORE INTO folders {series} "
                    "SELECT DISTINCT i / 1000, CAST(printf('/made/up/%06d', i / 1000) AS BLOB), NULL FROM s",
                    bounds,
                )
                con.execute(
                    f"INSERT INTO pictures {series} SELECT i, i / 1000, CAST(printf('%09d.jpg', i) AS BLOB), 1, 1, "
                    "CAST(printf('%032d', i) AS BLOB), i, 0 FROM s",
                    bounds,
                )
                index._write_codes(con, ids, codes[ids - 1])


# Engines: each opens what lies on the disk, and answers with (distances, positions in the order added).


class OurIndex:
    """As a user has it: hits with their paths."""

    def __init__(self, folder: Path):
        self.index = Index(folder / "index")
        self.index.count()  # codes are read when they are needed first

    def __call__(self, query):
        hits = self.index.search(query, K)
        return np.array([[h.distance for h in row] for row in hits]), np.array(
            [[h.id - 1 for h in row] for row in hits]
        )


class OurIndexIds(OurIndex):
    """Without paths: what the other engines give."""

    def __call__(self, query):
        distances, ids = self.index.nearest(query, K)
        return distances, ids - 1


class Faiss:
    def __init__(self, folder: Path):
        self.index = faiss.read_index_binary(str(folder / "faiss"))
        self.index.use_heap = False

    def __call__(self, query):
        return self.index.search(query, K)


ENGINES = {"index": OurIndex, "index, ids alone": OurIndexIds, "faiss": Faiss}


def prepare(folder: Path, n: int) -> None:
    """The same codes for every engine, and what the nearest of the queries are."""
    codes = synthetic(n, 1)
    np.save(folder / "codes.npy", codes)
    started = time.perf_counter()
    fill(folder / "index", codes)
    seconds = {"index": time.perf_counter() - started}
    index = faiss.IndexBinaryFlat(BITS)
    index.add(codes)
    faiss.write_index_binary(index, str(folder / "faiss"))
    write_json(folder / "fill.json", seconds)


def one_engine(name: str, folder: Path, queries: int) -> dict:
    """Time to open, memory and times of single queries of one engine; to be run in a process of its own.

    A slow engine is asked less often: ``FEWEST`` times at least, more while ``SECONDS`` last.
    """
    asked = synthetic(queries + WARM, 2)
    before = anonymous_mib()
    started = time.perf_counter()
    engine = ENGINES[name](folder)
    opened = time.perf_counter() - started
    milliseconds, distances, rows = [], [], []
    for query in asked:
        if len(milliseconds) >= WARM + FEWEST and sum(milliseconds) > 1000 * SECONDS:
            break
        started = time.perf_counter()
        found = engine(query[None])
        milliseconds.append(1000 * (time.perf_counter() - started))
        distances.append(np.asarray(found[0])[0].astype(np.int64))
        rows.append(np.asarray(found[1])[0].astype(np.int64))
    memory = anonymous_mib() - before
    codes = np.load(folder / "codes.npy", mmap_mode="r", allow_pickle=False)
    wanted = hamming_topk(asked[WARM : len(milliseconds)], np.asarray(codes), K)
    return {
        "open_seconds": opened,
        "queries": len(milliseconds) - WARM,
        "median_ms": float(np.median(milliseconds[WARM:])),
        "p99_ms": float(np.percentile(milliseconds[WARM:], 99)),
        "memory_mib": memory,
        "exact": bool((np.stack(distances[WARM:]) == wanted[0]).all()),
        "ties_in_order": bool((np.stack(rows[WARM:]) == wanted[1]).all()),
    }


def in_a_process(folder: Path, *words, threads: int) -> dict:
    threads = str(threads)
    environment = {**os.environ, "THREADS": threads, "OMP_NUM_THREADS": threads, "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, __file__, "--folder", folder, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def engines(folder: Path, millions: list[float], queries: int) -> dict:
    results = {}
    for number in millions:
        here = folder / f"{number:g}"
        here.mkdir()
        prepare(here, int(number * 1e6))
        rows = {name: in_a_process(here, "--only", name, "--queries", queries, threads=1) for name in ENGINES}
        alone = rows["faiss"]["median_ms"]
        for name, row in rows.items():
            row["beside_faiss"] = row["median_ms"] / alone
            print(
                f"{number:6g} M {name:17} {row['median_ms']:9.3f} ms, p99 {row['p99_ms']:9.3f}, "
                f"x {row['beside_faiss']:7.2f}, opened in {row['open_seconds']:7.3f} s, {row['memory_mib']:7.0f} MiB, "
                f"exact: {row['exact']}, ties: {row['ties_in_order']}",
                flush=True,
            )
        results[f"{number:g}"] = {"fill_seconds": read_json(here / "fill.json"), "engines": rows}
        shutil.rmtree(here)
    return results


def batch(folder: Path, millions: float, queries: int) -> dict:
    """Exact look-ups a second of many queries at once, on all cores."""
    here = folder / "batch"
    here.mkdir()
    fill(here / "index", synthetic(int(millions * 1e6), 1))
    cores = len(os.sched_getaffinity(0))
    row = in_a_process(here, "--only", "batch", "--queries", queries, threads=cores)
    print(
        f"{millions:g} M, {queries} queries at once on {cores} cores: {row['per_second']:.0f} look-ups/s, "
        f"exact: {row['exact']}"
    )
    return {"millions": millions, "queries": queries, "cores": cores, **row}


def one_batch(folder: Path, queries: int) -> dict:
    asked = synthetic(queries, 3)
    with Index(folder / "index") as index:
        index.nearest(asked[: max(8, queries // 16)], K)  # compiled
        started = time.perf_counter()
        distances, ids = index.nearest(asked, K)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        index.search(asked, K)
        with_paths = time.perf_counter() - started
        few = min(queries, 32)
        wanted = hamming_topk(asked[:few], index.codes()[1], K)
    exact = bool((distances[:few] == wanted[0]).all() and (ids[:few] - 1 == wanted[1]).all())
    return {"per_second": queries / seconds, "per_second_with_paths": queries / with_paths, "exact": exact}


# Adding


def make_pictures(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG photographs, more or less: smooth noise of a few scales, each another."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        draw = np.random.default_rng(number)
        layers = [
            Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).resize((side, side * 3 // 4))
            for size in (3, 12, 48)
        ]
        picture = Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.25)
        files.append(folder / f"{number:06d}.jpg")
        picture.save(files[-1], quality=90)
    return files


def rate(work, items, threads: int) -> float:
    """Items a second of threads that each do one at a time."""
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(work, items):
            pass
        return len(items) / (time.perf_counter() - started)


def add_all(folder: Path, args) -> dict:
    """Made-up pictures, those of ``--photos``, and many that have not changed."""
    empty = write_export(folder / "export")
    student = args.student or empty
    results = {"made up": add_pictures(folder, student, make_pictures(folder / "made", args.pictures, args.side))}
    if args.photos:
        files = sorted(args.photos.rglob("*.jpg"))[: args.pictures]
        results["photos"] = add_pictures(folder, student, files)
    many = make_small(folder / "many", args.unchanged)
    first, second = (add_by_command(folder / "unchanged", empty, many) for _ in range(2))
    print(f"{args.unchanged} unchanged: {second:.2f} s")
    return {**results, "unchanged": {"pictures": args.unchanged, "first_seconds": first, "second_seconds": second}}


def add_pictures(folder: Path, student: Path, files: list[Path]) -> dict:
    """Pictures a second from JPEG files, all included, beside the network on ready pixels."""
    here = Path(tempfile.mkdtemp(dir=folder))
    for file in files:
        (here / file.name).symlink_to(file.absolute())
    cores = len(os.sched_getaffinity(0))
    ready = [pixels_of(file) for file in files[:256]]
    ready = [ready[i % len(ready)] for i in range(len(files))]
    one_each, together = Exported(student), Exported(student, threads=cores)
    for model in (one_each, together):
        rate(model.code, ready[: 2 * cores], cores)
    started = time.process_time()
    apart = rate(one_each.code, ready, cores)
    network_cpu = 1000 * (time.process_time() - started) / len(ready)
    alone = {
        f"{cores} threads, a picture each": apart,
        f"one picture by {cores} threads": rate(together.code, ready, 1),
    }
    rates, cpu = [], []
    for turn in range(3):
        with Index(here / f"index_{turn}", write=True) as index:
            started, used = time.perf_counter(), time.process_time()
            report = adding.add(index, one_each, [here])
            rates.append(report.added / (time.perf_counter() - started))
            cpu.append(1000 * (time.process_time() - used) / report.added)
            assert report.added == len(files), report
    print(
        f"adding {np.median(rates):.1f} pictures/s, {np.median(cpu):.2f} ms of processor each; the network alone "
        f"{alone}, {network_cpu:.2f} ms"
    )
    return {
        "pictures": len(files),
        "size": list(ready[0].shape),
        "cores": cores,
        "adding_per_second": float(np.median(rates)),
        "network_alone_per_second": alone,
        "share": float(np.median(rates)) / max(alone.values()),
        "cpu_ms_a_picture": {"network": network_cpu, "adding": float(np.median(cpu))},
    }


def make_small(folder: Path, count: int) -> Path:
    """``count`` small pictures, each another."""
    folder.mkdir()
    for number in range(count):
        pixels = np.frombuffer(number.to_bytes(4, "big") * 48, np.uint8).reshape(8, 8, 3)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    return folder


def add_by_command(index: Path, student: Path, pictures: Path) -> float:
    """Seconds of a whole ``python -m search add``."""
    started = time.perf_counter()
    words = [sys.executable, "-m", "search", "add", "--index", index, "--student", student, pictures]
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - started


# Kills

# Small transactions, so that there are many moments between them.
ADD = """
import runpy, sys
from search import adding
adding.BATCH = 4
sys.argv = sys.argv[1:]
runpy.run_module("search", run_name="__main__")
"""


def contents(index: Path) -> dict:
    """Everything that an index holds, less the time that it was added."""
    with Index(index) as opened:
        ids, codes = opened.codes()
        records = opened.records(ids.tolist())
        assert opened.faults() == [], opened.faults()
        return {
            "pictures": [
                (r.id, r.path, r.digest, r.size, r.mtime_ns, code.tobytes().hex(), opened.thumbnail(r.id).hex())
                for r, code in zip(records, codes, strict=True)
            ],
            "broken": [(b.path, b.reason) for b in opened.broken()],
        }


def kills(folder: Path, count: int, seed: int, pictures: int = 120) -> dict:
    """``python -m search add`` killed by SIGKILL at random moments, some several times, then run to its end.

    After each kill all that a reader had seen before it must be there and whole; in the end the index must hold what
    one that was never killed holds, bit by bit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    student = write_export(folder / "export")
    root = folder / "pictures"
    for sub in range(4):
        make_pictures(root / str(sub), pictures // 4, 64)
        (root / str(sub) / "broken.jpg").write_bytes(b"no picture")

    def begin(index: Path) -> subprocess.Popen:
        words = ["search", "add", "--index", index, "--student", student, root]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", ADD, *map(str, words)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(index: Path) -> None:
        process = begin(index)
        said = process.communicate(timeout=300)[1].decode(errors="replace")
        assert process.returncode == 0, said

    started = time.monotonic()
    finish(folder / "undisturbed")
    seconds = time.monotonic() - started
    wanted = contents(folder / "undisturbed")
    tally = {"kills": 0, "late": 0, "at_work": 0, "lost": 0, "different": 0}
    while tally["kills"] < count:
        number = tally["kills"]
        draw = random.Random(f"{seed} {number}")
        index = folder / f"killed_{number}"
        for _ in range(min(draw.randint(1, 3), count - number)):
            process = begin(index)
            time.sleep(draw.uniform(0.3, 1) * seconds)
            seen = seen_in(index)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            now = seen_in(index)
            tally["kills"] += 1
            tally["late"] += process.returncode == 0
            tally["at_work"] += 0 < len(now) < len(wanted["pictures"])
            tally["lost"] += not seen <= now
        finish(index)
        tally["different"] += contents(index) != wanted
        for left in folder.glob(f"killed_{number}*"):
            left.unlink()
    print("kills", tally)
    return tally


def seen_in(index: Path) -> set[tuple[int, str]]:
    """(id, path) of all pictures that a reader sees; none where there is no index yet."""
    from utils.errors import UserError

    with contextlib.suppress(UserError), Index(index) as opened:
        assert opened.faults() == [], opened.faults()
        ids, _ = opened.codes()
        return {(record.id, record.path) for record in opened.records(ids.tolist())}
    return set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "results" / "benchmarks" / "search_engines.json",
        help="each part has a place of its own in it",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--millions", nargs="+", type=float, default=[1, 10, 100], help="codes")
    parser.add_argument("--queries", type=int, default=200, help="one at a time")
    parser.add_argument("--batch-millions", type=float, default=10)
    parser.add_argument("--batch", type=int, default=2048, help="queries at once")
    parser.add_argument("--student", type=Path, help="an export (default: a made-up one, of no weight)")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files, added beside made-up ones")
    parser.add_argument("--pictures", type=int, default=1000, help="that are added")
    parser.add_argument("--side", type=int, default=500, help="pixels of a made-up picture's longer side")
    parser.add_argument("--unchanged", type=int, default=20_000, help="pictures that are added twice")
    parser.add_argument("--kills", type=int, default=50, help="one to three of an index, before it is finished")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for what is made on the way (default: a temporary one)")
    parser.add_argument("--only", choices=[*ENGINES, "batch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "batch":
        return print(json.dumps(one_batch(args.folder, args.queries)))
    if args.only:
        faiss.omp_set_num_threads(1)
        return print(json.dumps(one_engine(args.only, args.folder, args.queries)))
    from utils.runs import environment  # not in the processes that are measured

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        parts = {
            "engines": lambda: engines(folder, args.millions, args.queries),
            "batch": lambda: batch(folder, min(args.batch_millions, max(args.millions)), args.batch),
            "adding": lambda: add_all(folder, args),
            "kills": lambda: kills(folder / "kills", args.kills, args.seed),
        }
        for name in args.parts:
            result = {"environment": environment(), **parts[name]()}
            write_json(args.out, {**(read_json(args.out) if args.out.exists() else {}), name: result})


if __name__ == "__main__":
    main()
