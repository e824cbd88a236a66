"""Kernels test themselves once, after they were compiled, and give way to NumPy where they are wrong."""

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma_np.kernels import cache
from gemma_np.kernels.choice import choose
from gemma_np.kernels.objects import BuildError, Compiled

from gemma_np import EmbeddingGemma, GemmaWarning, pipeline, selftest
from gemma_np.fast import unfit

COLUMN: Any = choose().column
FORMATS = ("f32", "q4_0", "q8_0")

pytestmark = pytest.mark.skipif(COLUMN is None, reason="no kernels run on this machine")


def compiled(format: str) -> Compiled:
    return cache.kernels_for(COLUMN, (format,))


@pytest.mark.parametrize("format", FORMATS)
def test_right_kernels_pass_far_above_the_limit(format: str) -> None:
    assert unfit(selftest.CONFIG, selftest.MODULES) is None
    selftest.check(COLUMN, (format,), compiled(format))
    cosine = selftest.lowest_cosine(COLUMN, format, compiled(format))
    assert 1 - cosine < (1 - selftest.COSINES[format]) / 5


def broken(right: Compiled, harm: Any) -> Compiled:
    """The same kernels, but for what is done to the plan before each pass."""
    entry = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)

    def forward(plan: int, thread: int) -> None:
        harm(plan)
        right.forward(plan, thread)

    return Compiled(entry(forward), right.encode)


@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_kernel_is_seen(format: str) -> None:
    """As if one layer were left out."""
    from gemma_np.kernels.plan import PLAN

    def harm(plan: int) -> None:
        fields = np.ctypeslib.as_array((ctypes.c_int64 * len(PLAN)).from_address(plan))
        fields[PLAN.index("L")] = 1

    with pytest.raises(BuildError, match=rf"\({COLUMN.name}, {format}\) give other vectors than NumPy"):
        selftest.check(COLUMN, (format,), broken(compiled(format), harm))


def test_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "lowest_cosine", lambda *_: float("nan"))
    with pytest.raises(BuildError):
        selftest.check(COLUMN, FORMATS, compiled("f32"))


def test_wrong_kernels_are_not_kept_and_numpy_computes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = EmbeddingGemma(small).encode("a text")
    code = cache._read(cache.path_of(COLUMN, ("f32",)))
    monkeypatch.setenv("GEMMA_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_loaded", {})
    monkeypatch.setattr(cache, "compiled", lambda *_: code)  # as if it came from the compiler
    monkeypatch.setitem(selftest.COSINES, "f32", 2.0)  # no kernel is as good as that
    with pytest.warns(GemmaWarning, match="give other vectors than NumPy .*; NumPy computes instead, more slowly"):
        model = EmbeddingGemma(small)
    assert model.column is None
    assert not list(tmp_path.glob("*.o"))
    np.testing.assert_allclose(model.encode("a text"), expected, atol=1e-6)  # two float32 passes of unit vectors


def test_it_runs_after_a_compilation_alone(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start of a process with kernels in the cache does not import it."""
    code = "import sys; from gemma_np import EmbeddingGemma; EmbeddingGemma(sys.argv[1]).encode('a')\n"
    code += "assert 'gemma_np.selftest' not in sys.modules"
    EmbeddingGemma(small)
    subprocess.run([sys.executable, "-c", code, str(small)], check=True)
    monkeypatch.setattr(pipeline, "_tested", lambda *_: pytest.fail("tested again"))
    EmbeddingGemma(small)
