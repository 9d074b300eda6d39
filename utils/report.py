"""One table out of many runs: ``python -m utils.report runs/*/test.json --out DIR``.

Runs that differ in nothing but their seed share a row: mean ± standard deviation (over n - 1). Writes rows.csv (one row
a run and setting), table.md, table.tex and map.png, and prints the table.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from utils.errors import UserError, guarded
from utils.figures import draw_bars
from utils.runs import written_aside

KEYS = ["dataset", "bits", "teacher", "student", "method"]
ORDER = ["teacher", "none"]  # first in a table; the rest follows by name, BRCD last


def read_rows(files: list[Path]) -> pd.DataFrame:
    """One row for each run and search setting; the teacher of several students appears once.

    Raises:
        UserError: a file is missing or not what evaluate.py wrote.
    """
    rows = []
    for file in files:
        try:
            result = json.loads(Path(file).read_text())
            for setting in ("sshp", "ashp", "teacher"):
                if setting in result:
                    rows.append(_row(result, setting))
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; evaluate.py --run RUN writes RUN/test.json") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not a result of evaluate.py ({error!r}); evaluate that run again") from None
    if not rows:
        raise UserError("no results in the files given")
    return pd.DataFrame(rows).drop_duplicates([*KEYS, "seed", "setting"]).reset_index(drop=True)


def _row(result: dict, setting: str) -> dict:
    report, alone = result[setting], setting == "teacher"
    return {
        "dataset": result["dataset"], "bits": result["bits"], "teacher": teacher_name(result),
        "student": "" if alone else result["student_backbone"], "method": "teacher" if alone else result["method"],
        "seed": result["teacher_seed"] if alone else result["seed"], "setting": "sshp" if alone else setting,
        "queries": result["queries"], "k": report["k"], "map": report["map"]["stable/retrieved"],
        **{f"map {key}": value for key, value in report["map"].items()}, "map_all": report["map_all"],
        "precision_radius_2": report["precision_radius_2"],
        **{f"p@{rank}": value for rank, value in report["precision_at"].items()},
        "pretrained": result["pretrained"], "commit": result["commit"], "command": result["command"], "run": result["run"],
    }  # fmt: skip


def teacher_name(result: dict) -> str:
    hashing = result["teacher_hashing"]
    return result["teacher_backbone"] + ("" if hashing == "cibhash" else f" {hashing}")


def place(method: str) -> tuple:
    return (ORDER.index(method), "") if method in ORDER else (len(ORDER) + method.startswith("brcd"), method)


def summarise(rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Over seeds: a row for each method, columns (metric, "mean" | "std" | "count", setting)."""
    wide = rows.groupby([*KEYS, "setting"])[metrics].agg(["mean", "std", "count"]).unstack("setting")
    return wide.loc[sorted(wide.index, key=lambda key: (key[:3], key[3], place(key[4])))]


def cells(summary: pd.DataFrame, metrics: list[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows of text) of a summary; the best student of each column is set off by asterisks."""
    settings = [s for s in ("sshp", "ashp") if s in summary.columns.get_level_values(2)]
    columns = [(m, s) for m in metrics for s in settings]
    constant = [key for key in KEYS[:-1] if summary.index.get_level_values(key).nunique() == 1 or key == "student"]
    shown = [key for key in KEYS if key not in constant]
    header = [*shown, *(f"{s.upper()} {m.replace('map', 'mAP')}" for m, s in columns), "seeds"]
    lines = []
    for key, line in summary.iterrows():
        named = dict(zip(KEYS, key, strict=True))
        rivals = summary[[i[:3] == key[:3] and i[4] != "teacher" for i in summary.index]]
        texts = []
        for m, s in columns:
            mean, std = line[m, "mean", s], line[m, "std", s]
            if pd.isna(mean):
                texts.append("–")
                continue
            text = f"{mean:.4f}" + ("" if pd.isna(std) else f" ± {std:.4f}")
            texts.append(f"**{text}**" if key[4] != "teacher" and mean == rivals[m, "mean", s].max() else text)
        lines.append([*(str(named[k]) for k in shown), *texts, str(int(line[metrics[0], "count"].max()))])
    return header, lines


def markdown(header: list[str], lines: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    table = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in [header, *lines]]
    table.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(table)


def latex(header: list[str], lines: list[list[str]]) -> str:
    def escape(text: str) -> str:
        bold = text.startswith("**")
        text = text.strip("*").replace("_", r"\_").replace(" ± ", r" $\pm$ ").replace("–", "--")
        return rf"\textbf{{{text}}}" if bold else text

    body = [" & ".join(map(escape, row)) + r" \\" for row in [header, *lines]]
    form = "l" * (len(header) - len(lines[0]) + 1) + "r" * (len(header) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{form}}}", r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="files that evaluate.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables and the figure")
    args = parser.parse_args()
    rows = read_rows(args.results)
    metrics = ["map", *(["p@100"] if "p@100" in rows else [])]
    summary = summarise(rows, metrics)
    header, lines = cells(summary, metrics)
    first = rows.iloc[0]
    title = (f"{first['dataset']}, {first['queries']} queries, teacher {first['teacher']}"
             f"{', student ' + first['student'] if first['student'] else ''}; mAP@{first['k']}: relevant retrieved, stable ties")
    with written_aside(args.out / "rows.csv", "w") as file:
        rows.to_csv(file, index=False)
    for name, text in (("table.md", f"{title}\n\n{markdown(header, lines)}"), ("table.tex", latex(header, lines))):
        with written_aside(args.out / name, "w") as file:
            file.write(text + "\n")
    draw_bars(summary, args.out / "map.png", title)
    print(f"\n{title}\n\n{markdown(header, lines)}\n\nwrote {args.out}/table.md, table.tex, rows.csv and map.png")


if __name__ == "__main__":
    guarded(main)
