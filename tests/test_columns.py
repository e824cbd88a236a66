"""Which column runs, and why."""

import sys
from pathlib import Path

import pytest
from gemma_np.kernels.choice import Choice, choose
from gemma_np.kernels.columns import BY_NAME

from gemma_np import EmbeddingGemma
from gemma_np.errors import GemmaWarning

COLUMN = choose().column

pytestmark = pytest.mark.skipif(COLUMN is None, reason="no kernels run on this machine")


def test_a_column_is_forced_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plain", " Plain "):
        monkeypatch.setenv("GEMMA_NP_KERNELS", name)
        assert choose().column is BY_NAME["plain"]
    monkeypatch.setenv("GEMMA_NP_KERNELS", "numpy")
    assert choose() == Choice(None, "GEMMA_NP_KERNELS asks for it")
    monkeypatch.setenv("GEMMA_NP_KERNELS", "")
    assert choose().column is COLUMN


@pytest.mark.parametrize(("wish", "why"), [("avx3", "there is no such column"), ("other", "this processor lacks ")])
def test_a_column_that_cannot_run_is_one_warning_with_the_choices(
    wish: str, why: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COLUMN is not None
    impossible = "neon" if COLUMN.name != "neon" else "avx2"
    monkeypatch.setenv("GEMMA_NP_KERNELS", impossible if wish == "other" else wish)
    with pytest.warns(GemmaWarning, match=why) as caught:
        model = EmbeddingGemma(small, quantization="q8_0")
    (warning,) = caught
    assert f"expected one of {COLUMN.name}, " in str(warning.message)
    assert str(warning.message).endswith("plain, numpy")
    assert model.column is COLUMN


def test_without_llvmlite_numpy_computes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    choice = choose()
    assert choice.column is None
    assert "llvmlite, which loads compiled kernels, cannot be imported" in choice.reason
    assert EmbeddingGemma(small, quantization="q8_0").encode("a text").shape == (64,)
