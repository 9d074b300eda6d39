"""Figures of results."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.files import written_aside

LEGEND = {"sshp": "SSHP", "ashp": "ASHP", "matched": "ASHP, bits matched", "teacher": "teacher"}
RIGHT, WRONG = "#2a9d43", "#d1342f"
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


def draw_curves(reports: dict[str, dict], path: Path, title: str = "") -> None:
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
        if title:
            figure.suptitle(title)
    _save(figure, path)


def draw_retrieved(rows: list[tuple[np.ndarray, list[tuple[np.ndarray, bool]]]], path: Path, title: str = "") -> None:
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
    if title:
        figure.suptitle(title, fontsize=9)
    _save(figure, path)


def draw_bars(rows: pd.DataFrame, methods: list[str], path: Path) -> None:
    """mAP of each method at each code length in both settings, with the deviation over seeds; ``rows``: report's."""
    groups = list(rows.groupby(["teacher", "bits"]))
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(
            len(groups),
            1,
            figsize=(max(3.5, 0.62 * len(methods) + 1.2), 2.6 * len(groups) + 1),
            squeeze=False,
            sharex=True,
            layout="constrained",
        )
        for ax, ((teacher, bits), group) in zip(axes[:, 0], groups, strict=True):
            for shift, setting in ((-0.2, "sshp"), (0.2, "ashp")):
                stats = (
                    group[group["setting"] == setting].groupby("method")["map"].agg(["mean", "std"]).reindex(methods)
                )
                bars = ax.bar(
                    np.arange(len(methods)) + shift,
                    stats["mean"],
                    0.38,
                    yerr=stats["std"].fillna(0),
                    capsize=2,
                    label=setting.upper(),
                )
                ax.bar_label(bars, [f"{v:.2f}" if v == v else "" for v in stats["mean"]], fontsize=6, padding=2)
            ax.set(ylim=(0, 1), ylabel="mAP@k", title=f"{teacher}, {bits} bits")
        axes[-1, 0].set_xticks(np.arange(len(methods)), methods, rotation=35, ha="right", fontsize=7)
        axes[0, 0].legend(frameon=False, loc="upper left", ncols=2)
    _save(figure, path)


def line_styles(names: list[str]) -> dict[str, dict]:
    """One look a method in every figure: the teacher black and dashed, BRCD thick, its variants dotted."""
    others = sorted({n for n in names if n != "teacher" and not n.startswith("brcd")})
    variants = sorted({n for n in names if n.startswith("brcd ")})
    return (
        {"teacher": {"color": "black", "ls": "--", "lw": 1.2}}
        | {name: {"color": f"C{i % 9 + 1}", "lw": 1} for i, name in enumerate(others)}
        | {"brcd": {"color": "C0", "lw": 2.2}}
        | {name: {"color": f"C{(i + 3) % 10}", "ls": ":", "lw": 2.2} for i, name in enumerate(variants)}
    )


def draw_by_bits(rows: pd.DataFrame, methods: list[str], path: Path) -> None:
    """mAP over the code length, a line a method, SSHP and ASHP side by side."""
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        styles, lengths = line_styles(methods), sorted(rows["bits"].unique())
        for ax, setting in zip(axes, ("sshp", "ashp"), strict=True):
            for name in methods:
                mine = rows[(rows["method"] == name) & ((rows["setting"] == setting) | (name == "teacher"))]
                stats = mine.groupby("bits")["map"].agg(["mean", "std"])
                ax.errorbar(
                    stats.index,
                    stats["mean"],
                    stats["std"].fillna(0),
                    label=name,
                    marker="o",
                    ms=3,
                    capsize=2,
                    **styles[name],
                )
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
                stats = rows[rows["setting"] == setting].groupby("value")["map"].agg(["mean", "std"])
                ax.errorbar(
                    stats.index,
                    stats["mean"],
                    stats["std"].fillna(0),
                    marker="o",
                    ms=3,
                    capsize=2,
                    label=setting.upper(),
                )
            ax.set(xlabel=name)
        axes[0, 0].set_ylabel("mAP@k")
        axes[0, 0].legend(frameon=False)
    _save(figure, path)


def draw_differences(rows: pd.DataFrame, panels: tuple[tuple[str, str], ...], path: Path) -> None:
    """BRCD minus another in mAP: a line a table, a panel for each (setting, method); ``rows``: overview's."""
    shown = rows[[pair in panels for pair in zip(rows["setting"], rows["method"], strict=True)]]
    tables = list(dict.fromkeys(shown["table"]))
    with plt.rc_context(PLAIN):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(2.1 * len(panels) + 2, 0.24 * len(tables) + 1),
            squeeze=False,
            sharey=True,
            layout="constrained",
        )
        for ax, (setting, method) in zip(axes[0], panels, strict=True):
            mine = shown[(shown["setting"] == setting) & (shown["method"] == method)]
            at = [tables.index(name) for name in mine["table"]]
            ax.hlines(at, mine["low"], mine["high"], color="C0", lw=1)
            ax.scatter(mine["difference"], at, 22, mine["told"].map({True: "C0", False: "white"}), ec="C0", zorder=3)
            ax.axvline(0, color="0.3", lw=1)
            reach = 1.3 * max(mine["difference"].abs().max(), 0.005) if len(mine) else 1  # a wide interval is cut
            ax.set(title=f"{setting.upper()}: BRCD − {method.removeprefix('brcd ')}", xlim=(-reach, reach))
        axes[0, 0].set_yticks(range(len(tables)), tables, fontsize=7)
        axes[0, 0].invert_yaxis()
        figure.supxlabel("difference in mAP, 95 % interval; filled: significant (Holm-adjusted p < 0.05)", fontsize=8)
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
