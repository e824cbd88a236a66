"""The tables of bench_peers.py, from its JSON."""

from statistics import fmean, median

from record import Result, caption, markdown, quartiles


def by_shape(result: Result) -> dict[str, list[Result]]:
    shapes: dict[str, list[Result]] = {}
    for row in result["rows"]:
        shapes.setdefault(row["shape"], []).append(row)
    return shapes


def engines_of(result: Result) -> dict[str, Result]:
    return {engine["engine"]: engine for engine in result["engines"]}


def fastest(result: Result, rows: list[Result], *, ours: bool, float32: bool | None = None) -> Result | None:
    """The quickest of one side by its best time; float32 None: of any precision."""
    engines = engines_of(result)
    side = [row for row in rows if engines[row["engine"]]["ours"] == ours]
    side = [row for row in side if float32 is None or engines[row["engine"]]["float32"] == float32]
    return min(side, key=lambda row: min(row["ms"]), default=None)


def milliseconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def title(rows: list[Result]) -> str:
    shape = rows[0]["shape"]
    if shape.startswith("mix"):
        return f"{shape.removeprefix('mix')} sentences ({rows[0]['tokens']:,} tokens)"
    texts, _, tokens = shape.partition("x")
    return f"{texts} text{'s' * (texts != '1')} of {tokens} tokens"


def shape_table(result: Result, rows: list[Result]) -> str:
    """Each engine's ratio is to ours of its own kind: float32 to float32, all others to the faster of our quantised."""
    lines = []
    engines = engines_of(result)
    for row in sorted(rows, key=lambda row: min(row["ms"])):
        engine = engines[row["engine"]]
        ours = fastest(result, rows, ours=True, float32=engine["float32"]) or fastest(result, rows, ours=True)
        lines.append(
            [
                f"**{row['engine']}**" if engine["ours"] else row["engine"],
                milliseconds(min(row["ms"])),
                milliseconds(median(row["ms"])),
                quartiles(row["ms"]),
                f"{min(row['ms']) / min(ours['ms']):.2f}" if ours else "-",
                f"{fmean(row['cosines']):.6f}",
                f"{min(row['cosines']):.6f}",
                f"{row['peak_mb']:,.0f}",
            ]
        )
    head = ["engine", "best ms", "median ms", "quartiles", "times ours", "cosine", "lowest", "peak MB"]
    return markdown(head, lines)


def summary(result: Result) -> str:
    """Where we stand: the fastest of each side, any precision and float32."""
    lines = []
    for rows in by_shape(result).values():
        for kind, float32 in (("any", None), ("float32", True)):
            peer = fastest(result, rows, ours=False, float32=float32)
            ours = fastest(result, rows, ours=True, float32=float32)
            if peer and ours:
                cells = [f"{milliseconds(min(r['ms']))} ({fmean(r['cosines']):.4f})" for r in (ours, peer)]
                ratio = f"{min(ours['ms']) / min(peer['ms']):.2f}"
                lines.append([title(rows), kind, ours["engine"], cells[0], peer["engine"], cells[1], ratio])
    return markdown(["shape", "precision", "ours", "ms (cosine)", "fastest peer", "ms (cosine)", "ours / peer"], lines)


def engine_table(result: Result) -> str:
    lines = []
    for engine in result["engines"]:
        settings = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in engine["settings"].items()).strip()
        numbers = [f"{engine['file_mb']:,.0f}", f"{engine['load_s']:.1f}", f"{engine['loaded_peak_mb']:,.0f}"]
        lines.append([engine["engine"], engine["versions"], *numbers, engine["dense_heads"], settings])
    lines += [[refused["engine"], "refused: " + refused["reason"], *[""] * 5] for refused in result["refused"]]
    return markdown(["engine", "versions", "file MB", "load s", "peak MB of it", "Dense heads", "settings"], lines)


def report(result: Result) -> str:
    note = "Times are of all calls of all rounds, in both orders; quartiles are the first and the third"
    parts = [caption("peers", result, note), engine_table(result), summary(result)]
    for rows in by_shape(result).values():
        parts += [f"### {title(rows)}", shape_table(result, rows)]
    return "\n\n".join(parts)
