"""Measure a run on its test queries: a student by SSHP and ASHP beside its teacher, or a teacher alone.

    python evaluate.py --run runs/brcd --json runs/brcd/test.json
    python evaluate.py --run runs/brcd --dataset folder --data-dir OTHER     # the same heads on other images

SSHP: the student hashes queries and database. ASHP: the student hashes queries, the teacher the database.
Prints a table, then one JSON object as its last line.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from data.dataset import NO_LABELS, HashingData
from data.load import load_data
from data.transforms import EVAL_VERSION, eval_transform
from losses.methods import METHODS
from models.trained import Trained, read_run
from retrieval.alignment import agreement, match_bits
from retrieval.codes import pack
from retrieval.hasher import Hasher, parse_over_run, run_options
from retrieval.metrics import retrieval_report
from retrieval.relevance import relevance
from utils import distributed
from utils.errors import UserError, guarded
from utils.figures import draw_curves, draw_retrieved
from utils.files import write_csv, write_json, written_aside
from utils.options import Parser, one_of, whole
from utils.runs import DEFAULTS, git_commit, read_defaults, read_environment

THUMBNAIL = 96
QUERIES = ("test", "val")
DEFINITION = (
    "AP@k = sum of precision(r) * rel(r) over ranks r <= k, over D; map keys are ties/D, D = relevant retrieved, "
    "min(k, R) or R (total); ties stable in database order, or expected over random orders; relevant = at least one "
    "label shared"
)
RUN_FILES = {"args", "defaults", "environment", "log", "summary", "clusters", "sample", "train_codes"}
RUN_FILES |= {"cluster_numbers", "redundancy"}
SUMMARY = ("k", "map", "map_all", "precision_at", "precision_radius_2", "ndcg")  # of a report, in the last line printed


def parse() -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--run",
        "--run-dir",
        type=Path,
        required=True,
        help="folder of a student's or a teacher's run (torchrun keeps --run for itself)",
    )
    parser.add_argument("--json", type=Path, help="where the results go (default: RUN/test.json)")
    parser.add_argument("--queries", type=one_of(QUERIES), default="test", help="test, or val (what selection saw)")
    parser.add_argument("--k", type=whole(1), help="cut-off of mAP@k (default: the data set's)")
    parser.add_argument("--dump-codes", type=Path, metavar="DIR", help="write packed codes, labels and paths as .npz")
    parser.add_argument("--pictures", type=whole(0), default=8, metavar="N", help="queries drawn with their top 10")
    return parse_over_run(parser)


def check_target(target: Path) -> None:
    """Raises UserError where a result, or what is written beside it, would replace a file of a run."""
    if target.is_dir() or target.suffix != ".json":
        raise UserError(f"--json {target}: it takes a file that ends in .json")
    if target.stem in RUN_FILES and (target.parent / "args.yaml").exists():
        raise UserError(f"--json {target}: would replace files of the run in {target.parent}; choose another name")


def named_options(run: Trained) -> dict:
    """The options that name a run's row in a table: those that are not at their defaults."""
    known = {name: (run.args.get(name, default), default) for name, default in read_defaults(run.folder).items()}
    odd = [name for name, (value, default) in known.items() if not could_be(value, default)]
    if run.teacher and run.args["method"] not in METHODS:
        odd.append("method")
    if odd:
        files = f"{run.folder}/args.yaml or {run.folder}/{DEFAULTS}"
        raise UserError(f"{files}: damaged, no usable {', '.join(odd)}; train that run again")
    return {name: value for name, (value, default) in known.items() if value != default}


