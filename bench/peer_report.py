"""The tables and the picture of bench_peers.py, from its JSON: python bench/peer_report.py peers.json [peers.png]."""

import json
import sys
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def by_shape(result: Result) -> dict[str, list[Row]]:
    shapes: dict[str, list[Row]] = {}
    for row in result["rows"]:
        shapes.setdefault(row["shape"], []).append(row)
    return shapes


def fastest(result: Result, rows: list[Row], *, ours: bool, float32: bool | None = None) -> Row | None:
    """The quickest of one side by its best time; float32 None: of any precision."""
    engines = result["engines"]
    side = [row for row in rows if engines[row["engine"]]["ours"] == ours]
    side = [row for row in side if float32 is None or engines[row["engine"]]["float32"] == float32]
    return min(side, key=lambda row: row["best_ms"], default=None)


def milliseconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def title(rows: list[Row]) -> str:
    shape = rows[0]["shape"]
    if shape.startswith("mix"):
        return f"{shape.removeprefix('mix')} sentences ({rows[0]['tokens']:,} tokens)"
    texts, _, tokens = shape.partition("x")
    return f"{texts} text{'s' * (texts != '1')} of {tokens} tokens"


def shape_table(result: Result, rows: list[Row]) -> str:
    """Each engine's ratio is to ours of its own kind: float32 to float32, all others to the faster of our quantised."""
    lines = []
    for row in sorted(rows, key=lambda row: row["best_ms"]):
        kind = result["engines"][row["engine"]]["float32"]
        ours = fastest(result, rows, ours=True, float32=kind) or fastest(result, rows, ours=True)
        ratio = f"{row['best_ms'] / ours['best_ms']:.2f}" if ours else "-"
        name = f"**{row['engine']}**" if result["engines"][row["engine"]]["ours"] else row["engine"]
        lines.append(
            [
                name,
                milliseconds(row["best_ms"]),
                milliseconds(row["median_ms"]),
                ratio,
                f"{row['cosine_mean']:.6f}",
                f"{row['cosine_min']:.6f}",
                f"{row['peak_mb']:,.0f}",
            ]
        )
    return table(["engine", "best ms", "median ms", "times ours", "cosine", "lowest", "peak MB"], lines)


def summary(result: Result) -> str:
    """Where we stand: the fastest of each side, any precision and float32."""
    lines = []
    for rows in by_shape(result).values():
        for kind, float32 in (("any", None), ("float32", True)):
            peer = fastest(result, rows, ours=False, float32=float32)
            ours = fastest(result, rows, ours=True, float32=float32)
            if peer and ours:
                cells = [f"{milliseconds(r['best_ms'])} ({r['cosine_mean']:.4f})" for r in (ours, peer)]
                ratio = f"{ours['best_ms'] / peer['best_ms']:.2f}"
                lines.append([title(rows), kind, ours["engine"], cells[0], peer["engine"], cells[1], ratio])
    return table(["shape", "precision", "ours", "ms (cosine)", "fastest peer", "ms (cosine)", "ours / peer"], lines)


def engine_table(result: Result) -> str:
    lines = []
    for name, facts in result["engines"].items():
        settings = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts["settings"].items())
        numbers = [f"{facts['file_mb']:,.0f}", f"{facts['load_s']:.1f}", f"{facts['loaded_peak_mb']:,.0f}"]
        lines.append([name, facts["versions"], *numbers, facts["dense_heads"], settings])
    lines += [[name, "refused: " + reason, "", "", "", "", ""] for name, reason in result["refused"].items()]
    return table(["engine", "versions", "file MB", "load s", "peak MB of it", "Dense heads", "settings"], lines)


def report(result: Result) -> str:
    machine = result["machine"]
    parts = [
        f"{machine['cpu']} ({machine['flags']}), {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}; {result['threads']} threads, {result['rounds']} rounds in both orders; "
        f"commit {machine['commit']}, {machine['date']}.",
        engine_table(result),
        summary(result),
    ]
    for rows in by_shape(result).values():
        parts += [f"### {title(rows)}", shape_table(result, rows)]
    return "\n\n".join(parts)


def picture(result: Result, path: Path) -> None:
    """A panel for each shape, a bar for each engine: the best time, and its cosine beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = by_shape(result)
    columns = min(3, len(shapes))
    height = 1 + 0.28 * len(result["engines"])
    lines = -(-len(shapes) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, height * lines), squeeze=False)
    for axis in axes.flat[len(shapes) :]:
        axis.remove()
    for axis, rows in zip(axes.flat, shapes.values(), strict=False):
        ordered = sorted(rows, key=lambda row: -row["best_ms"])
        ours = [result["engines"][row["engine"]]["ours"] for row in ordered]
        times = [row["best_ms"] for row in ordered]
        names = [row["engine"].replace("sentence-transformers", "PyTorch") for row in ordered]
        axis.barh(names, times, color=["#c2410c" if mine else "#94a3b8" for mine in ours])
        for y, row in enumerate(ordered):
            label = f" {milliseconds(row['best_ms'])} ms · {row['cosine_mean']:.4f}"
            axis.text(row["best_ms"], y, label, va="center", fontsize=7)
        axis.set_title(title(rows), fontsize=10, loc="left")
        axis.set_xlim(0, 1.5 * max(times))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    note = f"best ms · cosine to float32 · {result['machine']['cpu']}, {result['threads']} threads"
    figure.suptitle(note, fontsize=9, x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text())
    print(report(read))
    if len(sys.argv) > 2:
        picture(read, Path(sys.argv[2]))
