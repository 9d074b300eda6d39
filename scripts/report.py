"""Tables and figures out of many runs: ``python -m scripts.report runs/*/test.json --out DIR``.

Runs that differ in nothing but their seed share a row: mean ± standard deviation (over n - 1). Writes rows.csv (one row
a run and setting), table.md, table.tex, map.png, precision_recall.png, and where they apply bits.png (by code length),
sensitivity.png (BRCD's hyperparameters) and significance.csv (each method against BRCD by a paired bootstrap). What the
rows come from is in runs.jsonl (arguments, environment, summary) and logs.csv (every epoch).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils import figures
from utils.errors import UserError, guarded
from utils.files import written_aside
from utils.runs import read_args, read_environment

KEYS = ["dataset", "teacher", "student", "method", "bits", "setting"]
FIRST = ["teacher", "none"]  # at the top of a table; the rest follows by name, BRCD last
SETTINGS = ["sshp", "ashp"]
SWEPT = {"alpha": 0.8, "margin": 0.5, "clusters": 10}  # BRCD's defaults, for the sensitivity figure
SWEPT_ENDS = {"margin": ("brcd no-mask", 0.0), "alpha": ("brcd no-structural", 1.0)}  # the same by another name
RESAMPLES = 5000


def read_rows(files: list[Path]) -> pd.DataFrame:
    """One row for each run and search setting; the teacher of several students appears once.

    Raises:
        UserError: a file is missing or not what evaluate.py wrote, or two different runs would share a row and a seed.
    """
    rows = []
    for file in dict.fromkeys(files):
        try:
            result = json.loads(Path(file).read_text())
            rows += [_row(result, setting, file) for setting in (*SETTINGS, "teacher") if setting in result]
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; evaluate.py --run RUN writes RUN/test.json") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not a result of evaluate.py ({error!r}); evaluate that run again") from None
    if not rows:
        raise UserError("no results in the files given")
    found = pd.DataFrame(rows)
    key = [*KEYS, "seed"]
    found = found[~(found.duplicated(key) & (found["method"].eq("teacher") | found.duplicated([*key, "map"])))]
    for _, same in found[found.duplicated(key, keep=False)].groupby(key):
        run = same.iloc[0]
        raise UserError(
            f"{' and '.join(same['file'])}: both are seed {run['seed']} of '{run['method']}' at {run['bits']} bits; "
            "name one of them"
        )
    return found.sort_values([*KEYS, "seed"]).reset_index(drop=True)


def _row(result: dict, setting: str, file: Path) -> dict:
    report, alone = result[setting], setting == "teacher"
    hashing, size = result["teacher_hashing"], result.get("student_size")
    return {
        "dataset": result["dataset"],
        "teacher": result["teacher_backbone"] + ("" if hashing == "cibhash" else f" ({hashing})"),
        "student": "" if alone else result["student_backbone"] + (f" at {size} px" if size else ""),
        "method": "teacher" if alone else result["method"],
        "bits": result["bits"],
        "setting": "sshp" if alone else setting,
        "seed": result["teacher_seed"] if alone else result["seed"],
        "queries": result["queries"],
        "k": report["k"],
        "map": report["map"]["stable/retrieved"],
        **{f"map {key}": value for key, value in report["map"].items()},
        "map_all": report["map_all"],
        "ndcg": report["ndcg"],
        "precision_radius_2": report["precision_radius_2"],
        **{f"p@{rank}": value for rank, value in report["precision_at"].items()},
        "engine": result["engine"],
        "precision": result["precision"],
        "pretrained": result["pretrained"],
        "multi_label": result["multi_label"],
        "commit": result["teacher_commit" if alone else "commit"],
        "command": result["teacher_command" if alone else "command"],
        "run": result["run"],
        "file": str(file),
    }


def order(method: str) -> tuple:
    return (FIRST.index(method), "") if method in FIRST else (len(FIRST) + method.startswith("brcd"), method)


def table_of(rows: pd.DataFrame, metrics: list[str]) -> tuple[list[str], list[list[str]]]:
    """(header, lines of text) for one teacher and student: a line a method, a column a code length, setting and metric.

    The best student of each column is set off by asterisks.
    """
    stats = rows.groupby(["method", "bits", "setting"])[metrics].agg(["mean", "std", "count"])
    columns = [
        (b, s, m) for b in sorted(rows["bits"].unique()) for m in metrics for s in SETTINGS if s in set(rows["setting"])
    ]
    header = [
        "method",
        *(f"{b} bits {s.upper()} {m.replace('map', 'mAP').replace('ndcg', 'NDCG')}" for b, s, m in columns),
        "seeds",
    ]
    methods = sorted(rows["method"].unique(), key=order)
    means = {(name, *c): stats[c[2], "mean"].get((name, *c[:2]), float("nan")) for name in methods for c in columns}
    best = {
        c: max((means[n, *c] for n in methods if n != "teacher" and means[n, *c] == means[n, *c]), default=None)
        for c in columns
    }
    lines = []
    for name in methods:
        line = [name]
        for b, s, m in columns:
            mean, std = means[name, b, s, m], stats[m, "std"].get((name, b, s), float("nan"))
            text = "–" if mean != mean else f"{mean:.4f}" + ("" if std != std else f" ± {std:.4f}")
            line.append(f"**{text}**" if name != "teacher" and mean == best[b, s, m] else text)
        lines.append([*line, str(int(stats.loc[name][metrics[0], "count"].max()))])
    return header, lines


def markdown(header: list[str], lines: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    table = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in [header, *lines]
    ]
    table.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(table)


def latex(header: list[str], lines: list[list[str]]) -> str:
    def escape(text: str) -> str:
        bold = text.startswith("**")
        text = text.strip("*").replace("_", r"\_").replace(" ± ", r" $\pm$ ").replace("–", "--")
        return rf"\textbf{{{text}}}" if bold else text

    body = [" & ".join(map(escape, row)) + r" \\" for row in [header, *lines]]
    form = "l" + "r" * (len(header) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def paired_bootstrap(difference: np.ndarray, seed: int = 0) -> np.ndarray:
    """mean, low, high, p of paired AP differences [..., seeds, queries]: 95 % interval and two-sided p, [..., 4].

    Seeds and queries are both drawn again with replacement, so the interval covers another training and other queries.
    """
    draw = np.random.default_rng(seed)
    *pairs, n_seeds, n_queries = difference.shape
    flat = difference.reshape(-1, n_queries).T  # [queries, pairs * seeds]
    by_seed = draw.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES) / n_seeds  # [R, seeds]
    means = []
    for part in np.array_split(by_seed, max(1, RESAMPLES * n_queries // 10**7)):
        by_query = draw.multinomial(n_queries, np.full(n_queries, 1 / n_queries), len(part)) / n_queries
        means.append(np.einsum("rps,rs->rp", (by_query @ flat).reshape(len(part), -1, n_seeds), part))
    means = np.concatenate(means)  # [R, pairs]
    beyond = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    p = np.minimum(1, 2 * (beyond + 1) / (RESAMPLES + 1))  # never 0: it is an estimate
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    mean = difference.mean(axis=(-2, -1)).ravel()
    return np.stack([mean, low, high, p], axis=-1).reshape(*pairs, 4)


def significance(rows: pd.DataFrame) -> pd.DataFrame:
    """Every method less BRCD, where both have the same seeds and their per-query AP was kept."""

    def average_precisions(run: pd.DataFrame, setting: str) -> dict[int, np.ndarray]:
        found = {}
        for _, r in run.iterrows():
            file = Path(r["file"]).with_suffix(".npz")
            if file.exists():
                with np.load(file, allow_pickle=False) as kept:
                    found[r["seed"]] = kept[setting]
        return found

    lines, differences = [], []
    for key, group in rows[rows["method"] != "teacher"].groupby(["dataset", "teacher", "student", "bits", "setting"]):
        ours = average_precisions(group[group["method"] == "brcd"], key[-1])
        for name in sorted(set(group["method"]) - {"brcd"}, key=order):
            theirs = average_precisions(group[group["method"] == name], key[-1])
            seeds = sorted(ours.keys() & theirs.keys())
            if seeds:
                differences.append(np.stack([theirs[s] - ours[s] for s in seeds]))
                facts = dict(zip([*KEYS[:3], "bits", "setting"], key, strict=True))
                lines.append({**facts, "method": name, "seeds": len(seeds)})
    for shape in {d.shape for d in differences}:  # pairs that share their draws are resampled at once
        same = [i for i, d in enumerate(differences) if d.shape == shape]
        for i, found in zip(same, paired_bootstrap(np.stack([differences[i] for i in same])), strict=True):
            lines[i] |= dict(zip(["less brcd", "low", "high", "p"], found, strict=True))
    return pd.DataFrame(lines)


def swept(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each of BRCD's hyperparameters: rows with its value, BRCD's own row at the default among them."""
    found = {}
    for name, default in SWEPT.items():
        explicit = rows[rows["method"].str.fullmatch(rf"brcd {name}=\S+")]
        if len(explicit):
            values = explicit["method"].str.extract(r"=(\S+)")[0].astype(float)
            ends = [("brcd", default), *([SWEPT_ENDS[name]] if name in SWEPT_ENDS else [])]
            others = (rows[rows["method"] == method].assign(value=value) for method, value in ends)
            found[name] = pd.concat([explicit.assign(value=values), *others])
    return found


