"""The tables of bench/README.md and README.md, from bench/results/: python bench/tables.py [--results DIR]

A table's place in a document is between two comments, `<!-- table: NAME -->` and `<!-- end -->`. What is there comes
from results/NAME.json alone (of `NAME short` too), and a test compares. Without that file the place stays as it is.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import peer_report
from record import RESULTS, ROOT, Result, caption, figure, markdown, quartiles, times

DOCUMENTS = (ROOT / "bench" / "README.md", ROOT / "README.md")
PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)
TASKS = ("STS en", "STS de", "STS es", "STS fr", "STS zh", "Banking77", "Cranfield")
UNITS = {"int8": "GOP/s", "float32": "GFLOP/s", "bandwidth": "GB/s"}
TIMES = "Times are best / median (first to third quartile)"


def startup(result: Result) -> str:
    rows: dict[str, list[str]] = {}
    for row in result["rows"]:
        cells = rows.setdefault(row["engine"], [row["engine"]])
        cells += [times(row["seconds"]), f"{max(row['peak_mb']):,.0f}"]
    head = ["engine", "short text, s", "peak MB", "256 tokens, s", "peak MB"]
    return caption("startup", result, TIMES) + "\n\n" + markdown(head, list(rows.values()))


def startup_short(result: Result) -> str:
    """Medians; memory from the short text to 256 tokens."""
    rows: dict[str, list[Result]] = {}
    for row in result["rows"]:
        rows.setdefault(row["engine"], []).append(row)
    cells = [
        [engine, f"{figure(median(texts[0]['seconds']))} s", f"{span([max(text['peak_mb']) for text in texts])} MB"]
        for engine, texts in rows.items()
    ]
    return markdown(["", "first vector after", "peak memory"], cells)


def imports(result: Result) -> str:
    rows = [[f"`{row['statement']}`", times(row["ms"])] for row in result["rows"]]
    return caption("import", result, TIMES) + "\n\n" + markdown(["a process that runs", "ms"], rows)


def floor(result: Result) -> str:
    """The machine's limits, then the model's times at each shape."""
    limits = []
    for peak in result["peaks"]:
        rates = [f"{max(peak[kind]) / 1e9:,.0f} ({rates_of(peak[kind])})" for kind in UNITS]
        limits.append([str(peak["threads"]), *rates])
    names = result["peaks"][0]["instructions"]
    head = ["threads", *(f"{limit(kind, names)}, {unit}" for kind, unit in UNITS.items())]
    rows = []
    for row in result["rows"]:
        bound = max(row["reading_ms"], row["computing_ms"])
        cells = [row["format"], row["shape"], figure(row["reading_ms"]), figure(row["computing_ms"])]
        rows.append([*cells, times(row["ms"]), f"{bound / min(row['ms']):.0%}"])
    note = "Peaks are best (first to third quartile), times best / median (quartiles); the share is of the best times"
    shapes = ["format", "texts x tokens", "reading, ms", "computing, ms", "ours, ms", "of the floor's speed"]
    return "\n\n".join([caption("floor", result, note), markdown(head, limits), markdown(shapes, rows)])


def limit(kind: str, instructions: dict[str, str]) -> str:
    return "reading memory" if kind == "bandwidth" else f"{kind} ({instructions.get(kind, 'none')})"


def rates_of(values: list[float]) -> str:
    return quartiles([value / 1e9 for value in values])


def kernels(result: Result) -> str:
    peaks = {kind: max(result["peaks"][0][kind]) for kind in UNITS}
    rows = []
    for row in result["rows"]:
        speed = row["amount"] / min(row["us"]) * 1e6
        share = f"{speed / peaks[row['peak']]:.0%}"
        rows.append([row["kernel"], times(row["us"]), f"{speed / 1e9:,.0f} {UNITS[row['peak']]}", share])
    found = ", ".join(f"{peaks[kind] / 1e9:,.0f} {unit}" for kind, unit in UNITS.items())
    note = f"{TIMES}; speeds are of the best; column {result['column']}, peaks {found}"
    return caption("kernels", result, note) + "\n\n" + markdown(["kernel", "µs", "speed", "of the peak"], rows)


def formats(result: Result) -> str:
    rows: dict[str, list[str]] = {}
    for row in result["rows"]:
        rows.setdefault(row["weights"], [row["weights"]]).append(cosines(row["cosines"]))
    names = list(dict.fromkeys(row["format"] for row in result["rows"]))
    note = f"Cosines are mean (lowest) of {len(result['rows'][0]['cosines'])} texts"
    return caption("formats", result, note) + "\n\n" + markdown(["weights", *names], list(rows.values()))


def formats_float64(result: Result) -> str:
    rows: dict[tuple[str, int], list[str]] = {}
    for row in result["rows"]:
        key = row["format"], row["tokens"]
        rows.setdefault(key, [key[0], str(key[1])]).append(cosines(row["cosines"]))
    same = "; ".join(
        f"{entry['engine']}: {entry['same']} of {entry['matrices']} matrices have our values, and the embedding table "
        f"is {entry['embedding table']}"
        for entry in result["compared"]
    )
    note = f"Cosines are mean (lowest) of {len(result['rows'][0]['cosines'])} sequences; {same}"
    head = ["format", "tokens", "ours", "llama.cpp"]
    return caption("formats_float64", result, note) + "\n\n" + markdown(head, list(rows.values()))


def cosines(values: list[float]) -> str:
    return f"{fmean(values):.6f} ({min(values):.6f})"


def numpy(result: Result) -> str:
    """Time per text, then start-up and memory."""
    ours, theirs = "gemma_np", "PyTorch"
    rows = []
    for row in result["rows"]:
        ratio = min(row["ms"][ours]) / min(row["ms"][theirs])
        cells = [times(row["ms"][ours]), times(row["ms"][theirs]), f"{ratio:.2f}"]
        rows.append([str(row["tokens"]), *cells, f"{max(row['1 - cosine']):.0e}"])
    engines = [
        [engine["engine"], f"{engine['peak_mb']:,.0f}", times(engine["first_vector_s"]), str(engine["threads"])]
        for engine in result["engines"]
    ]
    note = f"{TIMES}; the ratio is of the best, 1 - cosine is the largest of all rounds"
    head = ["tokens", "gemma_np, ms", "PyTorch, ms", "ratio", "1 - cosine"]
    memory = ["engine", "peak MB after the longest text", "s to the first vector", "threads"]
    return "\n\n".join([caption("numpy", result, note), markdown(head, rows), markdown(memory, engines)])


def endurance(result: Result) -> str:
    """A line for each model and mark; memory is least to most of the rounds."""
    found: dict[tuple[str, int], list[Result]] = {}
    for row in result["rows"]:
        found.setdefault((row["model"], row["texts"]), []).append(row)
    rows = [
        [model, f"{texts:,}", *(span([row[kind] for row in some]) for kind in ("resident_mb", "peak_mb"))]
        for (model, texts), some in found.items()
    ]
    note = "Memory is the lowest to the highest of all rounds"
    head = ["model", "after texts", "resident MB", "peak MB so far"]
    return caption("endurance", result, note) + "\n\n" + markdown(head, rows)


def span(values: list[float]) -> str:
    low, high = (f"{value:,.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def two_models(result: Result) -> str:
    rows = [[row["way"], times(row["ms"])] for row in result["rows"]]
    best, middle = ([pick(row["ms"]) for row in result["rows"]] for pick in (min, median))
    ratios = f"{best[0] / best[1]:.2f} of the other's best time, {middle[0] / middle[1]:.2f} of its median"
    note = f"{TIMES}; at once takes {ratios}"
    return (
        caption("two_models", result, note) + "\n\n" + markdown([f"two {result['model']}, 64 texts each", "ms"], rows)
    )


def sharing(result: Result) -> str:
    """Each model's row: the sum for one process, for two, and so on, and what the last one shares with none."""
    found: dict[str, dict[int, list[Result]]] = {}
    for row in result["rows"]:
        found.setdefault(row["model"], {}).setdefault(row["processes"], []).append(row)
    most = max(row["processes"] for row in result["rows"])
    rows = []
    for model, rounds in found.items():
        sums = [median(row["pss_mb"] for row in rounds[i]) for i in range(1, most + 1)]
        private = median(row["private_mb"] for row in rounds[most])
        rows.append([model, *(f"{mb:,.0f}" for mb in (*sums, private))])
    counts = ["1 process", *(f"{i} processes" for i in range(2, most + 1))]
    head = ["PSS of all, MB", *counts, "private to the last"]
    return caption("sharing", result, "Medians of the rounds") + "\n\n" + markdown(head, rows)


