"""Which differences between methods are statistically significant: paired t-tests over seeds, Holm's correction."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests

from retrieval.tables import order

LEVEL = 0.05


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
    corrected, known = np.full(len(p), np.nan), ~np.isnan(p)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected


def reference(methods: Collection[str], against: str | None = None) -> str | None:
    """The method that others are compared with: ``against``, or the plain BRCD, or the first with other options."""
    if against:
        return against if against in methods else None
    ours = sorted((m for m in methods if m.split()[0] == "brcd"), key=order)
    return ours[0] if ours else None


def significance(table: pd.DataFrame, against: str | None = None, primary: Collection[str] = ()) -> pd.DataFrame:
    """Of one table: every method less BRCD (or ``against``) over the seeds that both have.

    Args:
        primary: the comparisons declared before the runs, such as "sshp:kl"; p is corrected over these, at every code
            length, and the others, which are exploratory, have none. Without any, over all of the table.
    """
    pairs = []
    for (bits, setting), group in table[table["base"] != "teacher"].groupby(["bits", "setting"]):
        by_seed = group.pivot(index="seed", columns="method", values="map")
        ours = reference(by_seed.columns, against)
        for name in sorted(set(by_seed.columns) - {ours}, key=order) if ours else ():
            differences = (by_seed[name] - by_seed[ours]).dropna().to_numpy()
            if len(differences):
                pairs.append(({"bits": bits, "setting": setting, "method": name, "less": ours}, differences))
    facts = {name: table.iloc[-1][name] for name in ("dataset", "data", "teacher", "student")}
    claimed = np.array([not primary or f"{pair['setting']}:{pair['method']}" in primary for pair, _ in pairs])
    found = [facts | pair | {"seeds": len(d)} | paired_t(d, max(claimed.sum(), 1)) for pair, d in pairs]
    if not found:
        return pd.DataFrame()
    return pd.DataFrame(found).assign(p_holm=holm(np.where(claimed, [one["p"] for one in found], np.nan)))


def verdict(compared: pd.DataFrame) -> str:
    """What a table's test says of BRCD and each other method, in words; nothing else may."""
    tested = compared.dropna(subset="p_holm")
    if not compared["p"].notna().any():
        return "One seed: no difference in this table can be tested."
    if not len(tested):
        return "No comparison of this table was declared before the runs: all are exploratory."
    ours, words = tested["less"].iloc[0], []
    for name, group in tested.groupby("method", sort=False):
        sure = group[group["p_holm"] < LEVEL]
        higher, lower = (sure["difference"] < 0).sum(), (sure["difference"] > 0).sum()
        counts = [f"significantly {word} in {count}" for count, word in ((higher, "higher"), (lower, "lower")) if count]
        words.append(f"{name}: {' and '.join(counts) or 'not significantly different in any'} of {len(group)}")
    explored = (compared["p"].notna() & compared["p_holm"].isna()).any()
    each = "the rows declared before the runs, all else is exploratory" if explored else "each row"
    return (
        f"{ours} compared with {each} (paired t-test over {tested['seeds'].min()} seeds, Holm-adjusted for "
        f"{len(tested)} comparisons, p < {LEVEL}): {'; '.join(words)}."
    )
