"""BRCD against others in every independent experiment: ``python -m scripts.overview``.

Reads the tables named here; writes results/overview.png, a forest plot, and prints the matrix of results/README.md and
the table of README.md. Differences are BRCD's mAP minus the other's, means over seeds, each with the 95 % interval of
that comparison alone; significant are only those that their table declared before the runs (``--primary``).
"""

import itertools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from retrieval.significance import LEVEL
from retrieval.tables import markdown, table_of
from scripts.join import read_rows
from utils.errors import UserError, first_line, guarded
from utils.figures import draw_differences
from utils.options import Parser

# Every method at its tuned weight.
TUNED = {"CIFAR-10": "cifar10_tuned", "MIRFLICKR": "mirflickr_tuned"}
# Folder of results/ and code length; tables that repeat the runs of another are left out.
AT_WEIGHT_1 = {
    "CIFAR-10, 16 bits": ("cifar10_lite2_lite0", 16),
    "CIFAR-10, 32 bits": ("cifar10_lite2_lite0", 32),
    "CIFAR-10, 64 bits": ("cifar10_lite2_lite0", 64),
    "CIFAR-10, linear heads, 128 px": ("cifar10_linear", 64),
    "CIFAR-10, student at 112 px": ("cifar10_lite2_lite0_112", 64),
    "MIRFLICKR": ("mirflickr_methods", 64),
    "MIRFLICKR at 224 px": ("mirflickr_lite2_lite0", 64),
    "MIRFLICKR, Bi-half": ("mirflickr_bihalf", 64),
    "MIRFLICKR, GreedyHash": ("mirflickr_greedyhash", 64),
    "MIRFLICKR, teacher by ITQ": ("mirflickr_itq", 64),
    "MIRFLICKR, Lite2 → Lite1": ("mirflickr_lite2_lite1", 64),
    "MIRFLICKR, Lite1 → Lite0": ("mirflickr_lite1_lite0", 64),
    "MIRFLICKR, Lite2 → Lite2": ("mirflickr_lite2_lite2", 64),
    "Tiny-ImageNet-100": ("tinyimagenet100_lite2_lite0", 64),
}
EXPERIMENTS = {name: (folder, 64) for name, folder in TUNED.items()}
EXPERIMENTS |= {f"weight 1: {name}": found for name, found in AT_WEIGHT_1.items()}
PANELS = (("sshp", "none"), ("sshp", "kl"), ("sshp", "rkd"), ("sshp", "mse"), ("ashp", "kl"), ("ashp", "mse"))
RIVALS = ("none", "kl", "rkd", "mse")  # mse: the best plain alignment of the tuning
SHOWN = ("teacher", *RIVALS, "brcd", "brcd kd-weight=3.0 no-mask")


def read_differences(results: Path, experiments: dict[str, tuple[str, int]]) -> pd.DataFrame:
    """A line for each comparison with "brcd" that has an interval: experiment, setting, method, difference, low, high,
    seeds, significant.

    Raises:
        UserError: a file is missing or damaged.
    """
    tables = []
    for name, (folder, bits) in experiments.items():
        file = results / folder / "significance.csv"
        try:
            found = pd.read_csv(file).dropna(subset="p")
            declared = bool(found["p_holm"].isna().any())
            mine = found[(found["less"] == "brcd") & (found["bits"] == bits)]
            turned = {"difference": -mine["difference"], "low": -mine["high"], "high": -mine["low"]}
            significant = (mine["p_holm"] < LEVEL) & declared
            tables.append(mine.assign(experiment=name, significant=significant, **turned))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file}: not what scripts.report writes ({first_line(error)})") from None
    return pd.concat(tables, ignore_index=True)


def means(results: Path) -> pd.DataFrame:
    """Text: a line for each of SHOWN, mAP in SSHP and ASHP of the TUNED tables."""
    columns = {}
    for name, folder in TUNED.items():
        found = read_rows([results / folder])
        texts = table_of(found[found["method"].isin(SHOWN)], ["map"]).set_index("method")
        for setting in ("SSHP", "ASHP"):
            columns[f"{name}, {setting}"] = texts[f"64 bits {setting} mAP"]
    return pd.DataFrame(columns).loc[list(SHOWN)].rename_axis("method").reset_index()


def matrix(rows: pd.DataFrame, experiments: Iterable[str]) -> pd.DataFrame:
    """Text: a line an experiment and setting, a column for each of RIVALS."""
    lines = []
    for name, setting in itertools.product(experiments, ("sshp", "ashp")):
        mine = rows[(rows["experiment"] == name) & (rows["setting"] == setting)]
        line = {"BRCD minus": f"{name}, {setting.upper()}", "seeds": str(mine["seeds"].min())}
        for one in mine[mine["method"].isin(RIVALS)].to_dict("records"):
            text = f"{one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
            line[one["method"]] = f"**{text}**" if one["significant"] else text
        lines.append(line)
    return pd.DataFrame(lines)[["BRCD minus", "seeds", *RIVALS]]


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the tables' folders")
    parser.add_argument("--out", type=Path, help="the figure (default: overview.png in that folder)")
    args = parser.parse_args()
    out = args.out or args.results / "overview.png"
    rows = read_differences(args.results, EXPERIMENTS)
    draw_differences(rows, PANELS, out)
    print(f"{markdown(matrix(rows, TUNED))}\n\n{markdown(means(args.results))}\n\nwrote {out}")


if __name__ == "__main__":
    guarded(main)
