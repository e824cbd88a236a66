"""Every table of bench/README.md comes from a file in bench/results/, and says what its raw numbers say.

No times are asserted but those that are made up here.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OLD = "Measured before raw results were kept"  # how the caption of a table without a file begins
FIVE = [3.0, 1.0, 10.0, 2.0, 4.0]  # in order 1, 2, 3, 4, 10: quartiles 2 and 4
CELL = "1.00 / 3.00 (2.00 to 4.00)"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of bench/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def facts(**more: Any) -> dict[str, Any]:
    """What each file says of its origin."""
    machine = {"cpu": "a CPU", "flags": "avx2", "cores": 2, "memory_gb": 24, "system": "Linux", "load": 0.25}
    versions = {"numpy": "2.4.6"}
    where = {"command": "python bench/x.py", "date": "2026-01-02 03:04", "commit": "abc1234", "changed": False}
    return {**where, "machine": machine, "versions": versions, **more}


PEAKS = {"threads": 1, "int8": [2e11, 1e11], "float32": [1e11], "bandwidth": [4e10], "instructions": {"int8": "dot"}}
SCORES = dict.fromkeys(("STS en", "STS de", "STS es", "STS fr", "STS zh", "Banking77"), 0.5) | {"Cranfield": 0.25}
# name, what a file has, lines that the table must have
MADE: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "startup",
        {"rows": [{"engine": "ours", "text": t, "seconds": FIVE, "peak_mb": [98.6, 97]} for t in ("short", "long")]},
        [f"| ours | {CELL} | 99 | {CELL} | 99 |"],
    ),
    (
        "startup short",
        {
            "rows": [
                {"engine": "ours", "text": "short", "seconds": FIVE, "peak_mb": [165.1, 164]},
                {"engine": "ours", "text": "256 tokens", "seconds": [9.0], "peak_mb": [175.4]},
            ]
        },
        ["| ours | 3.00 s | 165 to 175 MB |"],
    ),
    ("import", {"rows": [{"statement": "pass", "ms": FIVE}]}, [f"| `pass` | {CELL} |"]),
    (
        "floor",
        {
            "peaks": [PEAKS],
            "rows": [{"format": "q8_0", "shape": "1x16", "reading_ms": 0.5, "computing_ms": 0.25, "ms": FIVE}],
        },
        [
            "| threads | int8 (dot), GOP/s | float32 (none), GFLOP/s | reading memory, GB/s |",
            "| 1 | 200 (125 to 175) | 100 (100 to 100) | 40 (40.0 to 40.0) |",
            f"| q8_0 | 1x16 | 0.50 | 0.25 | {CELL} | 50% |",
        ],
    ),
    (
        "kernels",
        {"column": "avx2", "peaks": [PEAKS], "rows": [{"kernel": "k", "peak": "int8", "amount": 1e5, "us": FIVE}]},
        [f"| k | {CELL} | 100 GOP/s | 50% |"],  # 1e5 operations in a microsecond, of 2e11 a second
    ),
    (
        "formats",
        {"rows": [{"weights": "full", "format": f, "cosines": [1.0, 0.5]} for f in ("q8_0", "q4_0")]},
        ["| weights | q8_0 | q4_0 |", "| full | 0.750000 (0.500000) | 0.750000 (0.500000) |"],
    ),
    (
        "formats_float64",
        {
            "compared": [{"engine": "L", "matrices": 170, "same": 169, "embedding table": "Q6_K"}],
            "rows": [
                {"format": "q8_0", "engine": "O", "tokens": 16, "cosines": [1.0, 0.5]},
                {"format": "q8_0", "engine": "L", "tokens": 16, "cosines": [0.25]},
            ],
        },
        ["| q8_0 | 16 | 0.750000 (0.500000) | 0.250000 (0.250000) |", "L: 169 of 170 matrices"],
    ),
    (
        "numpy",
        {
            "rows": [{"tokens": 16, "ms": {"gemma_np": FIVE, "PyTorch": [2.0]}, "1 - cosine": [1e-12, 2e-12]}],
            "engines": [{"engine": "gemma_np", "first_vector_s": FIVE, "peak_mb": 726.6, "threads": 2}],
        },
        [f"| 16 | {CELL} | 2.00 / 2.00 (2.00 to 2.00) | 0.50 | 2e-12 |", f"| gemma_np | 727 | {CELL} | 2 |"],
    ),
    (
        "endurance",
        {"rows": [{"model": "nano", "texts": 1000, "resident_mb": mb, "peak_mb": 108.2} for mb in (104.1, 105.4)]},
        ["| nano | 1,000 | 104 to 105 | 108 |"],
    ),
    (
        "two_models",
        {"model": "nano", "rows": [{"way": "at once", "ms": FIVE}, {"way": "in turn", "ms": [2.0, 6.0]}]},
        [f"| at once | {CELL} |", "0.50 of the other's best time, 0.75 of its median"],
    ),
    (
        "sharing",
        {
            "rows": [
                {"model": "nano", "processes": i, "pss_mb": 600 * i + mb, "private_mb": 30 * i + mb}
                for mb in (0.2, 1.8, 4)
                for i in (1, 2)
            ]
        },
        ["| PSS of all, MB | 1 process | 2 processes | private to the last |", "| nano | 602 | 1,202 | 62 |"],
    ),
    (
        "quality",
        {"rows": [{"model": "nano", "dim": 64, "precision": "int8", "scores": SCORES}]},
        ["| nano | 64 | int8 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 0.250 |"],
    ),
    (
        "quality_weights",
        {
            "rows": [
                {"model": "nano q8_0", "dim": dim, "precision": precision, "scores": SCORES}
                for dim, precision in ((384, "float32"), (384, "int8"), (256, "float32"))
            ]
        },
        ["| nano q8_0 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.2500 |"],
    ),
]


@pytest.mark.parametrize(("name", "found", "lines"), MADE, ids=[name for name, *_ in MADE])
def test_a_table_says_what_its_raw_numbers_say(
    bench: Any, tmp_path: Path, name: str, found: dict[str, Any], lines: list[str]
) -> None:
    path = tmp_path / f"{name.split()[0]}.json"
    path.write_text(json.dumps(facts(**found)))
    document = f"before\n\n<!-- table: {name} -->\n\nold\n\n<!-- end -->\n\nafter\n"
    written = bench("tables").rewritten(document, tmp_path)
    assert bench("tables").rewritten(written, tmp_path) == written
    assert "old" not in written
    for line in lines:
        assert line in written
    if name != "startup short":
        assert "commit abc1234, 2026-01-02 03:04" in written
        assert f"(results/{path.name})" in written


def test_changes_since_the_commit_are_told(bench: Any) -> None:
    assert "commit abc1234 with changes, 2026" in bench("record").caption("x", facts(changed=True), "a note")


def test_every_table_has_a_made_up_result_here(bench: Any) -> None:
    assert {name for name, *_ in MADE} | {"peers"} == set(bench("tables").TABLES)  # peers: test_bench_peers.py


def test_every_table_of_the_documents_is_what_its_file_gives(bench: Any) -> None:
    tables = bench("tables")
    texts = [document.read_text() for document in tables.DOCUMENTS]
    places = [name for text in texts for _, name, *_ in tables.PLACE.findall(text)]
    assert sorted(places) == sorted(tables.TABLES), "each table has one place, and each place a table"
    for document, text in zip(tables.DOCUMENTS, texts, strict=True):
        assert text.count("<!-- table") == text.count("<!-- end -->") == len(tables.PLACE.findall(text))
        assert text == tables.rewritten(text, tables.RESULTS), f"{document}: run python bench/tables.py"


def test_a_table_without_a_file_says_so(bench: Any) -> None:
    tables = bench("tables")
    for document in tables.DOCUMENTS:
        for _, name, table, _ in tables.PLACE.findall(document.read_text()):
            if not (tables.RESULTS / f"{name.split()[0]}.json").exists():
                assert table.startswith(OLD), name


def test_every_file_of_results_is_shown_and_names_its_commit(bench: Any) -> None:
    tables = bench("tables")
    for path in tables.RESULTS.iterdir() if tables.RESULTS.is_dir() else []:
        assert path.suffix == ".json"
        assert path.stem in tables.TABLES, path
        result = tables.read(path)
        assert result["commit"] != "unknown", path
        assert not result["changed"], f"{path}: measured with changes that are in no commit"
        assert result["date"]
        assert result["command"].startswith("python ")


def test_benches_keep_every_round(bench: Any, tmp_path: Path) -> None:
    """The two that need nothing else: a process for each import, and for each long run."""

    def run(script: str, *options: str) -> Any:
        command = [sys.executable, str(ROOT / "bench" / script), *options, "--results", str(tmp_path), "--rounds", "2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        path = tmp_path / f"{script.removeprefix('bench_').removesuffix('.py')}.json"
        assert done.stdout == bench("tables").show(path) + "\n"
        return json.loads(path.read_text())

    result = run("bench_import.py")
    assert [len(row["ms"]) for row in result["rows"]] == [2, 2, 2, 2]
    assert result["command"] == f"python bench/bench_import.py --results {tmp_path.name} --rounds 2"
    assert {"cpu", "cores", "system"} <= set(result["machine"])
    result = run("endurance.py", "nano", "--texts", "40")
    assert {row["round"] for row in result["rows"]} == {0, 1}
    assert result["rows"][-1]["texts"] == 40
