"""Measure a run on its test queries: a student by SSHP and ASHP beside its teacher, or a teacher alone.

    python evaluate.py --run runs/brcd --json runs/brcd/test.json

SSHP: the student hashes queries and database. ASHP: the student hashes queries, the teacher the database.
Prints a table, then one JSON object as its last line.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from data.dataset import HashingData
from data.features import extractor
from data.load import load_data
from data.transforms import eval_transform
from models.engines import pick_device
from models.heads import HashHead, load_head, load_teacher, rebuild_backbone
from retrieval.codes import pack
from retrieval.metrics import retrieval_report
from utils import distributed
from utils.errors import UserError, guarded
from utils.figures import draw_curves, draw_retrieved
from utils.files import write_csv, write_json, written_aside
from utils.options import check_ranges
from utils.runs import git_commit, read_args, read_environment

THUMBNAIL = 96
# What tells one row of a table from another, and the defaults that need no mention.
DEFAULTS = {
    "hashing": "cibhash",
    "kd_weight": 1.0,
    "bn": "frozen",
    "student_features": "auto",
    "head": "auto",
    "temperature": 0.3,
    "lr": 1e-3,
    "batch_size": 64,
}
BRCD_DEFAULTS = {
    "variant": "paper",
    "alpha": 0.8,
    "margin": 0.5,
    "clusters": 10,
    "mask_rule": "decided",
    "mask": True,
    "cluster": True,
    "offset": True,
    "false_negatives": True,
    "individual": True,
    "structural": True,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run",
        "--run-dir",
        type=Path,
        required=True,
        help="folder of a student's or a teacher's run (torchrun keeps --run for itself)",
    )
    parser.add_argument("--json", type=Path, help="where the results go (default: RUN/test.json)")
    parser.add_argument("--queries", default="test", help="test, or val (what model selection saw)")
    parser.add_argument("--k", type=int, help="cut-off of mAP@k (default: the data set's)")
    parser.add_argument("--dump-codes", type=Path, metavar="DIR", help="write packed codes, labels and paths as .npz")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="queries drawn with their top 10; 0: none")
    parser.add_argument("--data-dir", type=Path, help="where the images are now (default: where training found them)")
    parser.add_argument("--cache-dir", type=Path, help="default: the run's")
    parser.add_argument("--device", help="default: the run's")
    return parser.parse_args()


def run_arguments(args) -> argparse.Namespace:
    """The run's own arguments, with what this command line overrides."""
    kept = argparse.Namespace(**read_args(args.run))
    for name in ("data_dir", "cache_dir", "lists_dir"):
        value = getattr(args, name, None) or getattr(kept, name, None)
        setattr(kept, name, Path(value) if value else None)
    kept.device = args.device or kept.device
    return kept


def searched(args, images: HashingData) -> np.ndarray:
    return images.database if args.queries == "test" else images.val_database


class Hasher:
    """One network of a run: codes of any images of the data set."""

    def __init__(self, run_args, images: HashingData, backbone, device: torch.device, size: int):
        self.features = extractor(run_args, images, backbone, device, size)
        self.name, self.pretrained, self.device = backbone.name, backbone.pretrained, device

    def codes(self, head: HashHead, rows: np.ndarray) -> torch.Tensor:
        return head.to(self.device).encode(self.features.evaluation(rows))


def settings(args, run_args, images: HashingData, device: torch.device) -> tuple[dict[str, tuple], list[Hasher]]:
    """(query codes, database codes) of each search setting, and the networks that made them."""
    queries, database = getattr(images, args.queries), searched(args, images)
    is_student = hasattr(run_args, "teacher")
    teacher_folder = Path(run_args.teacher) if is_student else args.run
    teacher_head, facts = load_teacher(teacher_folder)
    if facts["data"] != images.fingerprint:
        raise UserError(f"{teacher_folder}: was trained on other images or another split than these")
    teacher_args = read_args(teacher_folder)
    teacher = Hasher(run_args, images, rebuild_backbone(facts, teacher_args["weights"]), device, teacher_args["size"])
    teacher_database = teacher.codes(teacher_head, database)
    teacher_pair = (teacher.codes(teacher_head, queries), teacher_database)
    if not is_student:
        return {"teacher": teacher_pair}, [teacher]
    sshp_head, facts = load_head(args.run / "best_sshp.pt")
    ashp_head, _ = load_head(args.run / "best_ashp.pt")
    student_backbone = rebuild_backbone(facts, run_args.student_weights)
    student = Hasher(run_args, images, student_backbone, device, run_args.student_size or run_args.size)
    return {
        "sshp": (student.codes(sshp_head, queries), student.codes(sshp_head, database)),
        "ashp": (student.codes(ashp_head, queries), teacher_database),
        "teacher": teacher_pair,
    }, [student, teacher]


