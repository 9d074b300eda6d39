"""Figures of results."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.files import written_aside

LEGEND = {"sshp": "SSHP", "ashp": "ASHP", "matched": "ASHP, bits matched", "teacher": "teacher"}
RIGHT, WRONG = "#2a9d43", "#d1342f"
COLOURS = {  # by method
    **{"teacher": "black", "none": "0.55", "brcd": "#d1342f", "kl": "#1f77b4", "rkd": "#2a9d43"},
    **{"bce": "#ff7f0e", "cosine": "#9467bd", "mse": "#8c564b", "crd": "#e377c2", "crcd": "#bcbd22"},
    **{"packd": "#17becf", "pkt": "#1b5e20", "sp": "#5c4033", "sskd": "#4b0082"},
}
PLAIN: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
}


def _save(figure: Figure, path: Path) -> None:
    with written_aside(path) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)


def draw_cluster_numbers(rows: list[dict], path: Path) -> None:
    """Elbow (inertia) and silhouette over the number of clusters."""
    numbers = [r["clusters"] for r in rows]
    with plt.rc_context(PLAIN):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
        left.plot(numbers, [r["inertia"] for r in rows], "o-")
        left.set(title="Elbow", xlabel="clusters K", ylabel="k-means inertia")
        right.plot(numbers, [r["silhouette"] for r in rows], "o-", color="tab:orange")
        right.set(title="Silhouette", xlabel="clusters K", ylabel="mean silhouette")
    _save(figure, path)


def draw_curves(reports: dict[str, dict], path: Path, title: str) -> None:
    """Precision@k and precision-recall of several search settings; ``reports`` by setting."""
    with plt.rc_context(PLAIN):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for name, report in reports.items():
            left.plot(np.arange(1, len(report["curve"]) + 1), report["curve"], label=LEGEND[name])
            curve = report["precision_recall"]
            filled = np.array(curve["answered"]) >= 0.5  # a precision of few queries says little
            right.plot(
                np.array(curve["recall"])[filled], np.array(curve["precision"])[filled], ".-", ms=3, label=LEGEND[name]
            )
        left.set(title="Precision at k", xlabel="k retrieved", ylabel="precision", ylim=(0, 1))
        right.set(
            title="Precision-recall, a point a Hamming radius",
            xlabel="recall",
            ylabel="precision",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        right.legend(frameon=False)
        figure.suptitle(title)
    _save(figure, path)


def draw_retrieved(rows: list[tuple[np.ndarray, list[tuple[np.ndarray, bool]]]], path: Path, title: str) -> None:
    """Queries at the left, what they retrieved to the right, best first: right ones framed green, wrong ones red.

    Args:
        rows: (query [H, W, 3] uint8, [(retrieved [H, W, 3], whether it is relevant), ...]).
    """
    width = 1 + max(len(retrieved) for _, retrieved in rows)
    figure, axes = plt.subplots(
        len(rows), width, figsize=(0.8 * width, 0.85 * len(rows) + 0.5), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for line, (query, retrieved) in zip(axes, rows, strict=True):
        line[0].imshow(query)
        for ax, (image, right) in zip(line[1:], retrieved, strict=False):
            ax.imshow(image)
            ax.spines[:].set(visible=True, color=RIGHT if right else WRONG, linewidth=2.5)
    axes[0, 0].set_title("query", fontsize=8)
    axes[0, 1].set_title("nearest first", fontsize=8, loc="left")
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def colour_of(method: str) -> str:
    """One colour a method in every figure; its variants have it too."""
    return COLOURS.get(method.split()[0], "0.5")


def _reach(sizes: pd.Series) -> float:
    """Where a panel of differences ends: what is four times as far away as all before it is marked at the edge."""
    kept = 0.0
    for size in sorted(sizes.dropna()):
        if kept and size > max(4 * kept, 0.02):
            break
        kept = size
    return 1.2 * kept or 0.02


def draw_paired(rows: pd.DataFrame, methods: list[str], ours: str, path: Path) -> None:
    """mAP of each method minus that of ``ours``, a dot a seed and a line at the mean, in both settings; ``rows``:
    report's. What lies outside is an arrow with its mean."""
    groups = list(rows.groupby(["teacher", "bits"]))
    others = [name for name in methods if name != ours]
    size = (7 + 0.07 * max(map(len, others)), (0.22 * len(others) + 1) * len(groups) + 0.3)
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, sharey=True, layout="constrained")
        for line, ((teacher, bits), group) in zip(axes, groups, strict=True):
            for ax, setting in zip(line, ("sshp", "ashp"), strict=True):
                mine = group[group["setting"] == setting]
                by_seed = mine.pivot_table(index="seed", columns="method", values="map").reindex(columns=methods)
                less = by_seed.sub(by_seed[ours], axis=0)[others]
                reach = _reach(less.abs().max())
                for y, name in enumerate(others):
                    seeds, mean, colour = less[name].dropna(), less[name].mean(), colour_of(name)
                    if abs(mean) > reach:
                        ax.plot(np.copysign(0.99 * reach, mean), y, "<" if mean < 0 else ">", color=colour, ms=5)
                        where = {"ha": "left" if mean < 0 else "right", "va": "center", "fontsize": 7}
                        ax.text(np.copysign(0.94 * reach, mean), y, f"{mean:+.2f}", **where)
                    elif len(seeds):
                        ax.plot(seeds, [y] * len(seeds), "o", color=colour, ms=4, alpha=0.6, mec="none")
                        ax.plot(mean, y, "|", color=colour, ms=13, mew=2)
                ax.axvline(0, color="0.3", lw=1)
                ax.set(xlim=(-reach, reach), title=f"{setting.upper()}: mAP − {by_seed[ours].mean():.4f} of {ours}")
                ax.locator_params("x", nbins=7)
            line[0].set_yticks(range(len(others)), others, fontsize=7)
            line[0].set_ylabel(f"{teacher}, {bits} bits", fontsize=7)
        axes[0, 0].invert_yaxis()
    _save(figure, path)


