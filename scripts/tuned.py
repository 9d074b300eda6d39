"""Which --kd-weight served each method best: ``python -m scripts.tuned results/A results/B``, of scripts/tune.sh.

Means over the seeds, then over the folders' data sets, of what the validation queries said (SSHP); no test query is
looked at. Prints a table, with the best weight in its last column.
"""

from pathlib import Path

import pandas as pd

from retrieval.tables import markdown, order
from scripts.join import read_rows, read_runs
from scripts.report import on_validation
from utils.errors import UserError, guarded
from utils.options import Parser


def read_settings(folders: list[Path]) -> pd.DataFrame:
    """A line for each setting of a method and weight: name, weight, a column for each data set, and their mean.

    Raises:
        UserError: a folder is not what scripts.report wrote, or has other methods, weights or seeds than the first.
    """
    rows = pd.concat([read_rows([folder]) for folder in folders], ignore_index=True)
    rows["run"] = [str(Path(file).parent) for file in rows["file"]]
    runs = read_runs(folders, set(rows["run"]))
    students = on_validation(rows, {run: line["best"] for run, line in runs.items()})
    found = students[students["setting"] == "sshp"]
    found = found.assign(
        name=found["method"].str.replace(r" kd-weight=\S+", "", regex=True),
        weight=[float(runs[run]["arguments"]["kd_weight"]) for run in found["run"]],
    )
    if found["bits"].nunique() > 1:
        found["name"] += found["bits"].map(" {} bits".format)
    by_seed = found.pivot(index=["name", "weight"], columns=["dataset", "seed"], values="map")
    if by_seed.isna().any(axis=None):
        name, weight = by_seed.index[by_seed.isna().any(axis=1)][0]
        raise UserError(f"'{name}' at --kd-weight {weight:g} is not in every folder and seed; finish scripts/tune.sh")
    means = by_seed.T.groupby("dataset").mean().T
    return means.assign(mean=means.mean(axis=1)).reset_index()


def best(settings: pd.DataFrame) -> pd.DataFrame:
    """The line of highest mean for each name."""
    return settings.loc[settings.groupby("name")["mean"].idxmax()].sort_values("name", key=lambda n: n.map(order))


def tuning_table(settings: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for one in best(settings).to_dict("records"):
        tried = settings[settings["name"] == one["name"]].sort_values("weight")
        cells = [
            f"**{weight:g}: {mean:.4f}**" if weight == one["weight"] else f"{weight:g}: {mean:.4f}"
            for weight, mean in zip(tried["weight"], tried["mean"], strict=True)
        ]
        each = {k: f"{v:.4f}" for k, v in one.items() if k not in ("name", "weight", "mean")}
        lines.append(
            {
                "method": one["name"],
                "weight: mean": ", ".join(cells),
                **each,
                "best": "–" if one["name"].split()[0] == "none" else f"{one['weight']:g}",
            }
        )
    return pd.DataFrame(lines)


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="one for each data set")
    print(markdown(tuning_table(read_settings(parser.parse_args().folders))))


if __name__ == "__main__":
    guarded(main)