def quality(result: Result) -> str:
    rows = [
        [row["model"], str(row["dim"]), row["precision"], *(f"{row['scores'][task]:.3f}" for task in TASKS)]
        for row in result["rows"]
    ]
    return (
        caption("quality", result, "Scores do not vary between runs")
        + "\n\n"
        + markdown(["model", "dim", "precision", *TASKS], rows)
    )


def quality_weights(result: Result) -> str:
    """All dimensions, as they come."""
    dim = max(row["dim"] for row in result["rows"])
    rows = [
        [row["model"], *(f"{row['scores'][task]:.4f}" for task in TASKS)]
        for row in result["rows"]
        if (row["dim"], row["precision"]) == (dim, "float32")
    ]
    note = f"Scores of float32 vectors of {dim} dimensions; they do not vary between runs"
    return caption("quality_weights", result, note) + "\n\n" + markdown(["weights", *TASKS], rows)


TABLES: dict[str, Callable[[Result], str]] = {
    "peers": peer_report.report,
    "startup": startup,
    "startup short": startup_short,
    "floor": floor,
    "kernels": kernels,
    "formats": formats,
    "formats_float64": formats_float64,
    "numpy": numpy,
    "endurance": endurance,
    "two_models": two_models,
    "sharing": sharing,
    "import": imports,
    "quality": quality,
    "quality_weights": quality_weights,
}


def read(path: Path) -> Result:
    result: Result = json.loads(path.read_text())
    return result


def show(path: Path, name: str | None = None) -> str:
    """The table of a result's file, with its caption."""
    return TABLES[name or path.stem](read(path))


def rewritten(text: str, results: Path) -> str:
    """A document with the tables of all files that there are."""

    def place(match: re.Match[str]) -> str:
        path = results / f"{match[2].split()[0]}.json"
        return match[1] + show(path, match[2]) + match[4] if path.exists() else match[0]

    return PLACE.sub(place, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: bench/results")
    results = parser.parse_args().results
    for document in DOCUMENTS:
        document.write_text(rewritten(document.read_text(), results))


if __name__ == "__main__":
    main()
