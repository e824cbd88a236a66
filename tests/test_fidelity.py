"""The cosines that `gemma-np quantize` reports."""

from pathlib import Path

import numpy as np
import pytest

from gemma_np import EmbeddingGemma
from gemma_np.fidelity import SAMPLE, cosines, float32_vectors
from gemma_np.opening import open_source


def test_the_float_vectors_are_the_model_s(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_NP_KERNELS", "numpy")
    model = EmbeddingGemma(small)
    ids, _ = model.prepare(SAMPLE)
    np.testing.assert_array_equal(float32_vectors(open_source(small), ids), model.embed_ids(ids))


def test_cosines_are_those_of_plain_python() -> None:
    a = np.array([[3, 4], [1, 0], [0, 0], [1e30, 1e30]], np.float32)
    b = np.array([[4, 3], [0, 5], [1, 1], [-1e30, -1e30]], np.float32)
    # in float64, but for the result: float32's rounding, 2^-24
    np.testing.assert_allclose(cosines(a, b), [0.96, 0, 0, -1], rtol=2**-24)


def test_the_sample_speaks_many_tongues() -> None:
    assert len(set(SAMPLE)) == len(SAMPLE) >= 12
    assert max(map(len, SAMPLE)) > 400
    assert min(map(len, SAMPLE)) < 8
