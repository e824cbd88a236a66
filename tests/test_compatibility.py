"""sentence-transformers' other names, without it: what is harmless works, what cannot be served says why."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_np import EmbeddingGemma, InputError
from gemma_np.compatibility import REFUSED

TEXTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def model(small: Path) -> EmbeddingGemma:
    return EmbeddingGemma(small)


class Device:
    """Of torch, as far as it matters."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", Device("cpu"), Device("cpu:0"), ["cpu", Device("cpu")], []])
def test_any_name_of_the_cpu_will_do(small: Path, model: EmbeddingGemma, device: Any) -> None:
    assert EmbeddingGemma(model_name_or_path=small, device=device).full_dim == model.full_dim
    np.testing.assert_array_equal(model.encode(TEXTS, device=device), model.encode(TEXTS))
    if not isinstance(device, list):
        assert model.to(device) is model


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", Device("cuda"), 0, ["cpu", "cuda"]])
def test_any_other_device_is_refused(small: Path, model: EmbeddingGemma, device: Any) -> None:
    for call in (lambda: EmbeddingGemma(small, device=device), lambda: model.encode("a", device=device)):
        with pytest.raises(InputError, match="is not served: gemma_np computes on the CPU, in float32"):
            call()
    if not isinstance(device, list):
        with pytest.raises(InputError, match="computes on the CPU"):
            model.to(device)


def test_a_move_or_a_mode_that_changes_nothing_gives_the_model(model: EmbeddingGemma) -> None:
    assert model.cpu() is model.float() is model.eval() is model.train(False) is model.to("cpu", "float32") is model
    assert model.to(dtype=np.float32, non_blocking=True) is model
    assert model.compile() is model.gradient_checkpointing_enable() is model.clear_placement_cache() is None
    for call in (lambda: model.to("float16"), lambda: model.to(dtype="bfloat16"), lambda: model.train()):
        with pytest.raises(InputError, match="is not served"):
            call()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_there_says_why(model: EmbeddingGemma, name: str) -> None:
    assert not hasattr(model, name)  # programs ask so
    with pytest.raises(AttributeError, match=rf"'EmbeddingGemma' object has no attribute '{name}': \S+ \S+"):
        getattr(model, name)


