"""BRCD against others in every independent experiment: ``python -m scripts.overview``.

Reads the significance.csv of the tables named here; writes results/overview.png, a forest plot, and prints the matrix
of results/README.md. Differences are BRCD's mAP minus the other's, means over seeds, each with the 95 % interval of
that comparison alone; significant are only those that their table declared before the runs (``--primary``).
"""

from pathlib import Path

import pandas as pd

from retrieval.significance import LEVEL
from retrieval.tables import markdown
from utils.errors import UserError, first_line, guarded
from utils.figures import draw_differences
from utils.options import Parser

# Folder of results/ and code length; tables that repeat the runs of another are left out.
EXPERIMENTS = {
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
PANELS = (("sshp", "none"), ("sshp", "kl"), ("sshp", "rkd"), ("ashp", "kl"))
MATRIX = ("CIFAR-10, 64 bits", "MIRFLICKR", "Tiny-ImageNet-100")


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


def matrix(rows: pd.DataFrame, experiments: tuple[str, ...]) -> pd.DataFrame:
    """Text: a line an experiment, a column for each (setting, method) of the panels."""
    lines = []
    for name in experiments:
        mine = rows[rows["experiment"] == name]
        by_pair = {(one["setting"], one["method"]): one for one in mine.to_dict("records")}
        line = {"BRCD minus": name, "seeds": str(mine["seeds"].min())}
        for pair in PANELS:
            one = by_pair[pair]
            text = f"{one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
            line[f"{pair[1]}, {pair[0].upper()}"] = f"**{text}**" if one["significant"] else text
        lines.append(line)
    return pd.DataFrame(lines)


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the tables' folders")
    parser.add_argument("--out", type=Path, help="the figure (default: overview.png in that folder)")
    args = parser.parse_args()
    out = args.out or args.results / "overview.png"
    rows = read_differences(args.results, EXPERIMENTS)
    draw_differences(rows, PANELS, out)
    print(f"{markdown(matrix(rows, MATRIX))}\n\nwrote {out}")


if __name__ == "__main__":
    guarded(main)
