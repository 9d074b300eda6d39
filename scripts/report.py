"""Tables and figures out of many runs: ``python -m scripts.report runs/*/test.json --out DIR``.

Runs that differ in nothing but their seed share a row: mean ± standard deviation (over n - 1). Writes rows.csv (one row
a run and setting), table.md, table.tex, map.png, precision_recall.png, and where they apply bits.png (by code length),
sensitivity.png (BRCD's hyperparameters, longest codes) and significance.csv (each method against BRCD, or the one that
--against names, by a paired t-test over seeds, corrected for all comparisons of the table); validation.md has the same
tables on the queries that chose the checkpoints. What the rows come from is in runs.jsonl (arguments, environment,
summary) and logs.csv (every epoch).
"""

from utils.errors import guarded  # isort: skip  (first: Ctrl-C while the rest is imported is one line too)

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from losses.brcd import BRCDOptions
from losses.methods import METHODS
from utils import figures
from utils.errors import UserError, first_line
from utils.files import read_csv, read_json, written_aside
from utils.options import Parser
from utils.runs import read_args, read_environment, read_summary

# A table is of one data set (by content), one set of queries and one pair of networks; its rows are methods.
TABLE = ["dataset", "data", "queries", "k", "teacher", "student", "engine", "precision"]
FIRST = ["teacher", "none"]  # at the top of a table; the rest follows by name, BRCD last
SETTINGS = ["sshp", "ashp"]
SWEPT = ("alpha", "margin", "clusters")  # BRCD's hyperparameters in the sensitivity figure
SWEPT_ENDS = {"margin": ({"mask": False}, 0.0), "alpha": ({"structural": False}, 1.0)}  # the same by another name
OWN = frozenset().union(*(method.own for method in METHODS.values()))
LEVEL = 0.05
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
    return {
        "dataset": result["dataset"],
        "data": result["data"][:12],
        "teacher": result["teacher_backbone"] + ("" if hashing == "cibhash" else f" ({hashing})"),
        "student": "" if alone else result["student_backbone"] + (f" at {size} px" if size else ""),
        "method": "",
        "base": "teacher" if alone else result["method"],
        "options": {} if alone else dict(result["options"]),
        "taught": dict(result["teacher_options"]),
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
        "relevance": result.get("relevance", "labels"),
        "multi_label": result["multi_label"],
        "commit": result["teacher_commit" if alone else "commit"],
        "command": result["teacher_command" if alone else "command"],
        "run": result["run"],
        "file": str(file),
    }


def label(base: str, options: dict, taught: dict) -> str:
    """A run's name: "brcd no-mask margin=0.2 teacher-epochs=50"."""

    def word(name: str, value) -> str:
        return f"no-{name.replace('_', '-')}" if value is False else f"{name.replace('_', '-')}={value}"

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
            for row, own in students["options"].items():
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


def paired_t(differences: np.ndarray, comparisons: int = 1) -> dict[str, float]:
    """A paired t-test (Student, 1908) of differences in mAP, one a seed [n]; the seed is the unit, for its queries are
    asked of one training.

    Args:
        comparisons: how many are made at once; ``low_all`` and ``high_all`` hold for all of them (Bonferroni).

    Returns:
        difference (the mean), low and high of its 95 % interval, the same for all comparisons at once, and the
        two-sided p; one seed has a difference and nothing else.
    """
    found = {"difference": float(np.mean(differences))}
    if len(differences) < 2:
        return found | dict.fromkeys(("low", "high", "low_all", "high_all", "p"), float("nan"))
    if np.ptp(differences) == 0:  # runs of the same bits: no spread to judge by
        return found | dict.fromkeys(("low", "high", "low_all", "high_all"), found["difference"]) | {"p": 1.0}
    test = ttest_1samp(differences, 0)
    low, high = test.confidence_interval(0.95)
    low_all, high_all = test.confidence_interval(1 - 0.05 / comparisons)
    return found | {"low": low, "high": high, "low_all": low_all, "high_all": high_all, "p": float(test.pvalue)}


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [m] corrected for m comparisons (Holm, Scandinavian Journal of Statistics 1979); NaN stays NaN."""
    corrected, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def reference(methods, against: str | None = None) -> str | None:
    """The method that others are compared with: ``against``, or the plain BRCD, or the first with other options."""
    if against:
        return against if against in methods else None
    ours = sorted((m for m in methods if m.split()[0] == "brcd"), key=order)
    return ours[0] if ours else None


def significance(table: pd.DataFrame, against: str | None = None) -> pd.DataFrame:
    """Of one table: every method less BRCD (or ``against``) over the seeds that both have; p is corrected over all its
    comparisons."""
    pairs = []
    for (bits, setting), group in table[table["base"] != "teacher"].groupby(["bits", "setting"]):
        by_seed = group.pivot(index="seed", columns="method", values="map")
        ours = reference(by_seed.columns, against)
        for name in sorted(set(by_seed.columns) - {ours}, key=order) if ours else ():
            differences = (by_seed[name] - by_seed[ours]).dropna().to_numpy()
            if len(differences):
                pairs.append(({"bits": bits, "setting": setting, "method": name, "less": ours}, differences))
    facts = {name: table.iloc[-1][name] for name in ("dataset", "data", "teacher", "student")}
    found = [facts | pair | {"seeds": len(d)} | paired_t(d, len(pairs)) for pair, d in pairs]
    return pd.DataFrame(found).assign(p_holm=holm(np.array([one["p"] for one in found]))) if found else pd.DataFrame()


def verdict(compared: pd.DataFrame) -> str:
    """What a table's test says of BRCD and each other method, in words; nothing else may."""
    tested = compared.dropna(subset="p_holm")
    if not len(tested):
        return "One seed: no difference in this table can be told from chance."
    ours, words = tested["less"].iloc[0], []
    for name, group in tested.groupby("method", sort=False):
        sure = group[group["p_holm"] < LEVEL]
        above, below = (sure["difference"] < 0).sum(), (sure["difference"] > 0).sum()
        counts = [f"{count} {word}" for word, count in (("above", above), ("below", below)) if count]
        words.append(f"{name}: {' and '.join(counts) or 'none told apart'} of {len(group)}")
    return (
        f"{ours} against each, paired t over {tested['seeds'].min()} seeds, Holm over {len(tested)} comparisons at "
        f"{LEVEL:.0%}: {'; '.join(words)}."
    )


