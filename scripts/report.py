"""Tables and figures out of many runs: ``python -m scripts.report runs/*/test.json --out DIR``.

Runs that differ in nothing but their seed share a row: mean ± standard deviation (over n - 1). Writes rows.csv (one row
a run and setting), table.md, table.tex, map.png, precision_recall.png, and where they apply bits.png (by code length),
sensitivity.png (BRCD's hyperparameters, longest codes) and significance.csv (each method against BRCD, or the one that
--against names, by a paired t-test over seeds, corrected for the comparisons of --primary, else of the table);
validation.md has the same tables on the queries that chose the checkpoints. What the rows come from is in runs.jsonl
(arguments, environment, summary) and logs.csv (every epoch).
"""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from retrieval.significance import reference, significance, verdict
from retrieval.tables import latex, markdown, order, read_rows, swept, table_of, tables_of, title_of
from utils import figures
from utils.errors import UserError, first_line, guarded
from utils.files import read_csv, read_json, written_aside
from utils.options import Parser
from utils.runs import read_args, read_environment, read_summary


def write_records(rows: pd.DataFrame, out: Path) -> None:
    """runs.jsonl, a line a run with its arguments, environment and summary, and logs.csv, all epochs of all runs: the
    students of the rows and their teachers."""
    folders = list(dict.fromkeys(Path(file).parent for file in rows["file"]))
    folders = [folder for folder in folders if (folder / "summary.json").exists()]
    taught_by = (read_args(folder).get("teacher") for folder in folders)
    folders += dict.fromkeys(Path(teacher) for teacher in taught_by if teacher and Path(teacher) not in folders)
    runs, logs = [], []
    for folder in folders:
        summary = read_summary(folder)
        runs.append(
            {"run": str(folder), **summary, "arguments": read_args(folder), "environment": read_environment(folder)}
        )
        if (folder / "log.csv").exists():  # a teacher by ITQ has no epochs
            rows_of_run = pd.DataFrame(read_csv(folder / "log.csv"))
            try:
                logs.append(rows_of_run.apply(pd.to_numeric).assign(run=str(folder)))
            except ValueError as error:
                raise UserError(f"{folder / 'log.csv'}: damaged ({first_line(error)}); resume that run") from None
    with written_aside(out / "runs.jsonl", "w") as file:
        file.writelines(json.dumps(run) + "\n" for run in runs)
    if logs:
        log = pd.concat(logs)
        with written_aside(out / "logs.csv", "w") as file:
            log[["run", *log.columns.drop("run")]].to_csv(file, index=False, float_format="%.5g")


