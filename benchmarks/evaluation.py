"""Evaluation side by side with the released way, on the same cores in one run: python benchmarks/evaluation.py

The released way is a numpy dot, an argsort and a mean a query. Also: memory, and a million codes.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

from measure import peak_gib  # noqa: E402

from retrieval.codes import hamming_topk, pack  # noqa: E402
from retrieval.metrics import mean_average_precision, retrieval_report  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

BITS, K, CLASSES = 64, 1000, 10


def codes_of(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [n, 64] scattered around ten class centres, and their classes [n]."""
    draw = np.random.RandomState(seed)
    centres = np.random.RandomState(0).choice([-1, 1], (CLASSES, BITS))
    classes = draw.randint(0, CLASSES, n)
    flips = draw.randint(0, 10, (n, BITS), dtype=np.int8) < 3
    codes = centres.astype(np.int8)[classes]
    np.negative(codes, out=codes, where=flips)
    return codes, classes


def released_way(query, database, q_classes, d_classes, k: int) -> float:
    """mAP@k a query at a time: dot, argsort, mean over the relevant ranks."""
    database = database.astype(np.float32)
    total = 0.0
    for code, label in zip(query.astype(np.float32), q_classes, strict=True):
        order = np.argsort(0.5 * (BITS - code @ database.T), kind="stable")[:k]
        hits = np.flatnonzero(d_classes[order] == label) + 1
        total += np.mean(np.arange(1, len(hits) + 1) / hits) if len(hits) else 0.0
    return total / len(query)


def best_of(function, times: int) -> tuple[float, object]:
    seconds, value = [], None
    for _ in range(times):
        start = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), value


def peak_of(what: str) -> tuple[float, float]:
    """(seconds, peak GiB of the whole process) of this file's ``--only`` part, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--only", what], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def only(what: str) -> None:
    hamming_topk(pack(codes_of(8, 1)[0]), pack(codes_of(8, 2)[0]), 4)
    retrieval_report(*(codes_of(8, s)[0] for s in (1, 2)), *(codes_of(8, s)[1] for s in (1, 2)), 4)  # compiled before
    (query, q), (database, d) = (
        (codes_of(5000, 1), codes_of(50_000, 2)) if what == "report" else (codes_of(1000, 1), codes_of(10**6, 2))
    )
    start = time.perf_counter()
    retrieval_report(query, database, q, d, K)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak_gib()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "evaluation.json")
    parser.add_argument("--only", choices=("report", "million"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return only(args.only)
    (query, q), (database, d) = codes_of(5000, 1), codes_of(50_000, 2)
    mean_average_precision(query[:8], database, q[:8], d, K, "total")  # compiled and warm
    slow, known = best_of(lambda: released_way(query, database, q, d, K), 1)
    rows = {
        "mAP@1000, stable ties": best_of(lambda: mean_average_precision(query, database, q, d, K), 3),
        "mAP@1000, expected over ties": best_of(
            lambda: mean_average_precision(query, database, q, d, K, ties="expected"), 3
        ),
        "mAP@all, expected over ties": best_of(
            lambda: mean_average_precision(query, database, q, d, len(database), "total", "expected"), 3
        ),
        "full report": best_of(lambda: retrieval_report(query, database, q, d, K)["map"]["stable/retrieved"], 3),
    }
    assert abs(rows["mAP@1000, stable ties"][1] - known) < 1e-9, (rows, known)
    print(f"5,000 queries, 50,000 codes of {BITS} bits\n{'':32} {'seconds':>8} {'ratio':>6}")
    print(f"{'released way, mAP@1000':32} {slow:8.2f} {1:6.1f}")
    for name, (seconds, _) in rows.items():
        print(f"{name:32} {seconds:8.2f} {slow / seconds:6.1f}")
    report, million = peak_of("report"), peak_of("million")
    print(f"full report: the whole process, imports and codes included, peaks at {report[1]:.2f} GiB")
    print(f"1,000 queries, 1,000,000 codes, full report: {million[0]:.2f} s, {million[1]:.2f} GiB")
    write_json(
        args.out,
        {
            "environment": environment(),
            "released_seconds": slow,
            "map": known,
            **{name: {"seconds": s, "ratio": slow / s, "value": v} for name, (s, v) in rows.items()},
            "report_peak_gib": report[1],
            "million_seconds": million[0],
            "million_peak_gib": million[1],
        },
    )


if __name__ == "__main__":
    main()
