"""Every public name and keyword of SentenceTransformer, live against sentence-transformers on the same folder.

A name that its documentation has works alike here, or is refused with its reason, or is refused on both sides.
"""

import inspect
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rows import ROWS, row

from gemma_np import CheckpointError, ConfigError, EmbeddingGemma, GemmaWarning, InputError
from gemma_np.compatibility import REFUSED

TEXTS = ["A cat sleeps on the sofa.", "Der Hund schläft.", "What is the capital of France?", ""]
# Two float32 forward passes that add in a different order, of unit vectors: see test_parity. Sums of 384 differences,
# which may be as large as 20, differ by 384 roundings of 2^-24 at most, and by a twentieth of that as a rule.
VECTORS = {"rtol": 1e-6, "atol": 1e-6}
GIVEN = np.random.default_rng(0).normal(size=(5, 384)).astype(np.float32) / np.float32(384**0.5)


@pytest.fixture(scope="module")
def theirs(sentence_transformers: ModuleType, nano_float: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(nano_float), device="cpu")


@pytest.fixture
def ours(nano_float: Path) -> EmbeddingGemma:
    return EmbeddingGemma(model_name_or_path=str(nano_float), device="cpu")


def plain(value: Any) -> Any:
    """Tensors and arrays as arrays, within whatever holds them."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return np.asarray(value) if hasattr(value, "shape") else value


def assert_alike(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        expected = {name: value for name, value in expected.items() if name != "modality"}
        assert set(found) == set(expected)
        for name in expected:
            assert_alike(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, **VECTORS)
    else:
        assert found == expected


def saved(m: Any, method: str, tmp: Path) -> Any:
    getattr(m, method)(str(tmp), model_name="a/b", create_model_card=False, safe_serialization=True)
    return type(m)(str(tmp)).encode(TEXTS)


def pooled(m: Any, encode: Callable[[Any], Any]) -> Any:
    """Theirs would start processes, so only ours has a pool; theirs encodes without one, which gives the same."""
    pool = m.start_multi_process_pool(["cpu"]) if isinstance(m, EmbeddingGemma) else None
    result = encode(pool)
    if pool is not None:
        m.stop_multi_process_pool(pool)
    return result


def shortened(m: Any, context: str) -> Any:
    with getattr(m, context)(128):
        return m.encode(TEXTS, normalize_embeddings=True)


def several(m: Any, vectors: Any, method: str) -> Any:
    found = []
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        m.similarity_fn_name = name
        found.append(getattr(m, method)(vectors, vectors[::-1].copy()))
    m.similarity_fn_name = "cosine"
    return found


# How each name is used; what comes of it must be alike.
ALIKE: dict[str, Callable[[Any, Path], Any]] = {
    "SUPPORTED_SIMILARITY_FN_NAMES": lambda m, _: list(m.SUPPORTED_SIMILARITY_FN_NAMES),
    "clear_placement_cache": lambda m, _: m.clear_placement_cache(),
    "cpu": lambda m, _: m.cpu() is m,
    "device": lambda m, _: (str(m.device), m.device.type),
    "dtype": lambda m, _: str(m.dtype),
    "encode": lambda m, _: [m.encode(TEXTS), m.encode("a"), m.encode(TEXTS, prompt="x: ")],
    "encode_document": lambda m, _: m.encode_document(TEXTS),
    "encode_multi_process": lambda m, _: pooled(
        m, lambda pool: m.encode_multi_process(TEXTS, pool) if pool else m.encode(TEXTS)
    ),
    "encode_query": lambda m, _: m.encode_query(TEXTS),
    "evaluate": lambda m, tmp: m.evaluate(lambda model, path: (model is m, str(path)), str(tmp / "made")),
    "forward": lambda m, _: (
        m(m.preprocess(["a text"]))["sentence_embedding"].detach().numpy()
        if not isinstance(m, EmbeddingGemma)
        else m(m.preprocess(["a text"]))["sentence_embedding"]
    ),
    "get_embedding_dimension": lambda m, _: m.get_embedding_dimension(),
    "get_max_seq_length": lambda m, _: m.get_max_seq_length(),
    "get_model_kwargs": lambda m, _: m.get_model_kwargs(),
    "get_sentence_embedding_dimension": lambda m, _: m.get_sentence_embedding_dimension(),
    "is_singular_input": lambda m, _: [m.is_singular_input("a"), m.is_singular_input(["a"]), m.is_singular_input(())],
    "load": lambda m, tmp: saved(m, "save", tmp) is not None and type(m).load(str(tmp)).encode(TEXTS),
    "max_seq_length": lambda m, _: m.max_seq_length,
    "modalities": lambda m, _: list(m.modalities),
    "model_card_data_class": lambda m, _: callable(m.model_card_data_class),
    "model_type": lambda m, _: m.model_type,
    "preprocess": lambda m, _: m.preprocess(TEXTS),
    "processor": lambda m, _: m.processor("a text")["input_ids"],
    "save": lambda m, tmp: saved(m, "save", tmp),
    "save_pretrained": lambda m, tmp: saved(m, "save_pretrained", tmp),
    "set_pooling_include_prompt": lambda m, _: m.set_pooling_include_prompt(True),
    "similarity": lambda m, _: several(m, GIVEN, "similarity"),
    "similarity_fn_name": lambda m, _: m.similarity_fn_name,
    "similarity_pairwise": lambda m, _: several(m, GIVEN, "similarity_pairwise"),
    "start_multi_process_pool": lambda m, _: pooled(m, lambda pool: m.encode(TEXTS, pool=pool, chunk_size=2)),
    "stop_multi_process_pool": lambda m, _: pooled(m, lambda _: None),
    "supports": lambda m, _: [m.supports("text"), m.supports("image")],
    "to": lambda m, _: m.to("cpu") is m,
    "tokenize": lambda m, _: m.tokenize(TEXTS),
    "tokenizer": lambda m, _: [m.tokenizer.encode(TEXTS[0]), m.tokenizer.tokenize(TEXTS[0]), m.tokenizer.decode([327])],
    "truncate_embeddings": lambda m, _: shortened(m, "truncate_embeddings"),
    "truncate_sentence_embeddings": lambda m, _: shortened(m, "truncate_sentence_embeddings"),
    "compile": lambda m, _: m.compile() if isinstance(m, EmbeddingGemma) else None,  # theirs wants a C++ compiler
    "gradient_checkpointing_enable": lambda m, _: m.gradient_checkpointing_enable(),
}
# A model without an adapter, on a machine without a GPU, fails at these on both sides.
NEITHER = {
    "active_adapter": lambda m: m.active_adapter(),
    "active_adapters": lambda m: m.active_adapters(),
    "cuda": lambda m: m.cuda(),
    "delete_adapter": lambda m: m.delete_adapter("a"),
    "disable_adapters": lambda m: m.disable_adapters(),
    "enable_adapters": lambda m: m.enable_adapters(),
    "get_adapter_state_dict": lambda m: m.get_adapter_state_dict(),
    "set_adapter": lambda m: m.set_adapter("a"),
}
# What works there and not here: the reason is in the message.
HERE = (
    *("add_adapter", "load_adapter", "check_peft_compatible_model", "transformers_model", "merge"),
    *("fit", "old_fit", "get_sentence_features", "smart_batching_collate"),
    *("push_to_hub", "save_to_hub", "default_huggingface_organization"),
)
OWN_ANSWER = ["config", "get_backend", "has_peft_compatible_model"]  # there on both sides, and each says what it is
# Keywords: how each is used, or why it is refused. The constructor's are tried with the folder.
CONSTRUCTOR: dict[str, Any] = {
    "model_name_or_path": None,
    "modules": None,
    "device": "cpu",
    "prompts": {"query": None, "mine": "m: "},
    "default_prompt_name": "STS",
    "cache_folder": None,
    "trust_remote_code": True,
    "revision": None,
    "local_files_only": True,
    "token": None,
    "use_auth_token": None,
    "model_kwargs": {"torch_dtype": "float32", "attn_implementation": "eager"},
    "processor_kwargs": {"model_max_length": 64},
    "tokenizer_kwargs": {"model_max_length": 64},
    "config_kwargs": None,
    "model_card_data": None,
    "backend": "torch",
    "similarity_fn_name": "dot",
    "truncate_dim": 1000,
}
ENCODE: dict[str, Any] = {
    "prompt_name": "query",
    "prompt": "x: ",
    "batch_size": 2,
    "show_progress_bar": False,
    "output_value": None,
    "precision": "binary",
    "convert_to_numpy": False,
    "convert_to_tensor": True,
    "device": "cpu",
    "normalize_embeddings": True,
    "truncate_dim": 1000,
    "pool": None,
    "chunk_size": 2,
    "kwargs": {},
}


def public_names(thing: type) -> set[str]:
    """The names that sentence-transformers itself gives to the class, and the mixin of transformers for adapters."""
    own = [base for base in thing.__mro__ if base.__module__.startswith(("sentence_transformers", "transformers"))]
    return {name for base in own for name in vars(base) if not name.startswith("_")}


def test_every_public_name_is_accounted_for(theirs: Any) -> None:
    assert public_names(type(theirs)) == {*ALIKE, *NEITHER, *HERE, *OWN_ANSWER}
    assert len(HERE) <= 12
    print(f"\n{len(ALIKE)} names work alike, {len(NEITHER)} fail on both sides, {len(HERE)} are refused here alone")


@row(
    "every public name of `SentenceTransformer`",
    f"{len(ALIKE)} work alike, `encode*`, `similarity*`, `tokenizer`, `to`, `save` and the pools among them; "
    f"{len(NEITHER)} fail on both sides on a CPU without adapters",
)
@pytest.mark.parametrize("name", sorted(ALIKE))
def test_a_name_works_alike(ours: EmbeddingGemma, theirs: Any, name: str, tmp_path: Path) -> None:
    found, expected = (plain(ALIKE[name](m, tmp_path / side)) for side, m in (("ours", ours), ("theirs", theirs)))
    if name == "evaluate":
        found, expected = found[0], expected[0]
    assert_alike(found, expected)


@pytest.mark.parametrize("name", sorted(NEITHER))
def test_a_name_fails_on_both_sides(ours: EmbeddingGemma, theirs: Any, name: str) -> None:
    for m in (ours, theirs):
        with pytest.raises((AttributeError, ValueError, AssertionError, RuntimeError)):
            NEITHER[name](m)


@row(
    "`fit`, `add_adapter`, `load_adapter`, `push_to_hub`, `merge`, `transformers_model`, ...",
    f"the {len(HERE)} names that need gradients, torch's modules or an upload are refused with the reason and the cure",
)
@pytest.mark.parametrize("name", HERE)
def test_a_name_is_refused_with_its_reason(ours: EmbeddingGemma, theirs: Any, name: str) -> None:
    assert hasattr(theirs, name)
    with pytest.raises(AttributeError, match=r".{30}"):
        getattr(ours, name)
    assert name in REFUSED


def test_what_says_who_we_are_says_so(ours: EmbeddingGemma, theirs: Any) -> None:
    assert (ours.get_backend(), theirs.get_backend()) == ("gemma_np", "torch")
    assert ours.has_peft_compatible_model() is False
    assert theirs.config.hidden_size == ours.config.D


def test_every_keyword_of_the_constructor_is_tried(theirs: Any) -> None:
    parameters = set(inspect.signature(type(theirs)).parameters) | {"tokenizer_kwargs"}
    assert parameters == set(CONSTRUCTOR)


@pytest.mark.parametrize("name", sorted(set(CONSTRUCTOR) - {"model_name_or_path"}))
def test_a_keyword_of_the_constructor_works_alike(
    sentence_transformers: ModuleType, nano_float: Path, name: str
) -> None:
    ours, theirs = (
        made(str(nano_float), **{name: CONSTRUCTOR[name]})
        for made in (EmbeddingGemma, sentence_transformers.SentenceTransformer)
    )
    for attribute in ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_seq_length"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    long = [*TEXTS, "many words " * 100]
    for method in ("encode", "encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(ours, method)(long), getattr(theirs, method)(long), **VECTORS)


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_every_keyword_of_encode_is_tried_and_stands_in_its_place(theirs: Any, method: str) -> None:
    assert set(inspect.signature(getattr(theirs, method)).parameters) - {"inputs"} == set(ENCODE)
    names = [name for name in inspect.signature(theirs.encode).parameters if name != "kwargs"]
    assert list(inspect.signature(EmbeddingGemma.encode).parameters)[1 : len(names) + 1] == names


@row("every keyword of `encode` and the constructor", "in the same place, with the same meaning")
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("name", sorted(set(ENCODE) - {"kwargs"}))
@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[0]], ids=["list", "one"])
def test_a_keyword_of_encode_works_alike(
    ours: EmbeddingGemma, theirs: Any, method: str, name: str, inputs: Any
) -> None:
    found, expected = (getattr(m, method)(inputs, **{name: ENCODE[name]}) for m in (ours, theirs))
    if name == "output_value":  # theirs pads, and has the mask to say so
        found, expected = (
            [f["sentence_embedding"] for f in ([x] if isinstance(x, dict) else x)] for x in (found, expected)
        )
    elif not isinstance(expected, list):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
    else:
        assert [type(one) for one in found] == [type(one) for one in expected]
    assert_alike(plain(found), plain(expected))


def test_members_of_their_enumeration(sentence_transformers: ModuleType, ours: EmbeddingGemma, theirs: Any) -> None:
    from sentence_transformers import SimilarityFunction

    for member in SimilarityFunction:
        if member.value in theirs.SUPPORTED_SIMILARITY_FN_NAMES:
            ours.similarity_fn_name = member
            assert ours.similarity_fn_name == member.value
    with pytest.raises(InputError, match="similarity_fn_name"):
        ours.similarity_fn_name = "maxsim"


# ---- the rows of README's table: where something differs, and how -------------------------------------------------


@row(
    "results",
    "NumPy arrays; tensors with `convert_to_tensor=True` or `convert_to_numpy=False`, if torch is installed. "
    "`similarity` gives a tensor for tensors and an array for arrays; of two single vectors take its `.item()`",
)
def test_similarity_of_arrays_is_an_array(ours: EmbeddingGemma, theirs: Any) -> None:
    one, tensor = ours.encode("a"), theirs.encode("a", convert_to_tensor=True)
    assert type(ours.similarity(one, one)) is np.ndarray
    assert type(ours.similarity(tensor, one)) is type(theirs.similarity(tensor, one)) is type(tensor)
    assert ours.similarity(one, one).item() == pytest.approx(float(theirs.similarity(one, one)), abs=1e-6)


@row("numbers", "equal to about 1e-6: both compute in float32, but add in a different order")
def test_vectors_are_equal_but_for_rounding(ours: EmbeddingGemma, theirs: Any) -> None:
    texts = sentences(50)
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), **VECTORS)


@row("dtype", "always float32; sentence-transformers computes a bfloat16 file in bfloat16")
def test_another_dtype_is_refused(ours: EmbeddingGemma, theirs: Any, nano_float: Path) -> None:
    assert str(ours.dtype) == str(theirs.dtype) == "torch.float32"
    with pytest.raises(InputError, match="as exact as sentence-transformers in float32"):
        EmbeddingGemma(nano_float, dtype="bfloat16")
    with pytest.raises(InputError, match="none may ask for another device or dtype"):
        EmbeddingGemma(nano_float, model_kwargs={"torch_dtype": "bfloat16"})


@row("an empty list", "shape (0, dim), not (0,)")
def test_an_empty_list(ours: EmbeddingGemma, theirs: Any) -> None:
    assert (ours.encode([]).shape, theirs.encode([]).shape) == ((0, 384), (0,))


@row(
    "`truncate_dim`",
    "the cut vector is scaled back to length 1 if the model normalises; sentence-transformers leaves it shorter unless "
    "`normalize_embeddings=True`. One above the model's size cuts nothing, as there",
)
def test_a_cut_vector_has_length_1(ours: EmbeddingGemma, theirs: Any) -> None:
    cut, short = ours.encode(TEXTS[0], truncate_dim=128), theirs.encode(TEXTS[0], truncate_dim=128)
    # a float32 sum of 128 squares: sqrt(128) 2^-24, 7e-7, where errors are random
    assert np.linalg.norm(cut) == pytest.approx(1, abs=1e-6) != np.linalg.norm(short)
    np.testing.assert_allclose(cut, short / np.linalg.norm(short), **VECTORS)
    np.testing.assert_allclose(ours.encode("a", truncate_dim=9999), theirs.encode("a", truncate_dim=9999), **VECTORS)


@row(
    '`precision="int8"`, `"uint8"`',
    "a fixed scale, ±10/√dim, so a text's codes never depend on the other texts; with `ranges=` the codes equal those "
    "of `quantize_embeddings(..., ranges=)`",
)
def test_codes_do_not_depend_on_other_texts(ours: EmbeddingGemma, theirs: Any) -> None:
    from sentence_transformers.util import quantize_embeddings

    vectors, alone = ours.encode(TEXTS), ours.encode(TEXTS[:1], precision="int8")
    np.testing.assert_array_equal(ours.encode(TEXTS, precision="int8")[:1], alone)
    ranges = np.array([[-0.2] * 384, [0.2] * 384], np.float32)
    expected = quantize_embeddings(vectors, "int8", ranges=ranges)
    np.testing.assert_array_equal(ours.encode(TEXTS, precision="int8", ranges=ranges), expected)


@row(
    '`output_value="token_embeddings"`, `None`',
    "arrays unless tensors are asked for; without padding",
)
def test_token_embeddings(ours: EmbeddingGemma, theirs: Any) -> None:
    assert_alike(
        plain(ours.encode(TEXTS, output_value="token_embeddings")),
        plain(theirs.encode(TEXTS, output_value="token_embeddings")),
    )
    assert type(ours.encode("a", output_value="token_embeddings")) is np.ndarray
    found = ours.encode(TEXTS, output_value=None, convert_to_tensor=True)
    assert [len(one["input_ids"]) for one in found] == [int(m.sum()) for m in theirs.tokenize(TEXTS)["attention_mask"]]


@row(
    "`prompt_name`",
    "the checkpoint's names, and also `retrieval_query`, `retrieval_document`, `question_answering`, `fact_checking`, "
    "`classification`, `clustering`, `semantic_similarity`, `code_retrieval`",
)
def test_friendly_names_of_prompts(ours: EmbeddingGemma, theirs: Any) -> None:
    for name, own in (("retrieval_query", "query"), ("clustering", "Clustering"), ("semantic_similarity", "STS")):
        np.testing.assert_allclose(ours.encode("a", name), theirs.encode("a", own), **VECTORS)
    for name in ("retrieval_document", "question_answering", "fact_checking", "classification", "code_retrieval"):
        ours.encode("a", name)
        with pytest.raises(ValueError, match="not found"):
            theirs.encode("a", name)


@row(
    "`prompt`",
    "may also be a list with one prompt for each text; with `prompt_name` beside it, it counts, with a warning",
)
def test_a_prompt_for_each_text(ours: EmbeddingGemma, theirs: Any) -> None:
    found = ours.encode(["a", "b"], prompt=["x: ", ""])
    np.testing.assert_allclose(found, [theirs.encode("a", prompt="x: "), theirs.encode("b")], **VECTORS)
    with pytest.warns(GemmaWarning, match="prompt= counts"):
        found = ours.encode("a", prompt="x: ", prompt_name="query")
    np.testing.assert_allclose(found, theirs.encode("a", prompt="x: ", prompt_name="query"), **VECTORS)


@row("`encode_document`", "also takes `titles=`")
def test_titles(ours: EmbeddingGemma, theirs: Any) -> None:
    found = ours.encode_document(["a", "b"], titles=["T", None])
    expected = theirs.encode(["title: T | text: a", "title: none | text: b"])
    np.testing.assert_allclose(found, expected, **VECTORS)


@row(
    "a text over `max_seq_length`",
    "cut as in sentence-transformers, with one warning; `truncate=False` raises an error instead",
)
def test_a_long_text_is_cut_alike(ours: EmbeddingGemma, theirs: Any) -> None:
    long = "word and " * 400
    with pytest.warns(GemmaWarning, match="was cut there"):
        np.testing.assert_allclose(ours.encode(long), theirs.encode(long), **VECTORS)
    with pytest.raises(InputError, match="shorten it"):
        ours.encode(long, truncate=False)


@row("a text that already begins with its prompt", "gives a warning")
def test_a_doubled_prompt(ours: EmbeddingGemma) -> None:
    with pytest.warns(GemmaWarning, match="begins with the prompt already"):
        ours.encode_query("task: search result | query: a")


@row(
    "a generator, a set, a pandas Series",
    "encoded in their order; a table is refused, with the name of its first column",
)
def test_more_kinds_of_inputs(ours: EmbeddingGemma, theirs: Any) -> None:
    np.testing.assert_allclose(ours.encode(text for text in TEXTS), theirs.encode(TEXTS), **VECTORS)
    with pytest.raises((TypeError, ValueError)):
        theirs.encode(text for text in TEXTS)


@row(
    "`device`, `.to()`, `backend`, `model_kwargs`, `torch_dtype`, `attn_implementation`, ...",
    "accepted where they change nothing, else refused with the reason; `threads=` sets the number of threads",
)
@pytest.mark.parametrize("device", ["cpu", "cpu:0", "torch", None])
def test_devices(ours: EmbeddingGemma, theirs: Any, nano_float: Path, device: Any) -> None:
    import torch

    device = torch.device("cpu") if device == "torch" else device
    found = EmbeddingGemma(nano_float, device=device).encode(TEXTS, device=device)
    np.testing.assert_allclose(found, theirs.encode(TEXTS, device=device), **VECTORS)
    for refused in (torch.device("cuda"), "mps"):
        with pytest.raises(InputError, match="computes on the CPU"):
            ours.encode(TEXTS, device=refused)


@row(
    "`start_multi_process_pool`, `pool=`, `device=[...]`",
    "served by this process, which uses all cores already; the vectors are the same",
)
def test_many_processes_are_one(ours: EmbeddingGemma, theirs: Any) -> None:
    found = ours.encode(TEXTS, device=["cpu", "cpu"], chunk_size=2)
    np.testing.assert_allclose(found, theirs.encode(TEXTS), **VECTORS)


@row("`save`, `save_pretrained`", "write a new folder or an empty one; another is never written over; no model card")
def test_saving_never_writes_over(ours: EmbeddingGemma, sentence_transformers: ModuleType, tmp_path: Path) -> None:
    ours.save(tmp_path)
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), ours.encode(TEXTS), **VECTORS)
    with pytest.raises(InputError, match="exists already"):
        ours.save(tmp_path)


@row("a window of 257 in config.json", "means 256 tokens to each side; transformers itself would halve it")
def test_the_window(nano_float: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nano_float, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 257}))
    assert {layer.radius for layer in EmbeddingGemma(folder).config.layers} == {None, 256}


@row(
    "modules",
    "mean pooling (with or without `include_prompt`), then any chain of Dense (Identity or Tanh) and Normalize; others "
    "are refused by name",
)
def test_other_modules_are_refused_by_name(nano_float: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nano_float, tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = "sentence_transformers.models.LayerNorm"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises((ConfigError, CheckpointError), match="LayerNorm"):
        EmbeddingGemma(folder)


def test_readmes_table_is_these_rows() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Coming from sentence-transformers")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert table == [f"| {what} | {here} |" for what, here in ROWS]


# ---- what is built on it ------------------------------------------------------------------------------------------


def sentences(number: int) -> list[str]:
    """Sentences that are alike in part, the same every time."""
    rng = random.Random(0)
    subjects, verbs = ["a cat", "the old dog", "my neighbour", "a red car", "the teacher"], ["sees", "follows", "likes"]
    return [f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(subjects)} {i % 7}" for i in range(number)]


def evaluators(E: Any) -> dict[str, Any]:
    texts = sentences(40)
    half, scores = texts[:20], [i / 20 for i in range(20)]
    corpus, queries = dict(map(reversed, enumerate(texts))), {f"q{i}": text for i, text in enumerate(texts[:5])}
    corpus = {f"d{i}": text for i, text in enumerate(texts)}
    relevant = {f"q{i}": {f"d{i}", f"d{i + 7}"} for i in range(5)}
    samples = [{"query": texts[i], "positive": [texts[i + 1]], "negative": texts[i + 2 : i + 6]} for i in range(5)]
    return {
        "embedding similarity": E.EmbeddingSimilarityEvaluator(half, texts[20:], scores, show_progress_bar=False),
        "binary classification": E.BinaryClassificationEvaluator(half, texts[20:], [i % 2 for i in range(20)]),
        "triplet": E.TripletEvaluator(texts[:10], texts[10:20], texts[20:30]),
        "information retrieval": E.InformationRetrievalEvaluator(queries, corpus, relevant),
        "paraphrase mining": E.ParaphraseMiningEvaluator(corpus, [("d0", "d7"), ("d1", "d8")]),
        "reranking": E.RerankingEvaluator(samples),
        "translation": E.TranslationEvaluator(half, texts[20:]),
    }


@pytest.mark.parametrize(
    "name",
    [
        "embedding similarity",
        "binary classification",
        "triplet",
        "information retrieval",
        "paraphrase mining",
        "reranking",
        "translation",
    ],
)
def test_their_evaluators_give_their_figures(ours: EmbeddingGemma, theirs: Any, name: str, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer import evaluation

    found, expected = (
        m.evaluate(evaluators(evaluation)[name], str(tmp_path / side)) for side, m in (("a", ours), ("b", theirs))
    )
    assert set(found) == set(expected)
    for figure in expected:
        print(f"\n{figure}: {found[figure]:.8f} {expected[figure]:.8f}", end="")
        assert found[figure] == pytest.approx(expected[figure], abs=1e-6)  # the vectors' own difference


def test_a_teachers_vectors(ours: EmbeddingGemma, theirs: Any) -> None:
    from sentence_transformers.sentence_transformer.evaluation import MSEEvaluator

    texts = sentences(10)
    found, expected = (MSEEvaluator(texts, texts[::-1], teacher_model=m)(m) for m in (ours, theirs))
    # a mean of squares times 100: 100 * 2 * 0.1 * 1e-6
    assert found["negative_mse"] == pytest.approx(expected["negative_mse"], abs=2e-5)


def test_their_utilities(ours: EmbeddingGemma, theirs: Any) -> None:
    from sentence_transformers import util

    texts = sentences(40)
    found, expected = ([(i, j) for _, i, j in util.paraphrase_mining(m, texts, top_k=3)] for m in (ours, theirs))
    assert {tuple(sorted(pair)) for pair in found} == {tuple(sorted(pair)) for pair in expected}
    scores = [sorted(s for s, *_ in util.paraphrase_mining(m, texts, top_k=3)) for m in (ours, theirs)]
    np.testing.assert_allclose(*scores, **VECTORS)
    for form in ({}, {"convert_to_tensor": True}):
        hits, others = (
            util.semantic_search(m.encode(texts[:5], **form), m.encode(texts, **form), top_k=4) for m in (ours, theirs)
        )
        np.testing.assert_allclose(
            [[h["score"] for h in row] for row in hits], [[h["score"] for h in row] for row in others], **VECTORS
        )
        groups = [
            util.community_detection(m.encode(texts, **form), threshold=0.95, min_community_size=2)
            for m in (ours, theirs)
        ]
        assert sorted(map(sorted, groups[0])) == sorted(map(sorted, groups[1]))


def test_hard_negatives(ours: EmbeddingGemma, theirs: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `parity`: datasets")
    from sentence_transformers.util import mine_hard_negatives

    texts = sentences(60)
    pairs = datasets.Dataset.from_dict({"anchor": [f"Who is {t}?" for t in texts[:20]], "positive": texts[:20]})
    found, expected = (
        mine_hard_negatives(pairs, m, corpus=texts, num_negatives=2, verbose=False).to_dict() for m in (ours, theirs)
    )
    assert found == expected
