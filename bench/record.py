"""What every bench writes: bench/results/NAME.json, with all raw numbers and where they come from.

A file says on which machine, with which command, packages and commit, when, and has every time of every round. Tables
are made from these files alone (tables.py), pictures too (pictures.py). Here is also how tables write numbers.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
MEASURED = ("gemma_np", "kernels", ":(glob)bench/*.py")  # files whose changes make a commit's name untrue
FLAGS = "avx2 avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 amx_int8 amx_bf16 asimddp i8mm bf16"
Result = dict[str, Any]


def log(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


class Run:
    """One run of a bench. What it depends on is read when it begins: files may change while it measures."""

    def __init__(self, name: str, arguments: argparse.Namespace, packages: Sequence[str] = ()) -> None:
        self.path = Path(arguments.results) / f"{name}.json"
        self.facts: Result = {
            "command": command(sys.argv),
            "date": time.strftime("%Y-%m-%d %H:%M"),
            **commit(),
            "machine": machine(),
            "versions": versions(("numpy", "numba", *packages)),
        }
        for name in ("threads", "rounds"):
            if getattr(arguments, name, None) is not None:
                self.facts[name] = getattr(arguments, name)

    def keep(self, rows: list[Result], **more: Any) -> Path:
        """Write the file: `rows` are the table's, each with its raw numbers."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(as_json({**self.facts, **more, "rows": rows}))
        part.replace(self.path)
        log(f"wrote {self.path}")
        return self.path


def as_json(result: Result) -> str:
    """A line for each entry, and one for each row: files that a diff can show."""

    def value(entry: Any) -> str:
        if isinstance(entry, list) and entry and isinstance(entry[0], dict):
            return "[\n  " + ",\n  ".join(json.dumps(rounded(row), default=str) for row in entry) + "\n ]"
        return json.dumps(rounded(entry), default=str)

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {value(entry)}" for key, entry in result.items()) + "\n}\n"


def rounded(value: Any) -> Any:
    """Floats to 7 significant digits, which is more than a clock or a cosine of float32 vectors has."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return value


def command(words: Sequence[str]) -> str:
    """The command, with the folders of this machine left out: of a path only its last name."""
    script, *rest = words
    known = Path(script).resolve()
    start = str(known.relative_to(ROOT)) if known.is_relative_to(ROOT) else "-m pytest"
    return " ".join(["python", start, *(word if word.startswith("bench/") else Path(word).name for word in rest)])


def commit() -> Result:
    """The commit, and whether what is measured has changed since; unknown for a gemma_np that is not this clone's."""
    spec = find_spec("gemma_np")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != ROOT:
        log(f"gemma_np is not this clone's, so its commit is unknown; expected pip install -e {ROOT}")
        return {"commit": "unknown", "changed": True}

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False).stdout

    return {
        "commit": git("rev-parse", "--short", "HEAD").strip() or "unknown",
        "changed": bool(git("status", "--porcelain", "--", *MEASURED).strip()),
    }


def machine() -> Result:
    """What times depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "flags": " ".join(flag for flag in FLAGS.split() if flag in flags),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load": os.getloadavg()[0],  # processes that wanted a core in the minute before
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def bench_parser(doc: str | None, *, rounds: int | None = None, threads: int | None = 2) -> argparse.ArgumentParser:
    """A parser with the options that all benches have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: bench/results")
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads, help=f"default: {threads}")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    return parser


def in_turn(names: Sequence[str], number: int) -> Sequence[str]:
    """The order of a round: one way, then the other, so that a slow minute of the machine hits all."""
    return names[:: -1 if number % 2 else 1]


# How tables write numbers.


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def figure(value: float) -> str:
    """Three significant digits, and all that stand before the point."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def quartiles(values: Sequence[float]) -> str:
    """The first and the third: half of the values lie between them."""
    first, _, third = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{figure(first)} to {figure(third)}"


def times(values: Sequence[float]) -> str:
    """best / median (quartiles)."""
    return f"{figure(min(values))} / {figure(median(values))} ({quartiles(values)})"


def caption(name: str, result: Result, *notes: str) -> str:
    """Where a table comes from, in one paragraph."""
    machine = result["machine"]
    where = f"{machine['cpu']} ({machine['flags']}), {machine['cores']} cores, {machine['memory_gb']} GB"
    counted = [f"{result[name]} {name}" for name in ("threads", "rounds") if name in result]
    packages = [f"{package} {number}" for package, number in result["versions"].items()]
    state = f"commit {result['commit']}{' with changes' if result['changed'] else ''}, {result['date']}"
    return (
        f"{'; '.join([*notes, *counted])}. {where}, {machine['system']}, load {machine['load']:.1f} at the start; "
        f"{', '.join(packages)}. `{result['command']}`, {state}; [raw numbers](results/{name}.json)."
    )
