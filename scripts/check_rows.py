"""Does a repetition agree with what is published? ``python -m scripts.check_rows AGAIN PUBLISHED``, two folders with
rows.csv. Same bits on the same kind of machine; elsewhere mAP within 0.002, or the exit status is 1.
"""

from pathlib import Path

import pandas as pd

from utils.errors import UserError, guarded
from utils.options import Parser

TOLERANCE = 0.002
KEY = ["bits", "setting", "seed", "cell"]


def read(folder: Path) -> pd.DataFrame:
    """The rows by code length, setting, seed and cell: the name of a student's run folder, or "teacher"."""
    try:
        rows = pd.read_csv(folder / "rows.csv")
        alone = rows["method"].str.startswith("teacher")
        return rows.assign(cell=rows["run"].map(lambda run: Path(run).name).mask(alone, "teacher")).set_index(KEY)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / 'rows.csv'}: not what scripts.report writes ({error})") from None


def compare(again: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Of the rows in both: mAP here and there, their difference, and whether every metric has the same bits."""
    metrics = [c for c in published.select_dtypes("number").columns if c in again and c != "k"]
    rows = again.index.intersection(published.index)
    a, b = again.loc[rows, metrics], published.loc[rows, metrics]
    same = ((a == b) | (a.isna() & b.isna())).all(axis=1)
    return pd.DataFrame(
        {"published": b["map"], "again": a["map"], "difference": a["map"] - b["map"], "same bits": same}
    )


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("again", type=Path, help="folder of the repetition's report")
    parser.add_argument("published", type=Path, help="results/NAME")
    args = parser.parse_args()
    found = compare(read(args.again), read(args.published))
    if found.empty:
        raise UserError(f"{args.again} and {args.published}: no row in common; nothing could be compared")
    print(found.reset_index().to_string(index=False, float_format="%.6f"))
    off = found[~(found["difference"].abs() <= TOLERANCE)]
    if len(off):
        raise UserError(f"{len(off)} of {len(found)} rows differ by more than {TOLERANCE} in mAP from {args.published}")
    print(f"{len(found)} rows agree within {TOLERANCE}, {found['same bits'].sum()} in every bit")


if __name__ == "__main__":
    guarded(main)
