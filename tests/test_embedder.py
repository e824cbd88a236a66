"""EmbeddingGemma's calls: what goes in, what comes out, what is said when it cannot."""

import inspect
import json
import pickle
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import FLOAT32
from tqdm import tqdm

from gemma_np import CheckpointError, ConfigError, EmbeddingGemma, GemmaWarning, InputError
from gemma_np.ops import l2_normalize

TEXTS = ["The cat sat on the mat.", "", "Ein Satz auf Deutsch", "猫がマットの上に座った。", "a", "x " * 300]


@pytest.fixture(scope="module")
def model(small: Path) -> EmbeddingGemma:
    return EmbeddingGemma(small)


# ---- shapes, order, kinds of input -------------------------------------------------------------------------------


def test_one_string_gives_one_vector_and_a_list_an_array_in_its_order(model: EmbeddingGemma) -> None:
    vectors = model.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), model.get_embedding_dimension())
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        alone = model.encode(text)
        assert alone.shape == (model.get_embedding_dimension(),)
        np.testing.assert_array_equal(alone, vector)


def test_no_texts_give_no_vectors(model: EmbeddingGemma) -> None:
    D = model.get_embedding_dimension()
    for nothing in ([], (), iter([])):
        empty = model.encode(nothing)
        assert empty.shape == (0, D)
        assert empty.dtype == np.float32
    assert model.encode([], truncate_dim=16).shape == (0, 16)
    assert model.encode([], precision="ubinary").shape == (0, D // 8)
    assert model.encode([], output_value="token_embeddings") == []


def test_any_iterable_of_strings_will_do(model: EmbeddingGemma) -> None:
    expected = model.encode(TEXTS)
    for inputs in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), iter(TEXTS), (text for text in TEXTS)):
        np.testing.assert_array_equal(model.encode(inputs), expected)
    np.testing.assert_array_equal(model.encode(sentences=TEXTS), expected)


class Claims(list[str]):
    """Texts whose `len()` is another number."""

    claimed = 0

    def __len__(self) -> int:
        return self.claimed


@pytest.mark.parametrize("claimed", [0, 1, len(TEXTS) - 1, len(TEXTS) + 1, 500])
def test_the_texts_that_come_decide_how_many_vectors_there_are(model: EmbeddingGemma, claimed: int) -> None:
    """Rows that nobody computes would hold what was in the memory before: vectors of earlier calls."""
    expected = model.encode(TEXTS)
    texts = Claims(TEXTS)
    texts.claimed = claimed
    np.testing.assert_array_equal(model.encode(texts, batch_size=4), expected)
    for total in (None, claimed):
        np.testing.assert_array_equal(model.encode(tqdm(iter(TEXTS), total=total, disable=True)), expected)


@pytest.mark.parity
def test_a_pandas_table_is_refused_and_its_column_is_not(model: EmbeddingGemma) -> None:
    pandas = pytest.importorskip("pandas", reason="needs the extra `parity`: pandas")
    table = pandas.DataFrame({"text": TEXTS * 30})
    for call in (model.encode, model.tokenize, model.count_tokens, model.encode_query):
        with pytest.raises(InputError, match=r"is a table \(DataFrame\) with the columns 'text'; .*table\['text'\]"):
            call(table)
    np.testing.assert_array_equal(model.encode(table["text"]), model.encode(TEXTS * 30))


def test_a_data_set_with_indices_alone_will_do(model: EmbeddingGemma) -> None:
    class MapStyle:
        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, i: int) -> str:
            return TEXTS[i]

    np.testing.assert_array_equal(model.encode(MapStyle()), model.encode(TEXTS))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_the_batch_size_changes_no_bit(model: EmbeddingGemma, batch_size: int) -> None:
    np.testing.assert_array_equal(model.encode(TEXTS, batch_size=batch_size), model.encode(TEXTS))


