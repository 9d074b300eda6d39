"""Rows of results and the tables made of them: what evaluate.py wrote, by method, code length, setting and seed."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from losses.methods import METHODS, BRCDOptions
from utils.errors import UserError, first_line
from utils.files import read_json

# A table is of one data set (by content), one set of queries and one pair of networks; its rows are methods.
TABLE = ["dataset", "data", "queries", "k", "teacher", "student", "engine", "precision"]
FIRST = ["teacher", "none"]  # at the top of a table; the rest follows by name, BRCD last
SETTINGS = ["sshp", "ashp"]
DRAWN = ("view_seed", "split_seed")  # by each run's own seed, in a grid with --redraw
SWEPT = ("alpha", "margin", "clusters")  # BRCD's hyperparameters in the sensitivity figure
SWEPT_ENDS = {"margin": ({"mask": False}, 0.0), "alpha": ({"structural": False}, 1.0)}  # the same by another name
OWN = frozenset().union(*(method.own for method in METHODS.values()))
TEXTS = (
    *("dataset", "data", "queries", "method", "teacher_hashing", "teacher_backbone", "student_backbone"),
    *("engine", "precision", "commit", "teacher_commit", "command", "teacher_command", "run"),
)


def read_rows(files: list[Path]) -> pd.DataFrame:
    """One row for each run and search setting; the teacher of several students appears once.

    ``method`` names a run within its table: the method with every option that is not at its default, less what all of
    the table's runs have in common, which ``common`` holds.

    Raises:
        UserError: a file is missing or not what evaluate.py wrote, or two different runs would share a row and a seed.
    """
    rows = []
    for file in dict.fromkeys(files):
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file; evaluate.py --run RUN writes RUN/test.json")
        try:
            result = read_json(file)
            rows += [
                _row(result, setting, file)
                for setting in (*SETTINGS, "teacher")
                if setting in result or setting == "teacher"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{file}: not a result of evaluate.py ({why}); evaluate that run again") from None
    table = pd.DataFrame(rows)
    table["method"] = [label(*run) for run in zip(table["base"], table["options"], table["taught"], strict=True)]
    key = [*TABLE, "method", "bits", "setting", "seed"]
    again = table.duplicated(key) & (table["base"].eq("teacher") | table.duplicated([*key, "map"]))
    table = table[~again].reset_index(drop=True)
    for _, same in table[table.duplicated(key, keep=False)].groupby(key):
        run = same.iloc[0]
        raise UserError(
            f"{' and '.join(same['file'])}: both are seed {run['seed']} of '{run['method']}' at {run['bits']} bits; "
            "name one of them"
        )
    _shorten(table)
    return table.sort_values(key).reset_index(drop=True)


def _row(result: dict, setting: str, file: Path) -> dict:
    report, alone = result[setting], setting == "teacher"
    measured = [*report["map"].values(), *report["precision_at"].values(), report["map_all"], report["ndcg"]]
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in measured):
        raise ValueError(f"a metric of '{setting}' is no number from 0 to 1")
    if not all(type(result[key]) is int for key in ("bits", "seed", "teacher_seed")):  # a bool is no int here
        raise ValueError("bits or a seed is no whole number")
    if not all(isinstance(result[key], str) for key in TEXTS):
        raise ValueError("a name is no text")
    if not all(isinstance(result[key], bool) for key in ("pretrained", "multi_label")):
        raise ValueError("pretrained or multi_label is neither true nor false")
    if type(report["k"]) is not int or not isinstance(result.get("student_size"), int | None):
        raise ValueError("k or student_size is no whole number")
    if result.get("relevance", "labels") not in ("labels", "features"):
        raise ValueError("relevance is neither by labels nor by features")
    options = (*result["options"].items(), *result["teacher_options"].items())
    if not all(isinstance(value, str | int | float | None) for _, value in options):
        raise ValueError("an option is no plain value")
    curve = np.array([report["precision_recall"][key] for key in ("precision", "recall", "answered")], dtype=float)
    if not ((curve >= 0) & (curve <= 1 + 1e-9)).all():
        raise ValueError("its precision-recall curve is cut")
    hashing, size = result["teacher_hashing"], result.get("student_size")
    named, taught = dict(result["options"]), dict(result["teacher_options"])
    redrawn = result["seed"] and all(made.get(name) == result["seed"] for made in (named, taught) for name in DRAWN)
    for made in (named, taught) if redrawn else ():
        for name in DRAWN:
            del made[name]
    return {
        "dataset": result["dataset"],
        "data": "drawn by seed" if redrawn else result["data"][:12],  # fingerprint
        "teacher": result["teacher_backbone"] + ("" if hashing == "cibhash" else f" ({hashing})"),
        "student": "" if alone else result["student_backbone"] + (f" at {size} px" if size else ""),
        "method": "",
        "base": "teacher" if alone else result["method"],
        "options": {} if alone else named,
        "taught": taught,
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
        # Of student and teacher: mAP by the student's matched bits, and how far bits agree.
        "matched": result["matched"]["map"]["stable/retrieved"] if "matched" in result and setting == "ashp" else None,
        **{name: result.get(name) if setting == "ashp" else None for name in ("equal_bits", "bit_correlation")},
        "engine": result["engine"],
        "precision": result["precision"],
        "pretrained": result["pretrained"],
        "relevance": result.get("relevance", "labels"),
        "multi_label": result["multi_label"],
        "commit": result["teacher_commit" if alone else "commit"],
        "command": result["teacher_command" if alone else "command"],
        "run": result["run"],
        "file": str(file),
    }


def label(base: str, options: dict, taught: dict) -> str:
    """A run's name: "brcd no-mask margin=0.2 teacher-epochs=50"."""

    def word(name: str, value: object) -> str:
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            return flag if value else f"no-{flag}"
        return f"{flag}={value}"

    words = [word(name, value).replace("variant=", "") for name, value in options.items()]
    return " ".join([base, *words, *(word(f"teacher-{name}", value) for name, value in taught.items())])


