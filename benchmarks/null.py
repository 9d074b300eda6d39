"""What the test of the tables does where nothing differs, and what it sees of a difference: python benchmarks/null.py

Two methods with the same mAP are measured over and over; differences have a part of the training seed and a part of
each query. Prints how often the paired t-test over seeds, alone and corrected by Holm, calls one of them better.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import ttest_1samp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from retrieval.significance import LEVEL, holm  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

TRIES, QUERIES, QUERY_EFFECT = 20_000, 1000, 0.1  # the latter of one query's AP
COMPARISONS = 18  # nine methods in two settings
SEEDS, SEED_EFFECTS, EFFECT = (3, 5, 8), (0.0, 0.002, 0.004, 0.006, 0.008, 0.01), 0.005


def differences(draw: np.random.Generator, shape: tuple[int, ...], seed_effect: float) -> np.ndarray:
    """mAP differences of null pairs; the mean over queries of independent parts is drawn as such."""
    return seed_effect * draw.standard_normal(shape) + QUERY_EFFECT / np.sqrt(QUERIES) * draw.standard_normal(shape)


def rates(seeds: int, seed_effect: float) -> dict[str, float]:
    draw = np.random.default_rng(0)
    null = differences(draw, (TRIES, seeds), seed_effect)
    families = differences(draw, (TRIES // 10, COMPARISONS, seeds), seed_effect)
    p = ttest_1samp(families, 0, axis=2).pvalue
    return {
        "rejected": float((ttest_1samp(null, 0, axis=1).pvalue < LEVEL).mean()),
        "any of a table, corrected": float(np.mean([holm(row).min() < LEVEL for row in p])),
        f"power for {EFFECT}": float((ttest_1samp(null + EFFECT, 0, axis=1).pvalue < LEVEL).mean()),
        f"power for {EFFECT}, first step of Holm": float(
            (ttest_1samp(null + EFFECT, 0, axis=1).pvalue < LEVEL / COMPARISONS).mean()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "null.json")
    args = parser.parse_args()
    found = [{"seeds": n, "seed_effect": s, **rates(n, s)} for n in SEEDS for s in SEED_EFFECTS]
    print("".join(f"{name:>{max(8, len(name) + 2)}}" for name in found[0]))
    for row in found:
        print("".join(f"{value:>{max(8, len(name) + 2)}.4g}" for name, value in row.items()))
    facts = {"tries": TRIES, "queries": QUERIES, "query_effect": QUERY_EFFECT, "comparisons": COMPARISONS}
    write_json(args.out, {"environment": environment(), **facts, "rates": found})


if __name__ == "__main__":
    main()