def write_records(rows: pd.DataFrame, out: Path) -> None:
    """runs.jsonl, a line a run with its arguments, environment and summary, and logs.csv, all epochs of all runs: the
    students of the rows and their teachers."""
    folders = list(dict.fromkeys(Path(file).parent for file in rows["file"]))
    folders = [folder for folder in folders if (folder / "summary.json").exists()]
    taught_by = (read_args(folder).get("teacher") for folder in folders)
    folders += dict.fromkeys(Path(teacher) for teacher in taught_by if teacher and Path(teacher) not in folders)
    runs, logs = [], []
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        runs.append(
            {"run": str(folder), **summary, "arguments": read_args(folder), "environment": read_environment(folder)}
        )
        if (folder / "log.csv").exists():  # a teacher by ITQ has no epochs
            logs.append(pd.read_csv(folder / "log.csv").assign(run=str(folder)))
    with written_aside(out / "runs.jsonl", "w") as file:
        file.writelines(json.dumps(run) + "\n" for run in runs)
    if logs:
        log = pd.concat(logs)
        with written_aside(out / "logs.csv", "w") as file:
            log[["run", *log.columns.drop("run")]].to_csv(file, index=False, float_format="%.5g")


def precision_recall(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """By setting and method: precision, recall and share of queries answered within each radius, mean over the seeds;
    of the longest codes. Ablations and settings of one method are left to the table."""
    longest = rows[(rows["bits"] == rows["bits"].max()) & ~rows["method"].str.contains(" ")]
    found: dict[str, dict] = {}
    for (setting, name), runs in longest.groupby(["setting", "method"]):
        curves = []
        for file in runs["file"]:
            result = json.loads(Path(file).read_text())
            curves.append(result["teacher" if name == "teacher" else setting]["precision_recall"])
        found.setdefault(setting, {})[name] = {key: np.mean([c[key] for c in curves], axis=0) for key in curves[0]}
    return found


def write_report(rows: pd.DataFrame, out: Path) -> str:
    """Everything into ``out``; returns the tables as text."""
    metrics = ["map"]
    if rows["bits"].nunique() == 1:  # there is room for more
        metrics += ["ndcg"] if rows["multi_label"].any() else ["p@100"] if "p@100" in rows else []
    texts, tex = [], []
    students = rows[rows["method"] != "teacher"]
    groups = list(students.groupby(["dataset", "teacher", "student"])) or [
        ((*rows.iloc[0][["dataset", "teacher"]], ""), rows)
    ]
    for (dataset, teacher, student), group in groups:
        alone = rows[(rows["method"] == "teacher") & (rows["dataset"] == dataset) & (rows["teacher"] == teacher)]
        header, lines = table_of(pd.concat([alone, group]).drop_duplicates(), metrics)
        first = group.iloc[0]
        title = (
            f"{dataset}, {first['queries']} queries, teacher {teacher}, student {student or 'none'}; mAP@{first['k']} "
            f"over relevant retrieved, ties in database order; backbones by {first['engine']} in {first['precision']}"
        )
        texts.append(f"{title}\n\n{markdown(header, lines)}")
        tex.append(f"% {title}\n{latex(header, lines)}")
    text = "\n\n".join(texts)
    with written_aside(out / "rows.csv", "w") as file:
        rows.to_csv(file, index=False)
    for name, content in (("table.md", text), ("table.tex", "\n\n".join(tex))):
        with written_aside(out / name, "w") as file:
            file.write(content + "\n")
    write_records(rows, out)
    figures.draw_bars(rows, sorted(rows["method"].unique(), key=order), out / "map.png")
    if rows["bits"].nunique() > 1:
        figures.draw_by_bits(rows, sorted(rows["method"].unique(), key=order), out / "bits.png")
    figures.draw_precision_recall(precision_recall(rows), out / "precision_recall.png")
    if sweeps := swept(rows):
        figures.draw_sensitivity(sweeps, out / "sensitivity.png")
    compared = significance(rows)
    if len(compared):
        with written_aside(out / "significance.csv", "w") as file:
            compared.to_csv(file, index=False, float_format="%.5f")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that evaluate.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables and figures")
    args = parser.parse_args()
    print(f"\n{write_report(read_rows(args.results), args.out)}\n\nwrote {args.out}/")


if __name__ == "__main__":
    guarded(main)
