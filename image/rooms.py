"""The rooms of this repository and who imports whom, drawn from the source: python image/rooms.py"""

import ast
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
# Where each room stands: column and row; arrows point down.
PLACES = {
    "commands": (1.0, 3),
    "scripts": (0.0, 3),
    "search": (2.0, 3),
    "retrieval": (0.9, 2.1),
    "data": (2.0, 1.6),
    "losses": (0.0, 0.9),
    "models": (1.3, 0.9),
    "utils": (1.0, 0),
}
WHAT = {
    "commands": "train_teacher, distill,\nevaluate, export",
    "scripts": "shell scripts, grids,\nreports",
    "search": "a leaf: index, page,\nsite, Milvus",
    "retrieval": "what measures: codes,\nmetrics, tables",
    "data": "data sets, transforms,\nviews, features",
    "losses": "one loss a file,\nmethods, masks",
    "models": "backbones, heads,\nengines",
    "utils": "what all rooms use: runs, files, cache, the training loop",
}


def room_of(file: Path) -> str:
    return file.parts[0] if len(file.parts) > 1 else "commands"


def files() -> list[Path]:
    """Python files of the rooms, relative to the root."""
    tops = [*ROOT.glob("*.py"), *(file for room in PLACES for file in (ROOT / room).rglob("*.py"))]
    return sorted(file.relative_to(ROOT) for file in tops)


def code_lines(source: str) -> int:
    """Lines of code, without blanks, comments and docstrings."""
    tree = ast.parse(source)
    strings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in strings for n, line in lines)


def imports() -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """How many files of a room import another room, and each room's lines of code."""
    arrows: dict[tuple[str, str], int] = {}
    lines = dict.fromkeys(PLACES, 0)
    for file in files():
        source, here = (ROOT / file).read_text(encoding="utf-8"), room_of(file)
        lines[here] += code_lines(source)
        names = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        for there in names & PLACES.keys() - {here}:
            arrows[here, there] = arrows.get((here, there), 0) + 1
    return arrows, lines


def draw(path: Path) -> None:
    arrows, lines = imports()
    figure, ax = plt.subplots(figsize=(9, 6.4), layout="constrained")
    ax.set(xlim=(-0.5, 2.5), ylim=(-0.5, 3.5))
    boxes = {}
    for room, (x, y) in PLACES.items():
        name = room if room == "commands" else f"{room}/"
        text = f"{name}\n{WHAT[room]}\n{lines[room]:,} lines"
        style = {"boxstyle": "round,pad=0.5", "fc": "#eef3f9", "ec": "#33506e"}
        boxes[room] = ax.text(x, y, text, ha="center", va="center", fontsize=9, bbox=style, zorder=5).get_bbox_patch()
    figure.canvas.draw()  # gives the boxes their sizes, where arrows end
    for (here, there), count in arrows.items():
        if there == "utils":  # from everywhere
            continue
        (x0, y0), (x1, y1) = PLACES[here], PLACES[there]
        bend = 0.3 if x0 == x1 and y0 - y1 > 1.2 else 0.05
        how = {"arrowstyle": "-|>", "lw": 0.6 + 0.12 * count, "color": "#7a8899", "patchA": boxes[here]}
        how |= {"patchB": boxes[there], "connectionstyle": f"arc3,rad={bend}"}
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=how)
    ax.axis("off")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    draw(ROOT / "image" / "rooms.png")
    for (one, other), number in sorted(imports()[0].items()):
        print(f"{one:10} -> {other:10} {number:3} files")