def _shorten(table: pd.DataFrame) -> None:
    """Take out of each table's names what all of its runs have in common. Options that only some methods have stay."""
    table["common"] = ""
    for _, group in table.groupby([key for key in TABLE if key != "student"]):
        taught = _shared(list(group["taught"]))
        options: dict[int, dict] = {row: {} for row in group.index}
        shared: dict[int, dict] = dict(options)
        for _, students in group[group["base"] != "teacher"].groupby("student"):
            same = {k: v for k, v in _shared(list(students["options"])).items() if k not in OWN}
            for row, own in zip(students.index, students["options"], strict=True):
                options[row], shared[row] = {k: v for k, v in own.items() if k not in same}, same
        for row, base, all_taught in group[["base", "taught"]].itertuples():
            left = {k: v for k, v in all_taught.items() if k not in taught}
            table.at[row, "method"] = label(base, options[row], left)
            table.at[row, "common"] = label("", shared[row], taught).strip()


def _shared(dicts: list[dict]) -> dict:
    """What all have, with the same value."""
    return {k: v for k, v in dicts[0].items() if all(k in d and d[k] == v for d in dicts)}


def order(method: str) -> tuple:
    """Of the tables' rows: teacher and plain student first, BRCD last; numbers by their size, 8 views before 16."""
    base = method.split()[0]
    rank = FIRST.index(base) if base in FIRST else len(FIRST) + (base == "brcd")
    words = re.split(r"(\d+(?:\.\d+)?)", method)  # text and numbers in turn
    return (rank, *(float(word) if i % 2 else word for i, word in enumerate(words)))


def table_of(rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Text for one teacher and student: a line a method, a column a code length, setting and metric.

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
        c: max(
            (means[n, *c] for n in methods if not n.startswith("teacher") and means[n, *c] == means[n, *c]),
            default=None,
        )
        for c in columns
    }
    lines = []
    for name in methods:
        line = [name]
        for b, s, m in columns:
            mean, std = means[name, b, s, m], stats[m, "std"].get((name, b, s), float("nan"))
            text = "–" if mean != mean else f"{mean:.4f}" + ("" if std != std else f" ± {std:.4f}")
            line.append(f"**{text}**" if not name.startswith("teacher") and mean == best[b, s, m] else text)
        lines.append([*line, str(int(stats.loc[name][metrics[0], "count"].max()))])
    return pd.DataFrame(lines, columns=header)


def markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, tablefmt="github", disable_numparse=True)


def latex(table: pd.DataFrame) -> str:
    """Bold where Markdown's asterisks are; booktabs' lines."""

    def escape(text: str) -> str:
        bold = text.startswith("**")
        text = text.strip("*").replace("_", r"\_").replace(" ± ", r" $\pm$ ").replace("–", "--")
        return rf"\textbf{{{text}}}" if bold else text

    form = "l" + "r" * (len(table.columns) - 1)
    return table.map(escape).rename(columns=escape).to_latex(index=False, column_format=form).strip()


def swept_value(options: dict, name: str) -> float | str | None:
    """Of the hyperparameter ``name`` in a BRCD run with these options of its own; None if it differs in others too."""
    end, at = SWEPT_ENDS.get(name, (None, None))
    if options == end:
        return at
    return options.get(name, getattr(BRCDOptions, name)) if set(options) <= {name} else None


def swept(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each of BRCD's hyperparameters: rows with its value, BRCD's own row at the default among them."""
    brcd = rows[rows["base"] == "brcd"]
    own = brcd["options"].map(lambda options: {k: v for k, v in options.items() if k in OWN})
    sweeps = {}
    for name in SWEPT:
        if not any(set(options) == {name} for options in own):
            continue
        values = pd.to_numeric(own.map(lambda options, name=name: swept_value(options, name)), errors="coerce")
        if values.nunique() > 1:  # "auto" is no value
            sweeps[name] = brcd.assign(value=values)[values.notna()]
    return sweeps


def tables_of(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each table: the students of one data set and pair of networks, with their teachers."""
    teachers, students = rows[rows["base"] == "teacher"], rows[rows["base"] != "teacher"]
    tables, shown = [], pd.Index([])
    keys = [key for key in TABLE if key != "student"]
    for key, group in students.groupby(TABLE):
        facts = dict(zip(TABLE, key, strict=True))
        theirs = teachers[(teachers[keys] == [facts[k] for k in keys]).all(axis=1)]
        shown = shown.union(theirs.index)
        tables.append(pd.concat([theirs, group]))
    alone = teachers.drop(shown)
    return tables + [group for _, group in alone.groupby(TABLE)]


def title_of(table: pd.DataFrame, several_data: bool) -> str:
    last = table.iloc[-1]
    common = f"; {last['common'].replace(' ', ', ')}" if last["common"] else ""
    which = f" ({last['data']})" if several_data else ""
    # Without labels no mAP says anything of classes, and none may look as if it did.
    relevant = "relevant" if last["relevance"] == "labels" else "the teacher's nearest by features"
    return (
        f"{last['dataset']}{which}, {last['queries']} queries, teacher {last['teacher']}, student "
        f"{last['student'] or 'none'}; mAP@{last['k']} over {relevant} retrieved, ties in database order; backbones by "
        f"{last['engine']} in {last['precision'].removeprefix('torch.')}{common}"
    )
