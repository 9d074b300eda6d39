"""Draws image/framework.png, the README's picture of the method: python image/framework.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FROZEN, TRAINED, CODES, LOSS = "#dbe7f5", "#fde3c8", "#e3f1dc", "#f6d5d5"


def box(ax, x, y, w, h, text, colour, size=9):
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec="#555", lw=1))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def arrow(ax, start, end):
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#444", lw=1.1, shrinkA=0, shrinkB=0)
    )


def bits(ax, x, y, values, kept=None, side=0.2):
    for i, v in enumerate(values):
        masked = kept is not None and not kept[i]
        face = "#bbbbbb" if masked else "#2f6db3" if v > 0 else "white"
        ax.add_patch(
            plt.Rectangle((x + i * side, y), side, side, fc=face, ec="#333", lw=0.8, hatch="////" if masked else None)
        )


def main() -> None:
    figure, ax = plt.subplots(figsize=(11, 4.9), layout="constrained")
    ax.set(xlim=(0, 13.4), ylim=(0, 6))
    ax.axis("off")

    box(ax, 0.1, 2.55, 1.3, 0.9, "image\n2 views i, j", "white")
    box(ax, 2.1, 4.2, 1.7, 1.0, "teacher\nbackbone", FROZEN)
    box(ax, 4.1, 4.2, 1.0, 1.0, "hash head", FROZEN)
    box(ax, 2.1, 0.8, 1.7, 1.0, "student\nbackbone", FROZEN)
    box(ax, 4.1, 0.8, 1.0, 1.0, "hash head", TRAINED)
    for y in (4.7, 1.3):
        arrow(ax, (1.45, 3.0), (2.05, y))
        arrow(ax, (3.85, y), (4.05, y))
        arrow(ax, (5.15, y), (5.5, y))

    box(ax, 5.55, 4.2, 2.2, 1.0, "", CODES)
    ax.text(6.65, 4.95, "teacher codes $t_i$, $t_j$", ha="center", fontsize=9)
    bits(ax, 5.85, 4.35, [1, -1, 1, 1, -1, -1, 1, -1])
    box(ax, 5.55, 0.8, 2.2, 1.0, "", CODES)
    ax.text(6.65, 1.55, "student codes $z_i$, $z_j$", ha="center", fontsize=9)
    bits(ax, 5.85, 0.95, [1, -1, -1, 1, -1, 1, 1, -1])

    box(ax, 5.55, 2.45, 2.2, 1.1, "", "white")
    ax.text(6.65, 3.3, "k-means clusters → bit masks $m$", ha="center", fontsize=7.5)
    bits(ax, 5.85, 2.85, [1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1, 0])
    ax.text(6.65, 2.6, "|cluster mean| ≥ margin", ha="center", fontsize=7.5)
    arrow(ax, (6.65, 4.15), (6.65, 3.6))

    box(ax, 8.6, 4.2, 2.5, 1.0, "individual space\n$a_i \\cos(z_i, t_i)$", LOSS)
    box(
        ax,
        8.6,
        2.45,
        2.5,
        1.1,
        "structural semantics\n$(1-a_i)\\cos(m_i z_i, m_i t_{j})$\n$a_i=1$ if $t_j$ left the cluster",
        LOSS,
        8,
    )
    box(ax, 8.6, 0.8, 2.5, 1.0, "negatives: other images,\nnot of the same cluster", LOSS, 8.5)
    for y in (4.7, 3.0, 1.3):
        arrow(ax, (11.15, y), (11.65, 3.0))
    arrow(ax, (7.8, 4.7), (8.55, 4.7))
    arrow(ax, (7.8, 1.3), (8.55, 1.3))
    arrow(ax, (7.8, 3.0), (8.55, 3.0))
    arrow(ax, (7.8, 1.5), (8.55, 4.35))
    arrow(ax, (7.8, 4.5), (8.55, 1.65))
    box(ax, 11.7, 2.45, 1.6, 1.1, "BRCD loss\n+ CIBHash\nof $z_i$, $z_j$", TRAINED)
    ax.plot([12.5, 12.5, 4.6], [2.4, 0.35, 0.35], "--", color="#444", lw=1.1)
    arrow(ax, (4.6, 0.35), (4.6, 0.75))
    ax.text(8.2, 0.12, "gradient", fontsize=8, color="#444")
    for x, colour, text in (
        (0.1, FROZEN, "frozen: features computed once"),
        (3.4, TRAINED, "trained"),
        (4.8, CODES, "codes in {−1, +1}"),
    ):
        ax.add_patch(plt.Rectangle((x, 5.62), 0.25, 0.22, fc=colour, ec="#555", lw=0.8))
        ax.text(x + 0.35, 5.73, text, fontsize=8.5, va="center")
    figure.savefig(Path(__file__).parent / "framework.png", dpi=130)


if __name__ == "__main__":
    main()