def method_name(run_args, teacher_args: dict) -> str:
    """The method with everything that is not at its default, such as "brcd no-mask margin=0.2"."""
    if not hasattr(run_args, "teacher"):
        return "teacher"
    defaults = DEFAULTS | {"views": teacher_args["views"]} | (BRCD_DEFAULTS if run_args.method == "brcd" else {})
    words = [run_args.method]
    for name, default in defaults.items():
        value = getattr(run_args, name)
        if value != default:
            words.append(f"no-{name.replace('_', '-')}" if value is False else f"{name}={value}")
    return " ".join(words).replace("variant=", "")


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
    images: HashingData, report: dict, queries: np.ndarray, database: np.ndarray, count: int
) -> list[tuple]:
    def picture(index: int) -> np.ndarray:
        return eval_transform(images.source[index], THUMBNAIL, images.crop).permute(1, 2, 0).numpy()

    chosen = np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(int)
    rows = []
    for q in chosen:
        found = database[report["indices"][q]]
        right = (images.labels[found] & images.labels[queries[q]]).any(axis=1)
        rows.append((picture(queries[q]), list(zip(map(picture, found), right.tolist(), strict=True))))
    return rows


def dump_codes(
    folder: Path, pairs: dict[str, tuple], images: HashingData, queries: np.ndarray, database: np.ndarray
) -> None:
    for name, (query_codes, database_codes) in pairs.items():
        for part, codes, rows in (("query", query_codes, queries), ("database", database_codes, database)):
            with written_aside(folder / f"{name}_{part}.npz") as file:
                np.savez_compressed(
                    file,
                    codes=pack(codes),
                    bits=codes.shape[1],
                    labels=images.labels[rows],
                    paths=np.array([images.source.names[i] for i in rows]),
                )


def main() -> None:
    distributed.start()
    args = parse()
    check_ranges(args)
    if args.queries not in ("test", "val"):
        raise UserError(f"--queries {args.queries}: it is test or val")
    run_args = run_arguments(args)
    device = pick_device(run_args.device)
    images = load_data(run_args)
    teacher_args = read_args(run_args.teacher) if hasattr(run_args, "teacher") else vars(run_args)
    pairs, hashers = settings(args, run_args, images, device)
    queries, database = getattr(images, args.queries), searched(args, images)
    k = args.k or images.k
    reports = {
        name: retrieval_report(*codes, images.labels[queries], images.labels[database], k)
        for name, codes in pairs.items()
    }
    if not distributed.is_first():
        return

    target = args.json or args.run / f"{args.queries}.json"
    draw_curves(reports, target.with_suffix(".png"), f"{run_args.dataset}, {args.queries} queries")
    if args.pictures > 0:
        first = next(iter(reports))
        draw_retrieved(
            retrieved_rows(images, reports[first], queries, database, args.pictures),
            target.with_name(f"{target.stem}_retrieved.png"),
            f"{first} top 10, {run_args.dataset}",
        )
    if args.dump_codes:
        dump_codes(args.dump_codes, pairs, images, queries, database)
    with written_aside(target.with_suffix(".npz")) as file:  # for paired tests between runs
        np.savez_compressed(file, **{name: report.pop("ap") for name, report in reports.items()})
    for report in reports.values():
        report["precision_curve"] = [round(float(p), 6) for p in report.pop("curve")]
        del report["indices"]
    trained = read_environment(args.run)
    taught = read_environment(Path(run_args.teacher)) if hasattr(run_args, "teacher") else trained
    result = {
        "run": str(args.run),
        "dataset": run_args.dataset,
        "queries": args.queries,
        "n_queries": len(queries),
        "n_database": len(database),
        "method": method_name(run_args, teacher_args),
        "seed": run_args.seed,
        "teacher_seed": teacher_args["seed"],
        "teacher_hashing": teacher_args["hashing"],
        "bits": next(iter(pairs.values()))[0].shape[1],
        "teacher_backbone": hashers[-1].name,
        "student_backbone": hashers[0].name,
        "student_size": getattr(run_args, "student_size", None),
        "engine": hashers[0].features.engine_name,
        "precision": str(hashers[0].features.precision),
        "multi_label": bool((images.labels.sum(axis=1) > 1).any()),
        "pretrained": all(h.pretrained for h in hashers),
        "commit": trained["commit"],
        "command": trained["command"],
        "teacher_commit": taught["commit"],
        "teacher_command": taught["command"],
        "evaluated_at": git_commit(),
        "definition": "AP@k = sum of precision(r) * rel(r) over ranks r <= k, over D; map keys are ties/D, D = "
        "relevant retrieved, min(k, R) or R (total); ties stable in database order, or expected over random orders; "
        "relevant = at least one label shared",
        **reports,
    }
    write_json(target, result)
    write_csv(
        target.with_suffix(".csv"),
        [
            {
                "setting": name,
                "k": r["k"],
                **r["map"],
                "map_all": r["map_all"],
                "precision_radius_2": r["precision_radius_2"],
                "ndcg": r["ndcg"],
                **{f"precision@{n}": v for n, v in r["precision_at"].items()},
            }
            for name, r in reports.items()
        ],
    )
    print(table(reports))
    if not result["pretrained"]:
        print("note: random backbone weights; these numbers test the code and are no result")
    short = {
        name: {key: r[key] for key in ("k", "map", "map_all", "precision_at", "precision_radius_2", "ndcg")}
        for name, r in reports.items()
    }
    print(json.dumps({**result, **short}))


if __name__ == "__main__":
    guarded(main)