def precision_recall(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """By setting and method: precision, recall and share of queries answered within each radius, mean over the seeds;
    of the longest codes. Where a method has a plain row, its ablations are left to the table."""
    drawn = (rows["method"] == rows["base"]) | ~rows["base"].isin(set(rows["method"]))
    longest = rows[(rows["bits"] == rows["bits"].max()) & drawn]
    by_setting: dict[str, dict] = {}
    for (setting, name), runs in longest.groupby(["setting", "method"]):
        curves = []
        for file in runs["file"]:
            result = read_json(file)
            curves.append(result["teacher" if name.startswith("teacher") else setting]["precision_recall"])
        means = {key: np.mean([c[key] for c in curves], axis=0) for key in ("precision", "recall", "answered")}
        by_setting.setdefault(setting, {})[name] = means
    return by_setting


def bests_of(rows: pd.DataFrame) -> dict[str, dict]:
    """What chose the checkpoints of each run folder, from its summary; of those that have one."""
    folders = {Path(file).parent for file in rows["file"]}
    return {str(folder): read_summary(folder)["best"] for folder in folders if (folder / "summary.json").exists()}


def on_validation(rows: pd.DataFrame, bests: dict[str, dict]) -> pd.DataFrame:
    """The students' rows with the mAP that chose each checkpoint, of the validation queries; no rows where there is
    none."""

    def chosen(row: pd.Series) -> float:
        best = bests.get(str(Path(row["file"]).parent), {})
        return best[row["setting"]]["value"] if row["setting"] in best else np.nan

    students = rows[(rows["base"] != "teacher") & (rows["queries"] == "test")]
    found = students.assign(map=students.apply(chosen, axis=1) if len(students) else np.nan, queries="val")
    by_features = (found["common"] + " " + found["method"]).str.contains(r"(?:^| )select-by=features(?: |$)")
    return found.assign(relevance=found["relevance"].mask(by_features, "features")).dropna(subset="map")


def text_of(table: pd.DataFrame, metrics: list[str], several_data: bool, compared: pd.DataFrame) -> str:
    text = f"{title_of(table, several_data)}\n\n{markdown(table_of(table, metrics))}"
    return f"{text}\n\n{verdict(compared)}" if len(compared) else text


def write_tables(
    rows: pd.DataFrame, bests: dict[str, dict], out: Path, against: str | None = None, primary: Collection[str] = ()
) -> str:
    """What the rows and the runs' best validations (``bests_of``) give without the runs: rows.csv, table.md, table.tex,
    validation.md, significance.csv, map.png, bits.png; returns the tables as text.

    Raises:
        UserError: no table has the method ``against``, or a comparison of ``primary``.
    """
    if against and against not in set(rows["method"]):
        raise UserError(
            f"--against '{against}': there is no such row; there are: {', '.join(sorted(set(rows['method'])))}"
        )
    if odd := set(primary) - set(rows["setting"] + ":" + rows["method"]):
        raise UserError(f"--primary '{min(odd)}': there is no such row; such as sshp:kl")
    metrics = ["map"]
    if rows["bits"].nunique() == 1:  # there is room for more
        metrics += ["ndcg"] if rows["multi_label"].any() else ["p@100"] if "p@100" in rows else []
    several_data = rows.groupby("dataset")["data"].nunique().max() > 1
    texts, tex, compared = [], [], []
    for ending, table in endings(tables_of(rows)):
        compared.append(significance(table, against, primary))
        texts.append(text_of(table, metrics, several_data, compared[-1]))
        tex.append(f"% {title_of(table, several_data)}\n{latex(table_of(table, metrics))}")
        methods = sorted(table["method"].unique(), key=order)
        students = [name for name in methods if not name.startswith("teacher")]
        if students and len(methods) > 1:
            figures.draw_paired(table, methods, reference(students, against) or students[0], out / f"map{ending}.png")
        if table["bits"].nunique() > 1:
            figures.draw_by_bits(table, methods, out / f"bits{ending}.png")
    validated = [
        text_of(table, ["map"], several_data, significance(table, against, primary))
        for table in tables_of(on_validation(rows, bests))
    ]
    with written_aside(out / "rows.csv", "w") as file:
        rows.drop(columns=["base", "options", "taught"], errors="ignore").to_csv(file, index=False)
    for name, contents in (("table.md", texts), ("table.tex", tex), ("validation.md", validated)):
        if contents:
            with written_aside(out / name, "w") as file:
                file.write("\n\n".join(contents) + "\n")
    if any(map(len, compared)):
        with written_aside(out / "significance.csv", "w") as file:
            pd.concat(compared).to_csv(file, index=False, float_format="%.7f")
    return "\n\n".join(texts)


def endings(tables: list[pd.DataFrame]) -> list[tuple[str, pd.DataFrame]]:
    """What tells the figures of several tables apart, with each table."""
    return [("" if len(tables) == 1 else f"_{number}", table) for number, table in enumerate(tables, 1)]


def write_report(rows: pd.DataFrame, out: Path, against: str | None = None, primary: Collection[str] = ()) -> str:
    """Everything into ``out``; returns the tables as text.

    Raises:
        UserError: no table has the method ``against``, or a comparison of ``primary``.
    """
    text = write_tables(rows, bests_of(rows), out, against, primary)
    for ending, table in endings(tables_of(rows)):
        figures.draw_precision_recall(precision_recall(table), out / f"precision_recall{ending}.png")
        if sweeps := swept(table[table["bits"] == table["bits"].max()]):  # lengths are not averaged
            figures.draw_sensitivity(sweeps, out / f"sensitivity{ending}.png")
    write_records(rows, out)
    return text


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that evaluate.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables and figures")
    parser.add_argument(
        "--against", help="row that the others are compared with, such as 'brcd no-mask' (default: brcd)"
    )
    parser.add_argument(
        "--primary", nargs="+", default=[], help="comparisons that are claims, such as sshp:kl (default: all)"
    )
    args = parser.parse_args()
    print(f"\n{write_report(read_rows(args.results), args.out, args.against, args.primary)}\n\nwrote {args.out}/")


if __name__ == "__main__":
    guarded(main)