def could_be(value: object, default: object) -> bool:
    """Whether an option could have a value, by the kind of its default; a number of clusters may be "auto"."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number or (isinstance(default, int) and value == "auto")
    return isinstance(value, str) if isinstance(default, str) else isinstance(value, int | float | str | None)


Pair = tuple[torch.Tensor, torch.Tensor]  # the codes that ask and those that are searched, [q, b] and [n, b]


def searches(hashers: list[Hasher], queries: np.ndarray, database: np.ndarray, train: np.ndarray) -> dict[str, Pair]:
    """By setting; ``hashers``: the student's and its teacher's, or the teacher's alone.

    "matched": as ASHP, by the bits of SSHP, which were permuted and turned to be most like the teacher's on the
    training images.
    """
    teacher, *student = reversed(hashers)
    taught = teacher.codes("map", queries), teacher.codes("map", database)
    if not student:
        return {"teacher": taught}
    codes = student[0].codes
    order, sign = match_bits(codes("sshp", train), teacher.codes("map", train))
    own = codes("sshp", queries), codes("sshp", database)
    return {
        "sshp": own,
        "ashp": (codes("ashp", queries), taught[1]),
        "matched": (own[0][:, order] * torch.from_numpy(sign), taught[1]),
        "teacher": taught,
    }


def rows_of(images: HashingData, queries: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images that ask, and of those that are searched."""
    return getattr(images, queries), images.database if queries == "test" else images.val_database


def describe(args: argparse.Namespace, run: Trained, hashers: list[Hasher], images: HashingData) -> dict:
    """What was measured: the keys of a result beside its reports."""
    teacher = run.teacher or run
    trained, taught = read_environment(run.folder), read_environment(teacher.folder)
    queries, database = rows_of(images, args.queries)
    # Names rows of their own: runs that learnt from different images are never averaged.
    elsewhere = {} if run.facts["data"] == images.fingerprint else {"trained_on": run.facts["data"][:12]}
    return {
        "run": str(args.run),
        "dataset": images.title,
        "data": images.fingerprint,
        "queries": args.queries,
        "n_queries": len(queries),
        "n_database": len(database),
        "method": run.args["method"] if run.teacher else "teacher",
        "options": elsewhere | named_options(run) if run.teacher else {},
        "seed": run.args["seed"],
        "teacher_seed": teacher.args["seed"],
        "teacher_hashing": teacher.args["hashing"],
        "teacher_options": elsewhere | named_options(teacher),
        "bits": run.bits,
        "teacher_backbone": hashers[-1].backbone.name,
        "student_backbone": hashers[0].backbone.name,
        "student_size": run.args.get("student_size"),
        "engine": hashers[0].features.engine_name,
        "precision": str(hashers[0].features.precision),
        "relevance": "labels" if images.labelled else "features",
        "multi_label": bool((images.labels.sum(axis=1) > 1).any()),
        "pretrained": all(h.backbone.pretrained for h in hashers),
        "commit": trained["commit"],
        "command": trained["command"],
        "teacher_commit": taught["commit"],
        "teacher_command": taught["command"],
        "evaluation_commit": git_commit(),
        "definition": DEFINITION
        if images.labelled
        else f"{DEFINITION.rpartition('; ')[0]}; {NO_LABELS.format(k=images.k)}",
    }


def table(reports: dict[str, dict]) -> str:
    k = next(iter(reports.values()))["k"]
    lines = [f"{'setting':9} {f'mAP@{k}':>9} {'expected':>9} {'mAP@all':>9} {'P@100':>9} {'P(r<=2)':>9} {'NDCG':>9}"]
    for name, r in reports.items():
        p100 = r["precision_at"].get("100", float("nan"))
        lines.append(
            f"{name:9} {r['map']['stable/retrieved']:9.4f} {r['map']['expected/retrieved']:9.4f} "
            f"{r['map_all']:9.4f} {p100:9.4f} {r['precision_radius_2']:9.4f} {r['ndcg']:9.4f}"
        )
    return "\n".join(lines)


