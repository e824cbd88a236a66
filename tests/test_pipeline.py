"""A model in memory and its three steps: texts to ids, ids to vectors, vectors to output."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import FLOAT32
from safetensors.numpy import load_file, save_file

from gemma_np import EmbeddingGemma, InputError, WeightsError
from gemma_np.model import embed
from gemma_np.outcomes import prompted
from gemma_np.pipeline import Pipeline, chosen


@pytest.fixture(scope="module")
def model(small: Path) -> EmbeddingGemma:
    return EmbeddingGemma(small)


@pytest.fixture(scope="module")
def pipeline(small: Path) -> Pipeline:
    return Pipeline(small)


def test_requests_with_different_prompts_and_dimensions_can_share_a_pass(model: EmbeddingGemma) -> None:
    ids, truncated = model.prepare(["red", "red"], [model.prompts["query"], model.prompts["document"]])
    assert truncated == []
    vectors = model.embed_ids(ids)
    np.testing.assert_array_equal(model.wanted(16).of(vectors[:1])[0], model.encode_query("red", truncate_dim=16))
    np.testing.assert_array_equal(model.wanted().of(vectors[1:])[0], model.encode_document("red"))


@pytest.mark.parametrize("ids", [[], [[1, 2]], [1.5], [-1], [10**9], ["a"]])
def test_ids_that_are_none_are_told(model: EmbeddingGemma, ids: Any) -> None:
    with pytest.raises(InputError, match=r"ids\[0\]"):
        model.embed_ids([np.array(ids)])


def test_excluding_the_prompt_leaves_its_tokens_out_of_the_mean(writable: Path) -> None:
    config = json.loads((writable / "1_Pooling" / "config.json").read_text())
    (writable / "1_Pooling" / "config.json").write_text(json.dumps({**config, "include_prompt": False}))
    model = EmbeddingGemma(writable)
    prompt = model.prompts["query"]
    tokens = model.encode("red", output_value="token_embeddings", prompt=prompt)
    skip = model._tokenizer.prompt_length(prompt)
    assert 0 < skip < len(tokens)
    pooled = {}
    ids, _ = model.prepare(["red"], prompt)
    embed(ids[0], model.weights, model.config, model.modules, skip, lambda name, array: pooled.update({name: array}))
    # The one is NumPy's, the other the kernels'; a unit vector's rounding, times the length of this one.
    atol = 2 * FLOAT32 * np.linalg.norm(pooled["1_Pooling"])
    np.testing.assert_allclose(pooled["1_Pooling"], tokens[skip:].mean(axis=0), rtol=0, atol=atol)
    np.testing.assert_array_equal(model.encode_query("red"), model.embed_ids(ids, skip)[0])
    np.testing.assert_array_equal(model.encode(prompt + "red"), model.embed_ids(ids, 0)[0])  # no prompt to exclude


@pytest.mark.parametrize("name", ["layers.3.mlp.up_proj.weight", "norm.weight", "layers.0.self_attn.k_norm.weight"])
def test_nan_weights_are_told_by_name(writable: Path, name: str) -> None:
    path = writable / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[5] = np.nan
    save_file(tensors, path)
    model = EmbeddingGemma(writable)
    with pytest.raises(WeightsError, match=f"{name.split('.')[-2]}.* holds NaN or infinity"):
        model.encode("a cat")


def test_threads_limits_blas_while_it_computes_and_only_then(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info

    from gemma_np import pipeline

    def blas_threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    monkeypatch.setenv("GEMMA_NP_KERNELS", "numpy")  # kernels have threads of their own
    seen = []
    original = pipeline.model.embed
    monkeypatch.setattr(pipeline.model, "embed", lambda *args: (seen.append(blas_threads()), original(*args))[1])
    before = blas_threads()
    EmbeddingGemma(small, threads=1).encode("a")
    assert seen == [{1}]
    assert blas_threads() == before


# ---- texts to ids


def test_each_text_stands_after_its_prompt(pipeline: Pipeline) -> None:
    ids, cut = pipeline.prepare(["a", "b"], ["p: ", ""])
    alone = [pipeline.prepare([text])[0][0].tolist() for text in ("p: a", "b")]
    assert ([tokens.tolist() for tokens in ids], cut) == (alone, [])
    assert all(tokens.dtype == np.int32 for tokens in ids)
    assert [tokens.tolist() for tokens in pipeline.prepare(["a"] * 2, "p: ")[0]] == [alone[0]] * 2
    assert pipeline.prepare([]) == ([], [])


def test_texts_are_numbered_from_the_first(small: Path) -> None:
    """Whoever sends a stream in pieces says how many texts came before, and messages count from the stream's start."""
    pipeline = Pipeline(small)
    pipeline.max_seq_length = 8
    long = "word " * 20
    assert pipeline.prepare(["a", long], first=40)[1] == [41]
    with pytest.raises(InputError, match=r"text 41 has \d+ tokens, .* and the model takes 8;") as caught:
        pipeline.prepare(["a", long], truncate=False, first=40)
    assert caught.value.text == 41
    for texts, prompts, message in (
        (["a", 3], "", "text 41 is int, expected a string"),
        (["a", "b"], ["p", b"q"], "the prompt of text 41 is bytes"),
        (["a", "\ud800"], "", r"text 41 holds the lone surrogate U\+D800"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            pipeline.prepare(texts, prompts, first=40)  # type: ignore[arg-type]
        assert caught.value.text == 41


def test_there_is_one_prompt_or_one_for_each_text() -> None:
    assert prompted(["a", "b"], "p: ") == ["p: a", "p: b"]
    assert prompted(iter(["a", "b"]), iter(["p: ", "q: "])) == ["p: a", "q: b"]  # type: ignore[arg-type]
    for prompts in (["p"], ["p"] * 3):
        with pytest.raises(InputError, match=f"{len(prompts)} prompts for 2 texts; expected one for all, or one for"):
            prompted(["a", "b"], prompts)


# ---- ids to vectors


def test_there_is_one_length_of_prompts_or_one_for_each_text(writable: Path) -> None:
    """Where the mean leaves prompts out; a length that is as long as its text leaves nothing."""
    (writable / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true, "include_prompt": false}')
    pipeline = Pipeline(writable)
    assert pipeline.prompt_lengths(["", "p: ", ""])[::2] == [0, 0]
    ids, _ = pipeline.prepare(["one two three", "one two three"])
    each = pipeline.embed_ids(ids, [0, 2])
    for skip, vector in zip((0, 2), each, strict=True):
        np.testing.assert_array_equal(pipeline.embed_ids(ids, skip), [vector, vector])
    assert (each[0] != each[1]).any()
    with pytest.raises(InputError, match="1 prompt_lengths for 2 texts; expected one for all, or one for each"):
        pipeline.embed_ids(ids, [0])


def test_a_mean_with_prompts_takes_no_notice_of_their_lengths(pipeline: Pipeline) -> None:
    ids, _ = pipeline.prepare(["one two three"])
    np.testing.assert_array_equal(pipeline.embed_ids(ids, 2), pipeline.embed_ids(ids))
    assert pipeline.prompt_lengths(["a prompt: "]) == [0]


# ---- what runs


def test_kernels_run_unless_numpy_is_asked_for_and_both_say_why(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels = Pipeline(small)
    config, modules = with_kernels.config, with_kernels.modules
    assert chosen(config, modules) == (with_kernels.column, with_kernels.why_not)
    assert (with_kernels.fast is None) == (with_kernels.column is None)
    monkeypatch.setenv("GEMMA_NP_KERNELS", "numpy")
    assert chosen(config, modules) == (None, "GEMMA_NP_KERNELS asks for it")
    assert Pipeline(small).fast is None


def test_a_quantised_model_is_of_one_kind(small: Path, tmp_path: Path) -> None:
    EmbeddingGemma(small).save_pretrained(tmp_path / "model", format="q8_0")
    assert Pipeline(tmp_path / "model", quantization="q8_0").quantization == "q8_0"
    with pytest.raises(InputError, match="is q8_0 already; quantization = 'q4_0' needs the float checkpoint"):
        Pipeline(tmp_path / "model", quantization="q4_0")
    with pytest.raises(InputError, match="quantization = 'q5_1' is not known"):  # before the folder is looked at
        Pipeline(tmp_path / "nowhere", quantization="q5_1")
