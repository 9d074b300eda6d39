"""Tables that were made apart as one: ``python -m scripts.join results/A results/B --out results/C``.

For code lengths, seeds or methods that ran at another time or on another machine: no run folder is needed. A and B are
folders that scripts.report wrote. Writes what it writes, corrected for all comparisons of the whole, but for
precision_recall.png and sensitivity.png, which need the runs.
"""

import json
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from retrieval.tables import TABLE
from scripts.report import write_tables
from utils.errors import UserError, first_line, guarded
from utils.files import written_aside
from utils.options import Parser

NEEDED = {*TABLE, "method", "bits", "setting", "seed", "map", "common", "multi_label", "relevance", "run", "file"}


def read_rows(folders: list[Path]) -> pd.DataFrame:
    """The rows of all folders; one that several have counts once.

    Raises:
        UserError: a rows.csv is missing, damaged or of another version; rows contradict each other; or the methods'
            names, which leave out what all runs of a table share, do not mean the same.
    """
    tables = []
    for folder in folders:
        try:
            rows = pd.read_csv(folder / "rows.csv")
            if missing := NEEDED - set(rows):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            metrics = [name for name in rows.columns if name.startswith(("map", "p@", "ndcg"))]
            measured = {name: pd.to_numeric(rows[name]) for name in metrics}
            base = rows["method"].str.split().str[0]
            tables.append(rows.fillna({"student": "", "common": ""}).assign(base=base, **measured))
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / 'rows.csv'}: not what scripts.report writes ({first_line(error)})") from None
        if odd := set(tables[-1].columns) ^ set(tables[0].columns):
            raise UserError(
                f"{folder} and {folders[0]}: their rows have other columns ({', '.join(sorted(odd))}); "
                "run scripts.report on the runs of both"
            )
    rows = pd.concat(tables, ignore_index=True)
    for _, group in rows.groupby([*TABLE, rows["base"] == "teacher"]):
        if group["common"].nunique() > 1:
            one, other = sorted(set(group["common"]))[:2]
            raise UserError(
                f"what a table's runs share differs: '{one}' and '{other}'; name the runs of both to one scripts.report"
            )
    key = [*TABLE, "method", "bits", "setting", "seed"]
    rows = rows[~rows.duplicated([*key, "map"])]
    for _, same in rows[rows.duplicated(key, keep=False)].groupby(key):
        run = same.iloc[0]
        raise UserError(
            f"{' and '.join(same['run'])}: both are seed {run['seed']} of '{run['method']}' at {run['bits']} bits, "
            "with other results; leave one folder out"
        )
    return rows.sort_values(key).reset_index(drop=True)


def read_runs(folders: list[Path], runs: set[str]) -> dict[str, dict]:
    """Of runs.jsonl: the line of each run by its folder; the first where several tables have it."""
    found: dict[str, dict] = {}
    for folder in folders:
        try:
            with open(folder / "runs.jsonl") as file:
                lines = [json.loads(line) for line in file]
            if not all("best" in line for line in lines):
                raise ValueError("a run without its best validations")
            found = {line["run"]: line for line in lines} | found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / 'runs.jsonl'}: not what scripts.report writes ({first_line(error)})") from None
    if missing := runs - found.keys():
        raise UserError(f"{' and '.join(map(str, folders))}: no runs.jsonl holds {sorted(missing)[0]}")
    return found


def join(folders: list[Path], out: Path, against: str | None = None, primary: Collection[str] = ()) -> str:
    """Everything into ``out``; returns the tables as text."""
    rows = read_rows(folders)
    runs = read_runs(folders, {str(Path(file).parent) for file in rows["file"]})
    logs = []
    for folder in folders:
        try:
            logs.append(pd.read_csv(folder / "logs.csv", dtype=str))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / 'logs.csv'}: not what scripts.report writes ({first_line(error)})") from None
    text = write_tables(rows, {run: line["best"] for run, line in runs.items()}, out, against, primary)
    with written_aside(out / "runs.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in runs.values())
    with written_aside(out / "logs.csv", "w") as file:
        pd.concat(logs).drop_duplicates(["run", "epoch"]).to_csv(file, index=False)
    return text


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders that scripts.report wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the whole")
    parser.add_argument("--against", help="row that the others are compared with (default: brcd)")
    parser.add_argument(
        "--primary", nargs="+", default=[], help="comparisons that are claims, such as sshp:kl (default: all)"
    )
    args = parser.parse_args()
    print(f"\n{join(args.folders, args.out, args.against, args.primary)}\n\nwrote {args.out}/")


if __name__ == "__main__":
    guarded(main)