def line_styles(names: list[str]) -> dict[str, dict]:
    """Of each method: its colour, BRCD thick; variants of one method differ in their dashes."""
    styles: dict[str, dict] = {}
    for name in sorted(set(names), key=lambda name: (len(name.split()), name)):  # the plain one first
        of_method = sum(other.split()[0] == name.split()[0] for other in styles)
        dashes = ("--" if name.startswith("teacher") else "-", ":", "--", "-.")[of_method % 4]
        styles[name] = {"color": colour_of(name), "ls": dashes, "lw": 2.2 if name.startswith("brcd") else 1.2}
    return styles


def _draw_deviations(ax: Axes, rows: pd.DataFrame, by: str, **style: Any) -> None:
    """Mean and standard deviation of mAP over the column ``by``."""
    stats = rows.groupby(by)["map"].agg(["mean", "std"])
    ax.errorbar(stats.index, stats["mean"], stats["std"].fillna(0), marker="o", ms=3, capsize=2, **style)


def draw_by_bits(rows: pd.DataFrame, methods: list[str], path: Path) -> None:
    """mAP over the code length, a line a method, SSHP and ASHP side by side."""
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        styles, lengths = line_styles(methods), sorted(rows["bits"].unique())
        for ax, setting in zip(axes, ("sshp", "ashp"), strict=True):
            for name in methods:
                mine = rows[(rows["method"] == name) & ((rows["setting"] == setting) | name.startswith("teacher"))]
                _draw_deviations(ax, mine, "bits", label=name, **styles[name])
            ax.set(title=setting.upper(), xlabel="bits", ylabel="mAP@k", xscale="log")
            ax.set_xticks(lengths, lengths)
            ax.minorticks_off()
        axes[1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1, 1), loc="upper left")
    _save(figure, path)


