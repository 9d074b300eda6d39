"""Does the choice without labels agree with the choice by labels? python benchmarks/criterion.py --dataset cifar10

Trains every method and looks at each epoch twice: by labels and by what the teacher's features find (what photographs
without labels are judged by). Prints rank correlations over methods and epochs, and what choosing without labels costs.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import distill  # noqa: E402
import train_teacher  # noqa: E402
from data.dataset import HashingData  # noqa: E402
from data.photos import NEIGHBOURS, QUERIES  # noqa: E402
from scripts.compare import slug  # noqa: E402
from utils.files import read_csv, write_csv, write_json  # noqa: E402
from utils.runs import environment  # noqa: E402
from utils.seeds import seed_of  # noqa: E402

METHODS = ("none", "rkd", "pkt", "sp", "kl", "packd", "brcd", "brcd --no-mask")
TEACHER, STUDENT = "efficientnet_lite2", "efficientnet_lite0"
SETTINGS = ("sshp", "ashp")


def without_labels(images: HashingData) -> HashingData:
    """The same images as photographs have it: no labels, as many validation queries and neighbours."""
    draw = np.random.RandomState(seed_of("criterion") % 2**32)
    val = np.sort(draw.permutation(images.val)[:QUERIES])
    return replace(images, labels=np.zeros((len(images.source), 0), np.uint8), val=val, k=NEIGHBOURS)


def looked_at_twice(validation, rows: list[dict]):
    """distill's or train_teacher's ``validation`` that also keeps both measures of each epoch in ``rows``."""

    def both(*arguments):
        images = next(a for a in arguments if isinstance(a, HashingData))
        blind = validation(*(without_labels(images) if a is images else a for a in arguments))
        labelled = validation(*arguments)

        def validate() -> dict[str, float]:
            now, seen = labelled(), blind()
            rows.append(
                {f"{name} labels": value for name, value in now.items()}
                | {f"{name} features": seen[name] for name in now}
            )
            return now

        return validate

    return both


def train(command, words: list, run: Path) -> list[dict]:
    """Both measures of each epoch; a run that is there already is read."""
    kept = run.with_suffix(".csv")
    if not kept.exists():
        rows, validation = [], command.validation
        command.validation, sys.argv = (
            looked_at_twice(validation, rows),
            [command.__name__, *map(str, words), "--run-dir", str(run)],
        )
        try:
            command.main()
        finally:
            command.validation = validation
        write_csv(kept, rows)
    return [{name: float(value) for name, value in row.items()} for row in read_csv(kept)]


def agreement(table: pd.DataFrame, setting: str) -> dict[str, float]:
    labels, features = table[f"{setting} labels"], table[f"{setting} features"]
    last = table.groupby("method").tail(1)
    own = [spearmanr(g[f"{setting} labels"], g[f"{setting} features"])[0] for _, g in table.groupby("method")]
    chosen = table.loc[table.groupby("method")[f"{setting} features"].idxmax(), ["method", f"{setting} labels"]]
    best = table.groupby("method")[f"{setting} labels"].max()
    lost = best[chosen["method"]].to_numpy() - chosen[f"{setting} labels"].to_numpy()
    return {
        "spearman, all": float(spearmanr(labels, features)[0]),
        "kendall, all": float(kendalltau(labels, features)[0]),
        "spearman, methods at the end": float(spearmanr(last[f"{setting} labels"], last[f"{setting} features"])[0]),
        "spearman, epochs, median method": float(np.nanmedian(own)),
        "lost by choosing an epoch, mean": float(lost.mean()),
        "lost by choosing an epoch, most": float(lost.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--flags", default="", help='for every run, such as "--size 128 --precision bfloat16"')
    parser.add_argument("--runs", type=Path, help="default: runs/criterion_DATASET")
    parser.add_argument("--out", type=Path, help="default: results/benchmarks/criterion_DATASET.json")
    args = parser.parse_args()
    made_by = environment()  # before the command lines of its runs take this one's place
    runs = args.runs or Path("runs") / f"criterion_{args.dataset}"
    common = ["--dataset", args.dataset, "--views", args.views, "--cache-dir", args.cache_dir, "--resume"]
    common += ["--data-dir", args.data_dir] if args.data_dir else []
    common += ["--validate-every", 1, "--patience", 10_000, *args.flags.split()]
    words = [*common, "--backbone", TEACHER, "--epochs", 60]
    teacher = pd.DataFrame(train(train_teacher, words, runs / "teacher")).assign(method="teacher")
    students = []
    for method in METHODS:
        name, *flags = method.split()
        words = [*common, "--teacher", runs / "teacher", "--student", STUDENT, "--epochs", args.epochs]
        rows = train(distill, [*words, "--method", name, *flags], runs / slug(method))
        students.append(pd.DataFrame(rows).assign(method=method))
    table = pd.concat(students, ignore_index=True)
    found = {"teacher": agreement(teacher, "map"), **{setting: agreement(table, setting) for setting in SETTINGS}}
    print(
        f"\n{args.dataset}: {len(METHODS)} methods, {args.epochs} epochs each\n{'':34}"
        + "".join(f"{s:>10}" for s in found)
    )
    for key in found["sshp"]:
        print(f"{key:34}" + "".join(f"{one[key]:10.4f}" for one in found.values()))
    last = table.groupby("method", sort=False).tail(1).set_index("method").round(4)
    print(f"\nat the end\n{last.to_string()}")
    out = args.out or ROOT / "results" / "benchmarks" / f"criterion_{args.dataset}.json"
    write_json(out, {"environment": made_by, "methods": METHODS, "agreement": found, "end": last.to_dict("index")})


if __name__ == "__main__":
    main()
