"""BRCD against others in every table of a folder, in one figure: ``python -m scripts.overview``.

Reads results/*/significance.csv; writes results/overview.png. A point is BRCD's mAP minus the other's, mean over seeds,
with the 95 % interval of that comparison alone; it is filled where the two are significantly different after the
correction for all comparisons of its table (p_holm < 0.05).
"""

from pathlib import Path

import pandas as pd

from retrieval.significance import LEVEL
from utils.errors import UserError, first_line, guarded
from utils.figures import draw_differences
from utils.options import Parser

# Whom BRCD is compared with. In ASHP the plain student and RKD are near chance everywhere: only the tables show it.
PANELS = (
    ("sshp", "none"),
    ("sshp", "kl"),
    ("sshp", "rkd"),
    ("sshp", "brcd no-mask"),
    ("ashp", "kl"),
    ("ashp", "brcd no-mask"),
)


def read_differences(folder: Path) -> pd.DataFrame:
    """A line for each comparison with "brcd" that has an interval: of which table (folder and bits), setting, method,
    difference, low, high, and whether it is significant.

    Raises:
        UserError: a file is damaged, or there is none.
    """
    tables = []
    for file in sorted(folder.glob("*/significance.csv")):
        try:
            found = pd.read_csv(file).dropna(subset="p_holm")
            turned = found.query("method == 'brcd'")  # of a table that is against another row
            signs = {"difference": -turned["difference"], "low": -turned["high"], "high": -turned["low"]}
            found = pd.concat([found.query("less == 'brcd'"), turned.assign(method=turned["less"], **signs)])
            lengths = found["bits"].nunique()
            name = found["bits"].map(
                lambda bits, f=file, n=lengths: f.parent.name + (f", {bits} bits" if n > 1 else "")
            )
            tables.append(
                pd.DataFrame(
                    {
                        "table": name,
                        "bits": found["bits"],
                        "setting": found["setting"],
                        "method": found["method"],
                        "difference": -found["difference"],  # BRCD minus the other
                        "low": -found["high"],
                        "high": -found["low"],
                        "told": found["p_holm"] < LEVEL,
                    }
                ).sort_values("bits", kind="stable")
            )
        except (OSError, ValueError, KeyError, pd.errors.UndefinedVariableError) as error:
            raise UserError(f"{file}: not what scripts.report writes ({first_line(error)})") from None
    if not tables:
        raise UserError(f"{folder}: no */significance.csv in it; scripts.report writes them")
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the tables' folders")
    parser.add_argument("--out", type=Path, help="the figure (default: overview.png in that folder)")
    args = parser.parse_args()
    out = args.out or args.results / "overview.png"
    draw_differences(read_differences(args.results), PANELS, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    guarded(main)
