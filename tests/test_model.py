"""The forward pass against the float64 reference, and what it promises: float32 only, same bits in any company."""

import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import FLOAT32
from reference_float64 import Reference

from gemma_np.model import attend, embed, trunk
from gemma_np.pipeline import Pipeline
from gemma_np.weights.loading import DenseWeights, Weights

RADIUS = 16  # of `small`'s sliding layers


@pytest.fixture(scope="module")
def pipeline(small: Path) -> Iterator[Pipeline]:
    """On NumPy: this file is about model.py. Kernels have theirs, test_forward.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_NP_KERNELS", "numpy")
        yield Pipeline(small)


@pytest.fixture(scope="module")
def reference(small: Path) -> Reference:
    return Reference(small)


def random_ids(pipeline: Pipeline, T: int) -> Any:
    return np.random.default_rng(T).integers(4, pipeline.config.V, T).astype(np.int32)


@pytest.mark.parametrize(
    "T", [1, 2, 15, 16, 17, 18, 31, 32, 33, 34, 100, 255, 256, 257, 258, 511, 512, 513, 514, 1000, 2048]
)
def test_vectors_match_the_float64_reference_at_every_length(pipeline: Pipeline, reference: Reference, T: int) -> None:
    ids = random_ids(pipeline, T)
    ours = pipeline.embed_ids([ids])[0]
    error = np.abs(ours - reference.embed(ids.tolist()))
    assert error.max() <= FLOAT32, f"entry {error.argmax()} differs by {error.max():.1e}"


def test_a_window_that_is_wrong_by_one_would_be_seen(pipeline: Pipeline, reference: Reference) -> None:
    ids = random_ids(pipeline, 100)
    layers = tuple(
        dataclasses.replace(layer, radius=layer.radius and layer.radius + 1) for layer in pipeline.config.layers
    )
    wrong = embed(ids, pipeline.weights, dataclasses.replace(pipeline.config, layers=layers), pipeline.modules)
    assert np.abs(wrong - reference.embed(ids.tolist())).max() > 100 * FLOAT32


def test_a_text_has_the_same_bits_alone_and_in_any_batch(pipeline: Pipeline) -> None:
    texts = [random_ids(pipeline, T) for T in (3, 300, 40, 1, 257, 17)]
    together = pipeline.embed_ids(texts)
    for i, ids in enumerate(texts):
        np.testing.assert_array_equal(pipeline.embed_ids([ids])[0], together[i])
    np.testing.assert_array_equal(pipeline.embed_ids(texts[::-1])[::-1], together)


def test_every_step_is_shown_under_the_checkpoints_names(pipeline: Pipeline) -> None:
    seen: dict[str, Any] = {}
    ids = random_ids(pipeline, 5)
    embed(
        ids, pipeline.weights, pipeline.config, pipeline.modules, trace=lambda name, array: seen.update({name: array})
    )
    D, layer = pipeline.config.D, pipeline.config.layers[0]
    block = {
        "input_layernorm": (5, D),
        "self_attn.q_proj": (5, layer.N * layer.H),
        "self_attn.k_proj": (5, layer.K * layer.H),
        "self_attn.v_proj": (5, layer.K * layer.H),
        "self_attn.q_norm": (5, layer.N, layer.H),
        "self_attn.k_norm": (5, layer.K, layer.H),
        "self_attn.o_proj": (5, D),
        "post_attention_layernorm": (5, D),
        "pre_feedforward_layernorm": (5, D),
        "mlp.gate_proj": (5, pipeline.config.F),
        "mlp.act_fn": (5, pipeline.config.F),
        "mlp.up_proj": (5, pipeline.config.F),
        "mlp.down_proj": (5, D),
        "post_feedforward_layernorm": (5, D),
    }
    expected = {"embed_tokens": (5, D)}
    for i in range(len(pipeline.config.layers)):
        expected |= {f"layers.{i}.{name}": shape for name, shape in block.items()} | {f"layers.{i}": (5, D)}
    expected |= {"norm": (5, D), "1_Pooling": (D,)}
    expected |= {head.name: (getattr(head, "outputs", pipeline.full_dim),) for head in pipeline.modules.heads}
    assert {name: array.shape for name, array in seen.items()} == expected
    assert list(seen) == list(expected) or set(seen) == set(expected)


class Float32Only(np.ndarray[Any, Any]):
    """Every array that NumPy derives from this one is of this class too, and none may be float64."""

    def __array_finalize__(self, _: object) -> None:
        assert self.dtype != np.float64, "a float64 array appeared"


class Rows:
    """The embedding table's rows, watched."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def rows(self, ids: Any) -> Any:
        return self.table.rows(ids).view(Float32Only)


def watched(weights: Weights) -> Weights:
    """The same weights, so that everything computed with them is watched."""
    layers = tuple(
        dataclasses.replace(
            layer,
            **{field: array.view(Float32Only) for field, array in vars(layer).items() if array is not None},
        )
        for layer in weights.layers
    )
    dense = {name: DenseWeights(parts.weight.view(Float32Only), parts.bias) for name, parts in weights.dense.items()}
    return Weights(Rows(weights.embed_tokens), layers, weights.norm.view(Float32Only), dense)  # type: ignore[arg-type]


def test_no_float64_appears_anywhere(pipeline: Pipeline) -> None:
    for T in (1, 40, 300):
        vector = embed(random_ids(pipeline, T), watched(pipeline.weights), pipeline.config, pipeline.modules)
        assert isinstance(vector, Float32Only)
        assert vector.dtype == np.float32


def test_the_watch_for_float64_sees_one() -> None:
    with pytest.raises(AssertionError, match="float64"):
        np.ones(3, np.float32).view(Float32Only) * np.sqrt(np.array([768.0]))


def test_long_texts_never_build_an_array_of_all_scores(pipeline: Pipeline) -> None:
    ids = random_ids(pipeline, 4096)
    tracemalloc.start()
    trunk(ids, pipeline.weights, pipeline.config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    all_scores = pipeline.config.layers[0].N * 4096 * 4096 * 4
    assert peak < all_scores / 4, f"peak {peak / 1e6:.0f} MB, all scores have {all_scores / 1e6:.0f} MB"


def test_attention_over_equal_keys_is_the_mean_of_the_values_in_reach() -> None:
    T, radius = 600, 100
    q = np.zeros((T, 2, 4), np.float32)
    k = np.zeros((T, 1, 4), np.float32)
    v = np.random.default_rng(0).standard_normal((T, 1, 4), dtype=np.float32)
    ours = attend(q, k, v, radius)
    for i in range(T):
        mean = v[max(0, i - radius) : i + radius + 1, 0].astype(np.float64).mean(axis=0)
        # a weighted sum of at most 201 values: sqrt(201) * 2^-24, 8e-7 of their mean size, where errors are random
        np.testing.assert_allclose(ours[i], np.concatenate([mean, mean]), atol=1e-6)
