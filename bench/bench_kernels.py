"""Single kernels on one thread: checked by the tests of tests/test_kernels.py, then timed, with the machine's peaks.

    python -m pytest bench/bench_kernels.py           (extras `test` and `bench`)

The shapes are the full-size model's. Times are the thread's time on its processor, so that a busy neighbour counts
little; each of about 100 rounds takes 5 ms or more, of as many calls as that takes. The peaks are measured in the same
run by floor.py: products are compared with int8 or float32 multiply-adds on registers, attention with float32 ones, the
rest with reading memory. There a kernel may pass 100 %: its arrays are in the cache.
BENCH_RESULTS names another folder than bench/results for what is measured.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import exported
import floor
import test_kernels as judge
from exported import Kernels, Record
from gemma_np.kernels import reference
from gemma_np.kernels.choice import choose
from gemma_np.kernels.plan import BLOCK, FORMATS, PLAN, SHARED_BYTES, UNPACKED
from record import RESULTS, Result, Run
from tables import show

from gemma_np.weights.packed import pack

pytestmark = pytest.mark.benchmark(timer=time.thread_time, min_time=0.005, max_time=0.5)
D, F, G, H = 768, 1152, 3, 256
ROWS = (1, 16, 64, 256)


@dataclass
class Table:
    """What is kept at the end; peaks are measured first."""

    peaks: dict[str, list[float]]
    rows: list[Result]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    run = Run("kernels", argparse.Namespace(results=os.environ.get("BENCH_RESULTS", RESULTS), threads=1))
    made = Table(floor.peaks(1), [])
    yield made
    path = run.keep(made.rows, column=choose().name, peaks=[floor.peak_row(1, made.peaks)])
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + show(path))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    column = choose().column
    if column is None:
        pytest.skip("GEMMA_NP_KERNELS asks for NumPy alone")
    return Kernels(column, exported.compiled(column))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def measure(benchmark: Any, table: Table) -> Callable[..., None]:
    def run(name: str, what: str, amount: float, call: Callable[[], None]) -> None:
        """`amount`: operations or bytes of a call, compared with the peak `what`."""
        benchmark(call)
        microseconds = [1e6 * seconds for seconds in benchmark.stats.stats.data]
        table.rows.append({"kernel": name, "peak": what, "amount": amount, "us": microseconds})

    return run


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("format", FORMATS)
def test_product(kernels: Kernels, rng: np.random.Generator, measure: Any, format: str, rows: int) -> None:
    wide = 2 * F
    judge.test_product(kernels, rng, format, (rows, D, wide))
    a = judge.inputs(kernels, rows, D, format, rng)
    matrix = judge.matrix(pack(rng.standard_normal((wide, D), dtype=np.float32), format))
    shared, out = kernels.room(SHARED_BYTES // 8, np.int64, fill=0), kernels.room((len(a), wide))
    ones, scratch = np.ones(judge.MAX_TILE, np.float32), kernels.room(UNPACKED * D, np.uint8)
    run = kernels.bound("product", shared, 1, a, rows, matrix, out, scratch, ones)

    def call() -> None:
        shared[:] = 0  # tickets
        run()

    kind = "float32" if format == "f32" else "int8"
    measure(f"product, {format}, {rows} x {D} x {wide}", kind, 2 * rows * D * wide, call)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("format", FORMATS)
def test_geglu_product(kernels: Kernels, rng: np.random.Generator, measure: Any, format: str, rows: int) -> None:
    judge.test_gelu_product(kernels, rng, format, (rows, D, F))
    a = judge.inputs(kernels, rows, D, format, rng)
    matrix = judge.matrix(pack(rng.standard_normal((2 * F, D), dtype=np.float32) * np.float32(0.05), format))
    shared, ones = kernels.room(SHARED_BYTES // 8, np.int64, fill=0), np.ones(judge.MAX_TILE, np.float32)
    scratch, rounded = kernels.room(UNPACKED * D + 4 * (BLOCK + judge.MAX_TILE) * 64, np.uint8), int(format != "f32")
    out = kernels.room((rows, F // 32), reference.ROUNDED) if rounded else kernels.room((rows, F))
    run = kernels.bound("geglu_product", shared, 1, a, rows, matrix, out, rounded, scratch, ones)

    def call() -> None:
        shared[:] = 0
        run()

    kind = "float32" if format == "f32" else "int8"
    measure(f"gate, up and GELU, {format}, {rows} x {D} x {2 * F}", kind, 4 * rows * D * F, call)


@pytest.mark.parametrize("T", [256, 2048])
def test_attention(kernels: Kernels, rng: np.random.Generator, measure: Any, T: int) -> None:
    """A full layer: every query sees every key."""
    q = rng.standard_normal((T, G, H), dtype=np.float32) * np.float32(H**-0.5)
    k, v = rng.standard_normal((2, T, H), dtype=np.float32)
    expected, bound = reference.attend(q, k, v, T), judge.attention_bound(q, k, v, T)
    judge.close(judge.attended(kernels, q, k, v, T), expected, bound)
    rows = kernels.floats[0]
    queries = kernels.room((T * G + rows - 1, H), fill=0)
    queries[: T * G] = q.reshape(-1, H)
    panels = kernels.room((2 * -(-T // 64), H, 32), fill=0)
    panels[: T // 32] = k.reshape(T // 32, 32, H).transpose(0, 2, 1)
    out, scratch = kernels.room((T, G * H // 32), reference.ROUNDED), kernels.room((3 + 64 + H) * (16 * G + rows - 1))
    runs = [
        kernels.bound("attend", queries, panels, v, T, G, H, start, start + 16, T, scratch, out, out.strides[0], 1)
        for start in range(0, T, 16)
    ]

    def call() -> None:
        for run in runs:
            run()

    measure(f"attention, {T} tokens", "float32", 4 * G * H * T * T, call)


@pytest.mark.parametrize("rounded", [0, 1], ids=["float32", "int8"])
def test_norm(kernels: Kernels, rng: np.random.Generator, measure: Any, rounded: int) -> None:
    judge.test_norm_row_and_its_rounding(kernels, rng)
    x, weight = kernels.room((256, D), fill=rng.standard_normal((256, D))), np.ones(D, np.float32)
    out = kernels.room((256, D // 32), reference.ROUNDED) if rounded else kernels.room((256, D))
    name = "norm and rounding" if rounded else "norm"
    run = kernels.bound("norm_each", x, 256, D, weight, 1e-6, out, rounded)
    measure(f"{name}, 256 x {D}", "bandwidth", x.nbytes + out.nbytes, run)


def test_rope(kernels: Kernels, rng: np.random.Generator, measure: Any) -> None:
    judge.test_norm_and_rope(kernels, rng)
    x, weight = kernels.room((256, H), fill=rng.standard_normal((256, H))), np.ones(H, np.float32)
    cos, sin = rng.random((2, H // 2), dtype=np.float32)
    out = kernels.room((256, H))
    run = kernels.bound("rotate_each", x, 256, H, weight, 1e-6, cos, sin, 1.0, out)
    measure(f"norm and RoPE, 256 x {H}", "bandwidth", x.nbytes + out.nbytes, run)


@pytest.mark.parametrize("name", ["exp", "gelu"])
def test_function(kernels: Kernels, rng: np.random.Generator, measure: Any, name: str) -> None:
    check = judge.test_gelu if name == "gelu" else judge.test_exp_is_within_two_units_in_the_last_place
    check(kernels)
    x, out = kernels.room(256 * F, fill=rng.standard_normal(256 * F)), kernels.room(256 * F)
    measure(f"{name}, 256 x {F}", "bandwidth", x.nbytes + out.nbytes, kernels.bound(f"{name}_row", x, x.size, out))


def test_pool(kernels: Kernels, rng: np.random.Generator, measure: Any) -> None:
    judge.test_pool(kernels, rng)
    T = 256
    h, pooled = kernels.room((T, D), fill=rng.standard_normal((T, D))), kernels.room((1, D))
    shared, texts = kernels.room(SHARED_BYTES // 8, np.int64, fill=0), np.array([[0, T, 0, 0]])
    plan = Record(PLAN, threads=1, shared=shared, D=D, B=1, text_table=texts, h=h, pooled=pooled)
    measure(f"mean, {T} x {D}", "bandwidth", h.nbytes, kernels.bound("pool", plan, 0))