def test_a_name_that_nobody_knows_is_an_ordinary_error(model: EmbeddingGemma) -> None:
    with pytest.raises(AttributeError, match=r"'EmbeddingGemma' object has no attribute 'nonsense'$"):
        model.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "options",
    [
        {"model_kwargs": {"torch_dtype": "float32", "attn_implementation": "sdpa", "device_map": "cpu"}},
        {"model_kwargs": {"dtype": np.float32, "low_cpu_mem_usage": True, "use_safetensors": True}},
        {"dtype": "auto", "attn_implementation": "eager", "torch_dtype": None},
        {"tokenizer_kwargs": {"padding_side": "right"}, "processor_kwargs": None, "config_kwargs": {}},
        {"trust_remote_code": True, "backend": "torch", "model_card_data": object(), "modules": None},
        {"use_auth_token": None},
    ],
)
def test_harmless_settings_pass(small: Path, model: EmbeddingGemma, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(EmbeddingGemma(small, **options).encode("a"), model.encode("a"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_kwargs": {"torch_dtype": "bfloat16"}}, "another device or dtype"),
        ({"model_kwargs": {"load_in_8bit": True}}, "another device or dtype"),
        ({"model_kwargs": {"device_map": "cuda"}}, "another device or dtype"),
        ({"torch_dtype": "float16"}, "quantization='q8_0'"),
        ({"dtype": float}, "float32"),
        ({"tokenizer_kwargs": {"padding_side": "left"}}, "'left'} is not served; model_max_length is"),
        ({"tokenizer_kwargs": [1]}, "tokenizer_kwargs is list"),
        ({"tokenizer_kwargs": {"model_max_length": 0}}, "max_seq_length = 0"),
        ({"config_kwargs": {"a": 1}}, "edit config.json"),
        ({"backend": "onnx"}, "one backend"),
        ({"model_name_or_path": "x"}, "two names of one argument"),
        ({"token": "a", "use_auth_token": "b"}, "two names of one argument"),
    ],
)
def test_settings_that_would_change_something_are_refused(small: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EmbeddingGemma(small, **options)


def test_the_longest_text_of_tokenizer_kwargs_is_kept(small: Path) -> None:
    model = EmbeddingGemma(small, tokenizer_kwargs={"model_max_length": 7})
    assert (
        model.max_seq_length
        == model.tokenizer.model_max_length
        == pickle.loads(pickle.dumps(model)).max_seq_length
        == 7
    )


def test_a_pool_of_processes_is_this_process(model: EmbeddingGemma) -> None:
    expected = model.encode(TEXTS, prompt_name="STS", truncate_dim=8)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    np.testing.assert_array_equal(model.encode(TEXTS, "STS", truncate_dim=8, pool=pool, chunk_size=1), expected)
    np.testing.assert_array_equal(model.encode_multi_process(TEXTS, pool, "STS", truncate_dim=8), expected)
    np.testing.assert_array_equal(
        model.encode_multi_process(TEXTS, pool, "STS", None, 2, 50, False, "float32", False, 8), expected
    )
    EmbeddingGemma.stop_multi_process_pool(pool)
    with pytest.raises(InputError, match="computes on the CPU"):
        model.start_multi_process_pool(["cuda:0"])


def test_vectors_are_shorter_for_a_while(small: Path) -> None:
    model = EmbeddingGemma(small)
    for context in (model.truncate_embeddings, model.truncate_sentence_embeddings):
        with context(8):
            assert (model.encode("a").shape, model.get_embedding_dimension()) == ((8,), 8)
        assert model.truncate_dim is None
    with pytest.raises(RuntimeError), model.truncate_embeddings(8):
        raise RuntimeError
    assert model.encode("a").shape == (64,)


def test_prompts_set_later_have_their_fallbacks(small: Path) -> None:
    """document, passage, corpus, none; as sentence-transformers looks for them."""
    model = EmbeddingGemma(small)
    for prompts, document, query in (
        ({"corpus": "c: ", "passage": "p: ", "document": "d: ", "query": "q: "}, "d: ", "q: "),
        ({"corpus": "c: ", "passage": "p: "}, "p: ", ""),
        ({"corpus": "c: "}, "c: ", ""),
        ({}, "", ""),
    ):
        model.prompts = prompts
        np.testing.assert_array_equal(model.encode_document("a"), model.encode("a", prompt=document))
        np.testing.assert_array_equal(model.encode_query("a"), model.encode("a", prompt=query))
    model.prompts, model.default_prompt_name = {"other": "o: "}, "other"
    np.testing.assert_array_equal(model.encode_query("a"), model.encode("a", prompt="o: "))
    with pytest.raises(InputError, match="prompts is list"):
        model.prompts = ["q: "]  # type: ignore[assignment]


def test_a_folder_is_saved_under_both_names(small: Path, tmp_path: Path) -> None:
    model = EmbeddingGemma(small, truncate_dim=10_000)
    model.save(str(tmp_path / "one"), "name", create_model_card=False)
    tmp_path.joinpath("two").mkdir()
    model.save_pretrained(tmp_path / "two", model_name="name", train_datasets=["x"])
    for name in ("one", "two"):
        np.testing.assert_array_equal(EmbeddingGemma.load(tmp_path / name).encode("a"), model.encode("a"))
    with pytest.raises(InputError, match="safetensors alone"):
        model.save(tmp_path / "three", safe_serialization=False)
    assert not (tmp_path / "three").exists()


def test_forward_gives_what_encode_gives(model: EmbeddingGemma) -> None:
    features = model.preprocess(["a cat", "two dogs and a bird"], prompt="task: ")
    found = model(features)
    assert set(found) == {"input_ids", "attention_mask", "token_embeddings", "sentence_embedding"}
    np.testing.assert_array_equal(
        found["sentence_embedding"], model.encode(["a cat", "two dogs and a bird"], prompt="task: ")
    )
    tokens = model.encode("a cat", prompt="task: ", output_value="token_embeddings")
    np.testing.assert_array_equal(found["token_embeddings"][0][: len(tokens)], tokens)
    assert not found["token_embeddings"][0][len(tokens) :].any()


def test_small_questions(model: EmbeddingGemma, tmp_path: Path) -> None:
    assert model.get_model_kwargs() == []
    assert (model.supports("text"), model.supports("image"), model.supports(("text", "image"))) == (True, False, False)
    assert (model.is_singular_input("a"), model.is_singular_input(["a"])) == (True, False)
    assert model.has_peft_compatible_model() is model.training is False
    assert model.get_backend() == "gemma_np"
    model.set_pooling_include_prompt(True)
    with pytest.raises(InputError, match="modules of a checkpoint are fixed"):
        model.set_pooling_include_prompt(False)
    assert model.evaluate(lambda m, path: (m, path.is_dir()), tmp_path / "out") == (model, True)
    model.model_card_data.set_evaluation_metrics("evaluator", {"a": 1}, 0, 0)
    assert model.model_card_data.eval_results_dict == {"evaluator": {"a": 1}}