def swept_value(options: dict, name: str):
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
            curves.append(result["teacher" if name == "teacher" else setting]["precision_recall"])
        means = {key: np.mean([c[key] for c in curves], axis=0) for key in curves[0]}
        by_setting.setdefault(setting, {})[name] = means
    return by_setting


def bests_of(rows: pd.DataFrame) -> dict[str, dict]:
    """What chose the checkpoints of each run folder, from its summary; of those that have one."""
    folders = {str(Path(file).parent) for file in rows["file"]}
    return {folder: read_summary(folder)["best"] for folder in folders if (Path(folder) / "summary.json").exists()}


def on_validation(rows: pd.DataFrame, bests: dict[str, dict]) -> pd.DataFrame:
    """The students' rows with the mAP that chose each checkpoint, of the validation queries; no rows where there is
    none."""

    def chosen(row) -> float:
        best = bests.get(str(Path(row["file"]).parent), {})
        return best[row["setting"]]["value"] if row["setting"] in best else np.nan

    students = rows[(rows["base"] != "teacher") & (rows["queries"] == "test")]
    found = students.assign(map=students.apply(chosen, axis=1) if len(students) else np.nan, queries="val")
    return found.dropna(subset="map")


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


def text_of(table: pd.DataFrame, metrics: list[str], several_data: bool, compared: pd.DataFrame) -> str:
    text = f"{title_of(table, several_data)}\n\n{markdown(*table_of(table, metrics))}"
    return f"{text}\n\n{verdict(compared)}" if len(compared) else text


def write_tables(rows: pd.DataFrame, bests: dict[str, dict], out: Path, against: str | None = None) -> str:
    """What the rows and the runs' best validations (``bests_of``) give without the runs: rows.csv, table.md, table.tex,
    validation.md, significance.csv, map.png, bits.png; returns the tables as text.

    Raises:
        UserError: no table has the method ``against``.
    """
    if against and against not in set(rows["method"]):
        raise UserError(
            f"--against '{against}': there is no such row; there are: {', '.join(sorted(set(rows['method'])))}"
        )
    metrics = ["map"]
    if rows["bits"].nunique() == 1:  # there is room for more
        metrics += ["ndcg"] if rows["multi_label"].any() else ["p@100"] if "p@100" in rows else []
    several_data = rows.groupby("dataset")["data"].nunique().max() > 1
    texts, tex, compared = [], [], []
    for ending, table in endings(tables_of(rows)):
        compared.append(significance(table, against))
        texts.append(text_of(table, metrics, several_data, compared[-1]))
        tex.append(f"% {title_of(table, several_data)}\n{latex(*table_of(table, metrics))}")
        methods = sorted(table["method"].unique(), key=order)
        figures.draw_bars(table, methods, out / f"map{ending}.png")
        if table["bits"].nunique() > 1:
            figures.draw_by_bits(table, methods, out / f"bits{ending}.png")
    validated = [
        text_of(table, ["map"], several_data, significance(table, against))
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
            pd.concat(compared).to_csv(file, index=False, float_format="%.5f")
    return "\n\n".join(texts)


def endings(tables: list[pd.DataFrame]) -> list[tuple[str, pd.DataFrame]]:
    """What tells the figures of several tables apart, with each table."""
    return [("" if len(tables) == 1 else f"_{number}", table) for number, table in enumerate(tables, 1)]


def write_report(rows: pd.DataFrame, out: Path, against: str | None = None) -> str:
    """Everything into ``out``; returns the tables as text.

    Raises:
        UserError: no table has the method ``against``.
    """
    text = write_tables(rows, bests_of(rows), out, against)
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
    args = parser.parse_args()
    print(f"\n{write_report(read_rows(args.results), args.out, args.against)}\n\nwrote {args.out}/")


if __name__ == "__main__":
    guarded(main)
