"""The pictures of bench/README.md, from the same files as its tables: python bench/pictures.py (extra `bench`)."""

from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from peer_report import by_shape, milliseconds, title
from record import RESULTS, ROOT, Result
from tables import TASKS, read

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PRECISIONS = {"float32": "-", "int8": "--", "binary": ":"}  # and their lines


def peers(result: Result, path: Path) -> None:
    """A panel for each shape, a bar for each engine: the best time, and its cosine."""
    shapes = by_shape(result)
    columns = min(3, len(shapes))
    height = 1 + 0.28 * len(result["engines"])
    lines = -(-len(shapes) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, height * lines), squeeze=False)
    for axis in axes.flat[len(shapes) :]:
        axis.remove()
    for axis, rows in zip(axes.flat, shapes.values(), strict=False):
        bars(axis, sorted(rows, key=lambda row: -min(row["ms"])))
        axis.set_title(title(rows), fontsize=10, loc="left")
    note = f"best ms · cosine to float32 · {result['machine']['cpu']}, {result['threads']} threads"
    figure.suptitle(note, fontsize=9, x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def bars(axis: Any, rows: list[Result]) -> None:
    times = [min(row["ms"]) for row in rows]
    names = [row["engine"].replace("sentence-transformers", "PyTorch") for row in rows]
    axis.barh(names, times, color=["#c2410c" if name.startswith("gemma_np") else "#94a3b8" for name in names])
    for y, (row, time) in enumerate(zip(rows, times, strict=True)):
        axis.text(time, y, f" {milliseconds(time)} ms · {fmean(row['cosines']):.4f}", va="center", fontsize=7)
    axis.set_xlim(0, 1.5 * max(times))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def quality(result: Result, path: Path) -> None:
    """A panel for each task: quality against dimension, a line for each model and precision."""
    figure, panels = plt.subplots(2, 4, figsize=(14, 6.5), layout="constrained")
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    dims = sorted({row["dim"] for row in result["rows"]})
    for panel, task in zip(panels.flat, TASKS, strict=False):
        for index, name in enumerate(names):
            for precision, line in PRECISIONS.items():
                kept = [row for row in result["rows"] if (row["model"], row["precision"]) == (name, precision)]
                points = sorted((row["dim"], row["scores"][task]) for row in kept)
                label = f"{name}, {precision}"
                panel.plot(*zip(*points, strict=True), line, marker=".", color=f"C{index}", label=label)
        panel.set(title=task, xscale="log")
        panel.set_xticks(dims, [str(dim) for dim in dims])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    for panel in panels[:, 0]:
        panel.set_ylabel("score")
    for panel in panels[-1]:
        panel.set_xlabel("dimension")
    last = panels.flat[-1]
    last.axis("off")
    last.legend(*panels.flat[0].get_legend_handles_labels(), loc="center", fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    for draw in (peers, quality):
        file = RESULTS / f"{draw.__name__}.json"
        if file.exists():
            draw(read(file), ROOT / "bench" / f"{draw.__name__}.png")