def test_a_generator_is_consumed_a_batch_at_a_time(model: EmbeddingGemma) -> None:
    taken: list[int] = []

    def texts() -> Iterator[str]:
        for i in range(100):
            taken.append(i)
            yield f"text {i}"

    stream = model.stream(texts(), batch_size=10)
    assert next(stream).shape == (10, model.get_embedding_dimension())
    assert len(taken) == 10


def test_memory_does_not_grow_with_the_number_of_texts(model: EmbeddingGemma) -> None:
    import tracemalloc

    def peak(n: int) -> int:
        tracemalloc.start()
        for _ in model.stream("a short text" for _ in range(n)):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(64)  # what is made once
    few, many = peak(64), peak(1024)
    kept = 960 * model.full_dim * 4  # the bytes of 960 vectors more, if somebody held them
    assert many - few < kept / 2, f"64 texts: {few}, 1024 texts: {many} bytes"


def test_many_threads_may_call_at_once(model: EmbeddingGemma) -> None:
    expected = model.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: model.encode(TEXTS), range(8)):
            np.testing.assert_array_equal(vectors, expected)


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_a_prompt_is_put_in_front(model: EmbeddingGemma) -> None:
    expected = model.encode("task: search result | query: red")
    for vector in (
        model.encode("red", prompt_name="query"),
        model.encode("red", prompt_name="retrieval_query"),
        model.encode("red", prompt="task: search result | query: "),
        model.encode_query("red"),
        model.encode("red", "query"),
    ):
        np.testing.assert_array_equal(vector, expected)
    assert np.abs(model.encode("red") - expected).max() > 1000 * FLOAT32  # another text's, not rounding


def test_documents_have_their_own_prompt_and_may_have_titles(model: EmbeddingGemma) -> None:
    expected = model.encode(["title: none | text: a", "title: Cats | text: b"])
    np.testing.assert_array_equal(model.encode_document(["a", "b"], titles=[None, "Cats"]), expected)
    np.testing.assert_array_equal(model.encode_document("b", titles="Cats"), expected[1])
    np.testing.assert_array_equal(model.encode_document("a"), expected[0])
    np.testing.assert_array_equal(model.encode_document("a", prompt_name="query"), model.encode_query("a"))
    with pytest.raises(InputError, match="not as many prompts or titles as texts"):
        model.encode_document(["a", "b"], titles=["Cats"])
    with pytest.raises(InputError, match="needs the document prompt"):
        model.encode_document("a", prompt_name="query", titles="Cats")


def test_prompts_given_to_the_constructor_win(small: Path) -> None:
    model = EmbeddingGemma(small, prompts={"query": "Q: ", "mine": "M: "}, default_prompt_name="mine")
    np.testing.assert_array_equal(model.encode_query("a"), model.encode("a", prompt="Q: "))
    np.testing.assert_array_equal(model.encode("a"), model.encode("M: a", prompt=""))
    with pytest.raises(InputError, match="'other' is unknown; known are"):
        EmbeddingGemma(small, default_prompt_name="other")


def test_a_prompt_of_none_leaves_the_checkpoints(small: Path, model: EmbeddingGemma) -> None:
    """As in sentence-transformers; a name that the checkpoint does not have gets an empty one."""
    none = EmbeddingGemma(small, prompts={"query": None, "own": None, "document": ""})
    assert none.prompts == {**model.prompts, "own": "", "document": ""}
    none.prompts = {"query": None}  # type: ignore[dict-item]
    assert none.prompts == {"query": ""}
    np.testing.assert_array_equal(none.encode_query("a"), model.encode("a"))
    for prompts, message in (({"query": 3}, r"prompts\['query'\] is int"), (["q"], "prompts is list, expected names")):
        with pytest.raises(InputError, match=message):
            EmbeddingGemma(small, prompts=prompts)  # type: ignore[arg-type]


