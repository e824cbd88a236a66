"""The benches of the peers and of the machine's floor: they count and report what they say. Nothing is timed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_bench_results as results

from gemma_np.weights.quantize import QUANTIZATIONS

bench = results.bench


def test_every_batch_has_texts_that_no_other_had(bench: Any) -> None:
    batches = bench("bench_peers").Batches("32x128", [])
    texts = [tuple(text.tolist()) for _ in range(4) for text in batches.new()]
    assert len(set(texts)) == len(texts) == 4 * 32
    assert {len(text) for text in texts} == {128}
    assert all(text[0] == 2 and text[-1] == 1 for text in texts)


def test_the_mix_takes_sentences_as_they_come(bench: Any) -> None:
    sentences = [np.arange(1, length, dtype=np.int32) for length in (5, 9, 3, 4)]
    batches = bench("bench_peers").Batches("mix2", sentences)
    assert [len(text) for text in batches.new() + batches.new()] == [4, 8, 2, 3]


def test_padded_batches_hold_every_text_once_the_longest_first(bench: Any) -> None:
    ids = [np.zeros(length, np.int32) for length in np.random.default_rng(0).integers(1, 50, 70)]
    batches = list(bench("peers").sorted_batches(ids))
    assert [len(batch) for batch in batches] == [32, 32, 6]
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(70))
    assert [len(ids[i]) for i in order] == sorted(map(len, ids), reverse=True)


@pytest.mark.parametrize(("T", "radius"), [(1, None), (7, None), (1, 3), (3, 3), (4, 3), (9, 3), (2048, 256)])
def test_the_floor_counts_the_pairs_inside_the_window(bench: Any, T: int, radius: int | None) -> None:
    n = np.arange(T)
    near = np.abs(n[:, None] - n[None, :]) <= (T if radius is None else radius)
    assert bench("floor").pairs(T, radius) == near.sum()


def test_the_int8_loops_compute_what_their_instructions_mean(bench: Any) -> None:
    """All that this processor has, by integer arithmetic: a loop that works on wrong registers measures no peak."""
    import llvmlite.binding as llvm

    floor, features = bench("floor"), llvm.get_host_cpu_features()
    bytes_of = (0, 0, 128, 63)  # of the operand, 0x3F800000
    signed = (0, 0, -128, 63)
    mixed, words = sum(a * b for a, b in zip(bytes_of, signed, strict=True)), (0, 0x3F80)
    steps = {
        "avx512vnni": mixed,
        "avxvnni": mixed,
        "avx2": mixed * words[1],  # of the two sums of pairs (vpmaddubsw) the first is 0; vpmaddwd takes words
        "dotprod": sum(a * a for a in signed),
    }
    assert set(steps) == set(floor.INT8)
    for name in steps:
        if features.get(name):
            step, count, expected = floor.INT8[name], 7, 0
            for i in range(step.accumulators):
                expected ^= (i + 1 + count * steps[name]) % 2**32
            assert floor.register_loop(step)(count) == expected, name


def test_the_floor_counts_every_weight_of_a_product(bench: Any, small: Path) -> None:
    """All matrices of the file but the embedding table: the trunk's for each token, the Dense heads' for each text."""
    from gemma_np import EmbeddingGemma
    from gemma_np.weights.names import dense_shapes, trunk_shapes

    model = EmbeddingGemma(small)
    shapes = {name: shape for name, shape in trunk_shapes(model.config).items() if name != "embed_tokens.weight"}
    trunk = sum(shape[0] * shape[1] for shape in shapes.values() if len(shape) == 2)
    heads = sum(np.prod(dense_shapes(head)["linear.weight"]) for head in model.modules.heads if hasattr(head, "inputs"))
    work = bench("floor").work_of(model, [5, 7])
    assert work.weights == trunk + heads
    assert work.products == 2 * (12 * trunk + 2 * heads)


def test_the_report_compares_like_with_like(bench: Any) -> None:
    """float32 to our float32, the rest to the faster of our quantised; the summary names the fastest of each side."""
    engines = {"ours": (True, True), "ours q": (True, False), "peer": (False, True), "peer q": (False, False)}
    times = {"ours": 40.0, "ours q": 10.0, "peer": 60.0, "peer q": 25.0}
    facts = {"settings": {}, "file_mb": 1, "load_s": 1, "loaded_peak_mb": 1, "versions": "v", "dense_heads": "yes"}
    cosines = {"peak_mb": 1, "cosines": [1.0, 0.5]}
    result = {
        **results.facts(threads=2, rounds=1),
        "engines": [
            {"engine": name, "ours": mine, "float32": exact, **facts} for name, (mine, exact) in engines.items()
        ],
        "refused": [{"engine": "other", "reason": "no such instruction"}],
        "rows": [
            {"shape": "1x16", "engine": name, "tokens": 16, "ms": [ms, ms + 4, ms + 1, ms + 2, ms + 3], **cosines}
            for name, ms in times.items()
        ],
    }
    text = bench("peer_report").report(result)
    assert "| peer | 60.0 | 62.0 | 61.0 to 63.0 | 1.50 | 0.750000 | 0.500000 | 1 |" in text
    assert "| peer q | 25.0 | 27.0 | 26.0 to 28.0 | 2.50 |" in text
    assert "| 1 text of 16 tokens | any | ours q | 10.0 (0.7500) | peer q | 25.0 (0.7500) | 0.40 |" in text
    assert "refused: no such instruction" in text


def test_engines_are_chosen_by_any_part_of_their_names(bench: Any) -> None:
    chosen = bench("peers").chosen
    usual, more = ["gemma_np q8_0", "llama.cpp Q8_0", "OpenVINO int8"], ["OpenVINO int8, f32 hint"]
    assert chosen(None, usual, more) == usual
    assert chosen(["q8_0"], usual, more) == usual[:2]
    assert chosen(["openvino int8, F32 hint", "llama"], usual, more) == [more[0], usual[1]]
    with pytest.raises(SystemExit, match="no engine is called 'torch'"):
        chosen(["torch"], usual, more)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_formats_are_judged_by_the_values_that_the_model_has(bench: Any, small: Path, quantization: str) -> None:
    """Every matrix but the embedding table, whose rows are compared."""
    from gemma_np import EmbeddingGemma

    values = bench("formats").our_values(small, quantization)
    weights = EmbeddingGemma(small, quantization=quantization).weights
    assert len(values) == 1 + 7 * len(weights.layers) + len(weights.dense)
    for i, layer in enumerate(weights.layers):
        for name, part in (("q_proj", "self_attn"), ("o_proj", "self_attn"), ("down_proj", "mlp")):
            found = values[f"layers.{i}.{part}.{name}.weight"]
            np.testing.assert_array_equal(found, getattr(layer, name).dequantize(), f"{i} {name}")
    for name, head in weights.dense.items():
        np.testing.assert_array_equal(values[f"{name}/linear.weight"], head.weight.dequantize())
    expected = weights.embed_tokens.rows(np.array([5, 9]))
    np.testing.assert_array_equal(values["embed_tokens.weight"][[5, 9]], expected)