def draw_precision_recall(curves: dict[str, dict[str, dict[str, np.ndarray]]], path: Path) -> None:
    """Precision over recall, a line a method and a point a Hamming radius; by setting, then method."""
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(
            1, len(curves), figsize=(4.2 * len(curves) + 1, 3.4), squeeze=False, layout="constrained"
        )
        styles = line_styles([name for of_setting in curves.values() for name in of_setting])
        for ax, (setting, methods) in zip(axes[0], sorted(curves.items(), reverse=True), strict=True):
            for name, curve in methods.items():
                filled = curve["answered"] >= 0.5  # a precision of few queries says little
                ax.plot(curve["recall"][filled], curve["precision"][filled], label=name, **styles[name])
            ax.set(title=setting.upper(), xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
        axes[0, 0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def draw_sensitivity(sweeps: dict[str, pd.DataFrame], path: Path) -> None:
    """mAP over alpha, margin and the number of clusters."""
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(
            1, len(sweeps), figsize=(3.2 * len(sweeps), 3), squeeze=False, sharey=True, layout="constrained"
        )
        for ax, (name, rows) in zip(axes[0], sweeps.items(), strict=True):
            for setting in ("sshp", "ashp"):
                _draw_deviations(ax, rows[rows["setting"] == setting], "value", label=setting.upper())
            ax.set(xlabel=name)
        axes[0, 0].set_ylabel("mAP@k")
        axes[0, 0].legend(frameon=False)
    _save(figure, path)


def draw_differences(rows: pd.DataFrame, panels: tuple[tuple[str, str], ...], path: Path) -> None:
    """BRCD minus another in mAP: a line an experiment, a panel for each (setting, method); ``rows``: overview's. An
    interval that leaves its panel ends in an arrow."""
    experiments = list(dict.fromkeys(rows["experiment"]))
    size = (1.9 * len(panels) + 2.4, 0.27 * len(experiments) + 1)
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained")
        for ax, (setting, method) in zip(axes[0], panels, strict=True):
            mine = rows[(rows["setting"] == setting) & (rows["method"] == method)]
            reach = _reach(mine[["low", "high"]].abs().max(axis=1))
            at, colour = [experiments.index(name) for name in mine["experiment"]], colour_of(method)
            ax.hlines(at, mine["low"], mine["high"], color=colour, lw=1.2)
            face = mine["significant"].map({True: colour, False: "white"})
            ax.scatter(mine["difference"], at, 26, face, ec=colour, zorder=3)
            for end in ("low", "high"):
                for y, value in zip(at, mine[end], strict=True):
                    if abs(value) > reach:
                        ax.plot(np.copysign(0.98 * reach, value), y, "<" if value < 0 else ">", color=colour, ms=6)
            ax.axvline(0, color="0.3", lw=1)
            ax.set(xlim=(-reach, reach))
            ax.set_title(f"{setting.upper()}: BRCD − {method}", fontsize=9)
            ax.locator_params("x", nbins=4)
        axes[0, 0].set_yticks(range(len(experiments)), experiments, fontsize=8)
        axes[0, 0].invert_yaxis()
        figure.supxlabel("difference in mAP with its 95 % interval; filled: a declared claim, p < 0.05", fontsize=8)
    _save(figure, path)


def draw_redundancy(means: dict[str, np.ndarray], margin: float, path: Path) -> None:
    """|bit mean| per cluster as heat maps, [K, b] each, and their distributions."""
    with plt.rc_context({**PLAIN, "axes.grid": False}):
        figure, axes = plt.subplots(1, len(means) + 1, figsize=(4 * len(means) + 3.2, 2.8), layout="constrained")
        for ax, (name, values) in zip(axes, means.items(), strict=False):
            order = np.argsort(-values.mean(axis=0))
            image = ax.imshow(values[:, order], vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
            ax.set(title=f"{name}: |bit mean|", xlabel="bits, most decided first", ylabel="cluster")
            axes[-1].hist(values.ravel(), bins=np.linspace(0, 1, 21), histtype="step", label=name, lw=1.5)
        figure.colorbar(image, ax=list(axes[:-1]), shrink=0.9)
        axes[-1].axvline(margin, color="0.4", ls="--", lw=1, label="margin")
        axes[-1].set(xlabel="|bit mean|", ylabel="(cluster, bit) pairs")
        axes[-1].legend(frameon=False)
    _save(figure, path)