def test_a_wrong_default_of_the_checkpoint_is_not_blamed_on_the_caller(writable: Path) -> None:
    path = writable / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "default_prompt_name": "foo"}))
    expected = f"{path}: default_prompt_name = 'foo' is none of its prompts"
    with pytest.raises(ConfigError, match=f"{re.escape(expected)}.*mend the file"):
        EmbeddingGemma(writable)
    assert EmbeddingGemma(writable, default_prompt_name="query").default_prompt_name == "query"
    assert EmbeddingGemma(writable, prompts={"foo": "f: "}).default_prompt_name == "foo"


def test_an_unknown_prompt_lists_the_known_ones(model: EmbeddingGemma) -> None:
    with pytest.raises(InputError, match=r"prompt_name = 'nonsense' is unknown; known are .*clustering.*query"):
        model.encode("a", prompt_name="nonsense")


def test_a_prompt_that_stands_there_already_is_warned_of(model: EmbeddingGemma) -> None:
    with pytest.warns(GemmaWarning, match="a text begins with the prompt already"):
        model.encode_query(["red", "task: search result | query: red"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["task: search result | query: red"])


# ---- length ------------------------------------------------------------------------------------------------------


def registries() -> dict[str, int]:
    """How many texts of warnings Python keeps, by the module that they are blamed on."""
    kept = {name: vars(module).get("__warningregistry__", {}) for name, module in list(sys.modules.items())}
    return {name: len(registry) for name, registry in kept.items() if registry}


def test_a_warning_points_at_the_callers_line_once_and_grows_nothing(model: EmbeddingGemma) -> None:
    """Python keeps each text of a warning for each line: 400 calls with numbers in it left 401 of them."""
    long = ["word " * 3000, "task: search result | query: red"]
    model.max_seq_length = 64
    try:
        with warnings.catch_warnings(record=True) as record:
            warnings.resetwarnings()
            warnings.simplefilter("default")
            kept = []
            for i in range(20):
                line = sys._getframe().f_lineno + 1
                model.encode_query(["more"] * i + long, batch_size=1)
                kept.append(registries())
            for _ in model.stream(long):
                pass
        assert kept[0] == kept[-1], "each call left a text"
        assert {warning.filename for warning in record} == {__file__}
        assert [warning.lineno for warning in record[:2]] == [line, line]
        assert len(record) == 3  # two kinds in the first call, one in the stream, which has no prompt
    finally:
        model.max_seq_length = 2048
        globals().get("__warningregistry__", {}).clear()


def test_texts_that_are_too_long_are_cut_with_one_warning(model: EmbeddingGemma) -> None:
    long = "word " * 3000
    with pytest.warns(GemmaWarning) as record:
        vectors = model.encode(["short", long, long], batch_size=1)
    assert [str(warning.message).split(";")[0] for warning in record] == [
        "a text had more than 2,048 tokens and was cut there"
    ]
    assert record[0].message.texts == (1, 2)  # type: ignore[union-attr]
    ids, truncated = model.prepare([long])
    assert (len(ids[0]), truncated, ids[0][-1]) == (2048, [0], model._tokenizer.suffix[0])
    np.testing.assert_array_equal(vectors[1], model.embed_ids(ids)[0])


def test_truncate_false_raises_instead(model: EmbeddingGemma) -> None:
    with pytest.raises(InputError, match=r"text 1 has [\d,]+ tokens, .* the model takes 2,048"):
        model.encode(["short", "word " * 3000], truncate=False)


def test_the_limit_can_be_lowered(small: Path) -> None:
    model = EmbeddingGemma(small)
    assert model.max_seq_length == model.get_max_seq_length() == 2048
    model.max_seq_length = 10
    with pytest.warns(GemmaWarning, match="more than 10 tokens"):
        model.encode("one two three four five six seven eight nine ten")
    with pytest.raises(InputError, match="max_seq_length = 0"):
        model.max_seq_length = 0


def test_counting_tokens_counts_prompt_bos_and_eos_before_any_cut(model: EmbeddingGemma) -> None:
    assert model.count_tokens("") == 2
    assert model.count_tokens(["", "word " * 3000])[1] > 2048
    prompted = model.count_tokens("task: search result | query: red")
    assert model.count_tokens("red", prompt_name="query") == prompted


def test_tokenize_gives_padded_ids_and_their_mask(model: EmbeddingGemma) -> None:
    out = model.tokenize(["", "a cat"])
    ids, mask = out["input_ids"], out["attention_mask"]
    assert ids.shape == mask.shape
    assert ids[0, :2].tolist() == [2, 1]
    assert mask[0].tolist() == [1, 1] + [0] * (ids.shape[1] - 2)
    assert mask[1].all()
    np.testing.assert_array_equal(model.embed_ids([ids[1].astype(np.int32)])[0], model.encode("a cat"))


# ---- dimensions, lengths, precision --------------------------------------------------------------------------------


def test_every_dimension_up_to_the_models_is_served_and_has_length_one(model: EmbeddingGemma) -> None:
    full = model.encode(TEXTS)
    for dim in (1, 3, 16, model.full_dim):
        cut = model.encode(TEXTS, truncate_dim=dim)
        expected = l2_normalize(full[:, :dim]) if dim < model.full_dim else full
        np.testing.assert_array_equal(cut, expected)


def test_integers_of_numpy_will_do_wherever_an_int_does(small: Path) -> None:
    model = EmbeddingGemma(small, truncate_dim=np.int64(16), threads=np.int32(1))  # type: ignore[arg-type]
    model.max_seq_length = np.uint16(8)  # type: ignore[assignment]
    vectors = model.encode(TEXTS[:2], batch_size=np.int64(1), truncate_dim=np.int8(12))  # type: ignore[arg-type]
    assert vectors.shape == (2, 12)
    assert model.get_embedding_dimension() == 16
    assert [type(n) for n in (model.truncate_dim, model.threads, model.max_seq_length)] == [int, int, int]


@pytest.mark.parametrize("dim", [0, -1, 2.0, "16", True])
def test_a_dimension_that_is_not_to_be_had_is_told(model: EmbeddingGemma, small: Path, dim: Any) -> None:
    with pytest.raises(InputError, match=r"truncate_dim = .*, expected a positive integer"):
        model.encode("a", truncate_dim=dim)
    with pytest.raises(InputError, match=r"truncate_dim = .*, expected a positive integer"):
        EmbeddingGemma(small, truncate_dim=dim)


def test_a_dimension_above_the_models_own_cuts_nothing(writable: Path, model: EmbeddingGemma) -> None:
    """Whoever says it: a call, the model, the checkpoint's files."""
    whole, large = model.encode("a"), model.full_dim + 1
    np.testing.assert_array_equal(model.encode("a", truncate_dim=large), whole)
    assert model.encode("a", truncate_dim=large, precision="int8").shape == whole.shape
    path = writable / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncate_dim": large}))
    by_file, by_caller = EmbeddingGemma(writable), EmbeddingGemma(writable, truncate_dim=large)
    for found in (by_file, by_caller):
        assert (found.truncate_dim, found.get_embedding_dimension()) == (large, model.full_dim)
        np.testing.assert_array_equal(found.encode("a"), whole)


def test_the_dimension_of_the_constructor_is_the_default(small: Path, model: EmbeddingGemma) -> None:
    cut = EmbeddingGemma(small, truncate_dim=16)
    assert cut.get_embedding_dimension() == cut.get_sentence_embedding_dimension() == 16
    np.testing.assert_array_equal(cut.encode("a"), model.encode("a", truncate_dim=16))
    assert cut.encode("a", truncate_dim=20).shape == (20,)


def test_fewer_bits(model: EmbeddingGemma) -> None:
    vectors = model.encode(TEXTS)
    D = vectors.shape[1]
    for precision, shape, dtype in (
        ("int8", (D,), np.int8),
        ("uint8", (D,), np.uint8),
        ("binary", (D // 8,), np.int8),
        ("ubinary", (D // 8,), np.uint8),
    ):
        codes = model.encode(TEXTS, precision=precision)
        assert codes.shape[1:] == shape
        assert codes.dtype == dtype
        np.testing.assert_array_equal(codes[2], model.encode(TEXTS[2], precision=precision))
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    np.testing.assert_array_equal(
        model.encode(TEXTS, precision="int8", ranges=ranges), model.wanted(precision="int8", ranges=ranges).of(vectors)
    )
    with pytest.raises(InputError, match="precision = 'int4', expected one of"):
        model.encode("a", precision="int4")


def test_token_embeddings(model: EmbeddingGemma) -> None:
    arrays = model.encode(TEXTS, output_value="token_embeddings")
    for text, array in zip(TEXTS, arrays, strict=True):
        assert array.shape == (model.count_tokens(text), model.config.D)
    np.testing.assert_array_equal(model.encode("a", output_value="token_embeddings"), arrays[4])
    with pytest.raises(InputError, match=r"output_value = 'tokens', expected one of 'sentence_embedding', .*, None"):
        model.encode("a", output_value="tokens")
    with pytest.raises(InputError, match="token embeddings are float32"):
        model.encode("a", output_value="token_embeddings", precision="int8")


def test_all_that_is_known_of_each_text(model: EmbeddingGemma) -> None:
    for text, found in zip(TEXTS, model.encode(TEXTS, output_value=None, truncate_dim=16), strict=True):
        np.testing.assert_array_equal(found["sentence_embedding"], model.encode(text, truncate_dim=16))
        np.testing.assert_array_equal(found["token_embeddings"], model.encode(text, output_value="token_embeddings"))
        np.testing.assert_array_equal(found["input_ids"], model.tokenize(text)["input_ids"][0])
        np.testing.assert_array_equal(found["attention_mask"], np.ones(model.count_tokens(text)))


def test_a_model_without_normalize_gives_vectors_as_they_are(writable: Path) -> None:
    modules = json.loads((writable / "modules.json").read_text())
    (writable / "modules.json").write_text(json.dumps(modules[:-1]))
    model = EmbeddingGemma(writable)
    vector = model.encode("a cat")
    assert abs(np.linalg.norm(vector) - 1) > 1000 * FLOAT32  # its own length, not rounding
    np.testing.assert_array_equal(model.encode("a cat", truncate_dim=16), vector[:16])
    # The length is a float32 sum of 64 squares: sqrt(64) * 2^-24, 5e-7, where errors are random.
    np.testing.assert_allclose(np.linalg.norm(model.encode("a cat", normalize_embeddings=True)), 1, rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(model.encode("a cat", truncate_dim=16, normalize_embeddings=True)), 1, rtol=1e-6
    )
    with pytest.raises(InputError, match="no fixed scale"):
        model.encode("a cat", precision="int8")
    assert model.encode("a cat", precision="int8", normalize_embeddings=True).dtype == np.int8


def test_similarity_goes_by_its_name(model: EmbeddingGemma, small: Path) -> None:
    a, b = model.encode(["a cat", "a kitten"]), model.encode(["a dog", "a house", "a mouse"])
    # Both are float32 sums of 64 products of unit vectors: sqrt(64) * 2^-24 apart where errors are random, 5e-7.
    np.testing.assert_allclose(model.similarity(a, b), a @ b.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(a, b[:2]), np.diag(a @ b[:2].T), atol=1e-6)
    other = EmbeddingGemma(small, similarity_fn_name="euclidean")
    assert (other.similarity_fn_name, other.similarity(a, a)[0, 0]) == ("euclidean", 0)
    with pytest.raises(InputError, match="expected one of cosine, dot"):
        other.similarity_fn_name = "hamming"


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "inputs is None, expected strings"),
        (5, "inputs is int"),
        (b"bytes", r"inputs is bytes \(decode it first\)"),
        ({"text": "a"}, "inputs is dict"),
        (np.array("a"), r"inputs is ndarray without axes \(take its .item\(\)\), expected strings"),
        (["a", None], "text 1 is None, expected a string"),
        (["a", b"b"], r"text 1 is bytes \(decode it first\), expected a string"),
        (["a", 1.5], "text 1 is float"),
        ([["a", "b"]], "text 0 is list"),
        (["a", "\ud800"], r"text 1 holds the lone surrogate U\+D800 at character 0"),
    ],
)
def test_what_is_no_text_is_told(model: EmbeddingGemma, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.encode(inputs)


@pytest.mark.parametrize("prompt", [3, b"query: ", {"query": "q"}, np.array("q"), ["p", 3]])
def test_a_prompt_that_is_no_string_is_told(model: EmbeddingGemma, prompt: Any) -> None:
    for call in (model.encode, model.encode_query, model.count_tokens):
        with pytest.raises(InputError, match=r"prompt.* is .*, expected (a string|strings)"):
            call(["a", "b"], prompt=prompt)


def test_titles_that_are_none_are_told(model: EmbeddingGemma) -> None:
    with pytest.raises(InputError, match="titles is int, expected strings"):
        model.encode_document(["a"], titles=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="title 1 is int, expected a string or None"):
        model.encode_document(["a", "b"], titles=["t", 3])  # type: ignore[list-item]


def test_one_string_is_never_taken_for_a_list_of_letters(model: EmbeddingGemma) -> None:
    with pytest.raises(InputError, match="inputs is str, expected strings"):
        next(model.stream("abc"))
    with pytest.raises(InputError, match="one string was passed where a list of strings is expected"):
        model.prepare("abc")


@pytest.mark.parametrize("call", ["count_tokens", "tokenize"])
def test_counting_and_tokenizing_refuse_what_is_no_text(model: EmbeddingGemma, call: str) -> None:
    with pytest.raises(InputError, match=r"text 1 is bytes \(decode it first\), expected a string"):
        getattr(model, call)(["a", b"b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0, expected a positive integer"),
        ({"output_dim": 128}, "the keyword is truncate_dim="),
        ({"task_type": "RETRIEVAL_QUERY"}, "prompt_name='retrieval_query'"),
        ({"device": "cuda"}, "computes on the CPU"),
        ({"device": ["cpu", "cuda:1"]}, "computes on the CPU"),
    ],
)
def test_keywords_that_cannot_be_honoured_say_why(model: EmbeddingGemma, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.encode("a", **options)


def test_harmless_keywords_of_sentence_transformers_pass(model: EmbeddingGemma, small: Path) -> None:
    vector = model.encode("a", convert_to_numpy=True, convert_to_tensor=False, device="cpu", pool=None, chunk_size=5)
    np.testing.assert_array_equal(vector, model.encode("a"))
    EmbeddingGemma(small, device="cpu", trust_remote_code=True, backend="torch", model_kwargs={})
    for keywords, message in (
        ({"device": "cuda"}, "CPU"),
        ({"backend": "onnx"}, "backend"),
        ({"modules": [1]}, "folder"),
    ):
        with pytest.raises(InputError, match=message):
            EmbeddingGemma(small, **keywords)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        model.encode("a", nonsense=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "q9"}, "quantization = 'q9'"),
        ({"threads": 0}, "threads = 0"),
        ({"threads": "2"}, "threads = '2'"),
    ],
)
def test_options_of_the_constructor_are_checked(small: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EmbeddingGemma(small, **options)


def test_folders_that_are_no_checkpoint_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json; expected the folder of a checkpoint"):
        EmbeddingGemma(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        EmbeddingGemma(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file, expected the folder"):
        EmbeddingGemma(tmp_path / "file")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"model_type = 'bert' .* whose model_type is 'gemma3_text'"):
        EmbeddingGemma(tmp_path)


# ---- threads, pickles ----------------------------------------------------------------------------------------------


def test_a_pickle_holds_the_source_not_the_weights(small: Path) -> None:
    model = EmbeddingGemma(small, truncate_dim=16, prompts={"mine": "M: "}, default_prompt_name="mine", threads=1)
    model.max_seq_length = 100
    model.similarity_fn_name = "dot"
    pickled = pickle.dumps(model)
    assert len(pickled) < 5000
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy.encode("a cat"), model.encode("a cat"))
    assert (copy.max_seq_length, copy.similarity_fn_name, copy.threads, copy.truncate_dim) == (100, "dot", 1, 16)


def test_a_relative_path_is_pickled_as_an_absolute_one(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(EmbeddingGemma("here"))
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).encode("a").shape


# ---- progress ------------------------------------------------------------------------------------------------------


def test_progress_goes_to_stderr_when_asked_for(model: EmbeddingGemma, capsys: pytest.CaptureFixture[str]) -> None:
    model.encode(TEXTS, show_progress_bar=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Embedding" in captured.err
    model.encode(TEXTS)
    assert capsys.readouterr().err == ""


def test_settings_are_checked_when_they_are_set_or_saved(small: Path, tmp_path: Path) -> None:
    """A folder that could not be opened again is not written."""
    model = EmbeddingGemma(small)
    for dim in (0, 2.0):
        with pytest.raises(InputError, match="truncate_dim = "):
            model.truncate_dim = dim  # type: ignore[assignment]
    model.truncate_dim = np.int64(9)  # type: ignore[assignment]
    model.save_pretrained(tmp_path / "nine")
    assert EmbeddingGemma(tmp_path / "nine").encode("a").shape == (9,)
    model.default_prompt_name = "garbage"
    with pytest.raises(InputError, match="'garbage' is unknown"):
        model.save_pretrained(tmp_path / "out")
    model.default_prompt_name = None
    model.prompts["x"] = 3  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"prompts\['x'\] is int"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lone_surrogate_is_placed_in_the_string_that_holds_it(model: EmbeddingGemma) -> None:
    with pytest.raises(InputError, match=r"text 1 holds the lone surrogate U\+D800 at character 2,"):
        model.encode_query(["fine", "ab\ud800"])
    with pytest.raises(InputError, match=r"the prompt of text 0 holds the lone surrogate U\+D800 at character 1,"):
        model.encode("fine", prompt="a\ud800")
    with pytest.raises(InputError, match=r"the prompt of text 0 holds the lone surrogate U\+DCFF at character 8,"):
        model.encode_document(["fine"], titles=["a\udcff"])


@pytest.mark.parametrize("name", [[], 3, b"query"])
def test_a_name_of_a_prompt_that_is_no_string_is_told(model: EmbeddingGemma, name: Any) -> None:
    with pytest.raises(InputError, match="is unknown; known are"):
        model.encode("a", prompt_name=name)


def test_any_positive_batch_size_will_do(model: EmbeddingGemma) -> None:
    np.testing.assert_array_equal(model.encode(TEXTS, batch_size=10**30), model.encode(TEXTS))


def test_every_public_name_is_documented(model: EmbeddingGemma) -> None:
    """Methods and properties by a docstring, other attributes by a line in their class's."""
    words = " ".join(kind.__doc__ or "" for kind in type(model).__mro__ if kind is not object)
    for name in dir(type(model)):
        value = inspect.getattr_static(type(model), name)
        if not name.startswith("_") and (callable(value) or isinstance(value, property | staticmethod | classmethod)):
            assert inspect.getdoc(getattr(type(model), name)), f"{name} has no docstring"
    undocumented = [name for name in vars(model) if not name.startswith("_") and not re.search(rf"\b{name}\b", words)]
    assert undocumented == ["model_card_data"]  # of compatibility.py, where its class says what it is