def retrieved_rows(
    args: argparse.Namespace, images: HashingData, report: dict, labels: tuple[np.ndarray, np.ndarray]
) -> list[tuple]:
    """Some queries, evenly spread, each with its first ten and whether they are relevant; see ``draw_retrieved``."""
    queries, database = rows_of(images, args.queries)

    def picture(index: int) -> np.ndarray:
        return eval_transform(images.source[index], THUMBNAIL, images.crop).permute(1, 2, 0).numpy()

    rows = []
    for q in np.linspace(0, len(queries) - 1, min(args.pictures, len(queries))).astype(int):
        nearest = report["indices"][q]
        relevant = (labels[1][nearest] & labels[0][q]).any(axis=1)
        rows.append((picture(queries[q]), list(zip(map(picture, database[nearest]), relevant.tolist(), strict=True))))
    return rows


def dump_codes(args: argparse.Namespace, pairs: dict[str, Pair], images: HashingData) -> None:
    for name, pair in pairs.items():
        for part, codes, rows in zip(("query", "database"), pair, rows_of(images, args.queries), strict=True):
            with written_aside(args.dump_codes / f"{name}_{part}.npz") as file:
                np.savez_compressed(
                    file,
                    codes=pack(codes),
                    bits=codes.shape[1],
                    labels=images.labels[rows],
                    paths=np.array([images.source.names[i] for i in rows]),
                )


def draw(args: argparse.Namespace, target: Path, images: HashingData, reports: dict[str, dict], labels: tuple) -> None:
    draw_curves(reports, target.with_suffix(".png"), f"{images.title}, {args.queries} queries")
    if args.pictures:
        first = next(iter(reports))
        file = target.with_name(f"{target.stem}_retrieved.png")
        draw_retrieved(retrieved_rows(args, images, reports[first], labels), file, f"{first} top 10, {images.title}")


def write(target: Path, facts: dict, reports: dict[str, dict]) -> dict:
    """``target``, and beside it the metrics as .csv and every query's AP as .npz, for paired tests between runs."""
    with written_aside(target.with_suffix(".npz")) as file:
        np.savez_compressed(file, **{name: report["ap"] for name, report in reports.items()})
    left_out = {"ap", "indices", "curve"}
    if facts["relevance"] != "labels":  # its labels are the queries themselves
        left_out |= {"per_label_precision"}
    plain = {
        name: {key: value for key, value in report.items() if key not in left_out}
        | {"precision_curve": [round(float(p), 6) for p in report["curve"]]}
        for name, report in reports.items()
    }
    result = {**facts, **plain}
    write_json(target, result)
    rows = [
        {
            "setting": name,
            "k": r["k"],
            **r["map"],
            "map_all": r["map_all"],
            "precision_radius_2": r["precision_radius_2"],
            "ndcg": r["ndcg"],
            **{f"precision@{n}": v for n, v in r["precision_at"].items()},
        }
        for name, r in plain.items()
    ]
    write_csv(target.with_suffix(".csv"), rows)
    return result


def main() -> None:
    distributed.start()
    args = parse()
    target = args.json or args.run / f"{args.queries}.json"
    check_target(target)
    run = read_run(args.run)
    options = run_options(args, run)
    images = load_data(options, None if args.dataset else (run.teacher or run).folder)
    runs = [run, run.teacher] if run.teacher else [run]
    for one in runs:
        one.check_data(one.facts["data"] if args.dataset else images.fingerprint, EVAL_VERSION)
    hashers = [Hasher(one, options, images) for one in runs]
    queries, database = rows_of(images, args.queries)
    pairs = searches(hashers, queries, database, images.train)
    labels = relevance(images, queries, database, hashers[-1].features)
    reports = {name: retrieval_report(*pair, *labels, args.k or images.k) for name, pair in pairs.items()}
    if not distributed.is_first():
        return

    draw(args, target, images, reports, labels)
    if args.dump_codes:
        dump_codes(args, pairs, images)
    facts = describe(args, run, hashers, images)
    if run.teacher:
        facts |= agreement(pairs["ashp"][0], pairs["teacher"][0])
    result = write(target, facts, reports)
    print(table(reports))
    if not result["pretrained"]:
        print("note: random backbone weights; these numbers test the code and are no result")
    print(json.dumps({**result, **{name: {key: reports[name][key] for key in SUMMARY} for name in reports}}))


if __name__ == "__main__":
    guarded(main)
