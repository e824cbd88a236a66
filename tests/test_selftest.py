"""Kernels test themselves once, after they were compiled, and give way to NumPy where they are wrong."""

import ctypes
import shutil
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


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return cache.kernels_for(COLUMN, FORMATS)


def test_right_kernels_pass_far_above_the_limit(compiled: Compiled) -> None:
    assert unfit(selftest.CONFIG, selftest.MODULES) is None
    selftest.check(COLUMN, FORMATS, compiled)
    for format in FORMATS:
        cosine = selftest.lowest_cosine(COLUMN, format, compiled)
        assert 1 - cosine < (1 - selftest.COSINES[format]) / 5


def broken(compiled: Compiled, harm: Any) -> Compiled:
    """The same kernels, but for what is done to the plan before each pass."""
    entry = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)

    def forward(plan: int, thread: int) -> None:
        harm(plan)
        compiled.forward(plan, thread)

    return Compiled(entry(forward), compiled.encode)


@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_kernel_is_seen(compiled: Compiled, format: str) -> None:
    """As if the last norm read one number too far."""
    from gemma_np.kernels.plan import PLAN

    def harm(plan: int) -> None:
        fields = np.ctypeslib.as_array((ctypes.c_int64 * len(PLAN)).from_address(plan))
        fields[PLAN.index("L")] = 1  # the second layer is forgotten

    with pytest.raises(BuildError, match=rf"\({COLUMN.name}, {format}\) give other vectors than NumPy"):
        selftest.check(COLUMN, (format,), broken(compiled, harm))


def test_nan_is_wrong(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "lowest_cosine", lambda *_: float("nan"))
    with pytest.raises(BuildError):
        selftest.check(COLUMN, FORMATS, compiled)


def test_wrong_kernels_are_not_kept_and_numpy_computes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = EmbeddingGemma(small).encode("a text")
    monkeypatch.setenv("GEMMA_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_loaded", {})
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


def test_a_source_with_a_fault_is_found(small: Path, tmp_path: Path) -> None:
    """The whole way: a constant of the kernels' source is wrong, they compile, and NumPy computes."""
    root = Path(__file__).parents[1]
    for name in ("gemma_np", "kernels"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("nano", "__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    source = tmp_path / "kernels/rows.py"
    text = source.read_text(encoding="utf-8")
    assert "0.044715" in text
    source.write_text(text.replace("0.044715", "3.044715"), encoding="utf-8")  # GELU's constant
    code = "import sys; sys.path.insert(0, sys.argv[2]); import gemma_np; from gemma_np import EmbeddingGemma\n"
    code += "assert gemma_np.__file__.startswith(sys.argv[2])\n"
    code += "model = EmbeddingGemma(sys.argv[1]); print(model.column, model.encode('a text').tolist())"
    environment = {"GEMMA_NP_CACHE": str(tmp_path / "cache"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(small), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "give other vectors than NumPy" in done.stderr
    assert done.stdout.startswith("None ")
    assert not list((tmp_path / "cache").glob("*.o"))
