"""`model.tokenizer` against transformers' own, for both ways of reading a vocabulary."""

import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gemma_np import EmbeddingGemma, InputError
from gemma_np.pretrained import PretrainedTokenizer
from gemma_np.tokens.tokenizer import Tokenizer

# Of the scripts that people write, with what is hard for byte fallback, added tokens and offsets.
TEXTS = [
    "a text",
    "",
    " ",
    "  two  spaces\tand\n\nlines\r\n",
    "Ärger mit Umlauten, façade, señor",
    unicodedata.normalize("NFD", "Ärger façade"),
    "私は猫です。 你好，世界",
    "สวัสดีครับ مرحبا שלום नमस्ते",
    "👩‍👩‍👧‍👦 🜁 \U0001f1e9\U0001f1ea \ue000 \U000e0041",
    "a\u2581b \u2581\u2581 c",  # the character that stands for spaces, as text
    "<bos><eos>in<unused7>between<pad> <0x41> <start_of_turn>",
    "x" * 300,
    "\x00\x01 control",
]


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.safetensors"])
def ours(request: pytest.FixtureRequest, nano_float: Path) -> Any:
    """nano's tokenizer, through the `tokenizers` package and through the arrays."""
    return (
        EmbeddingGemma("nano") if request.param == "tokenizer.safetensors" else EmbeddingGemma(nano_float)
    ).tokenizer


@pytest.fixture(scope="module")
def theirs(sentence_transformers: ModuleType, nano_float: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(nano_float)


def lists(found: Any) -> Any:
    return {
        name: [list(map(tuple, row)) if name == "offset_mapping" else row for row in rows]
        for name, rows in found.items()
    }


@pytest.mark.parametrize("special", [True, False])
def test_ids_pieces_and_offsets(ours: Any, theirs: Any, special: bool) -> None:
    options = {"add_special_tokens": special, "return_offsets_mapping": True, "return_special_tokens_mask": True}
    found, expected = ours(TEXTS, **options), theirs(TEXTS, **options)
    assert found.input_ids == expected["input_ids"]
    assert lists(found)["offset_mapping"] == lists(expected)["offset_mapping"]
    assert found["attention_mask"] == expected["attention_mask"]
    for text in TEXTS:
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special)


def test_text_of_ids(ours: Any, theirs: Any) -> None:
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.batch_decode(theirs(TEXTS)["input_ids"]) == theirs.batch_decode(theirs(TEXTS)["input_ids"])
    half = ours.convert_tokens_to_ids(["<0xF0>", "<0x9F>", "<0x41>"])  # no UTF-8
    assert ours.decode(half) == theirs.decode(half) == "\ufffd" * 3
    assert ours.decode(np.array([327, 328])) == theirs.decode(np.array([327, 328]))
    assert ours.decode(327) == theirs.decode(327)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "return_tensors": "np"},
        {"padding": "max_length", "max_length": 9, "truncation": True},
        {"padding": "max_length", "max_length": 9, "truncation": True, "add_special_tokens": False},
        {"truncation": True, "max_length": 4},
        {"max_length": 4},
        {"padding": True, "return_attention_mask": False},
        {"padding": True, "return_special_tokens_mask": True, "return_length": True},
        {"padding": True, "return_tensors": "pt"},
    ],
)
def test_calls(ours: Any, theirs: Any, options: dict[str, Any]) -> None:
    texts = [text for text in TEXTS if text != "x" * 300]
    found, expected = ours(texts, **options), theirs(texts, **options)
    assert list(found) == list(expected)
    for name, rows in expected.items():
        assert type(found[name]) is type(rows)
        assert found[name].tolist() == rows.tolist() if "return_tensors" in options else found[name] == rows


def test_one_text_has_no_row_of_its_own(ours: Any, theirs: Any) -> None:
    assert dict(ours("a text")) == dict(theirs("a text"))
    np.testing.assert_array_equal(
        ours("a text", return_tensors="np")["input_ids"], theirs("a text", return_tensors="np")["input_ids"]
    )
    assert ours.encode("a text", truncation=True, max_length=3) == theirs.encode(
        "a text", truncation=True, max_length=3
    )


def test_names_and_numbers(ours: Any, theirs: Any) -> None:
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.get_vocab() == theirs.get_vocab()
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    assert (ours.padding_side, ours.model_max_length) == (theirs.padding_side, theirs.model_max_length)
    assert ours.convert_ids_to_tokens([2, 327]) == theirs.convert_ids_to_tokens([2, 327])
    assert ours.convert_ids_to_tokens(327) == theirs.convert_ids_to_tokens(327)
    assert ours.convert_tokens_to_ids("no such piece") == theirs.convert_tokens_to_ids("no such piece")
    assert set(ours.all_special_ids) <= set(theirs.all_special_ids) | {105, 106}
    assert dict(zip(ours.all_special_tokens, ours.all_special_ids, strict=True))["<bos>"] == 2


def test_gemmas_own_tokenizer(sentence_transformers: ModuleType, shared: Path, gemma_pieces: Any) -> None:
    """262,144 pieces and 6,415 added tokens, by the arrays."""
    from transformers import AutoTokenizer

    from gemma_np.config import read_config

    folder = shared / "data/embeddinggemma-300m"
    theirs, ours = (
        AutoTokenizer.from_pretrained(folder),
        PretrainedTokenizer(Tokenizer(folder, read_config(folder), gemma_pieces)),
    )
    found, expected = (made(TEXTS, return_offsets_mapping=True) for made in (ours, theirs))
    assert lists(found) == lists(expected)
    for ids in expected["input_ids"]:
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_the_length_is_the_models() -> None:
    model = EmbeddingGemma("nano")
    model.tokenizer.model_max_length = 5
    assert model.max_seq_length == 5
    assert len(model.tokenizer("one two three four five", truncation=True)["input_ids"]) == 5
    with pytest.raises(InputError, match="model_max_length = 0"):
        model.tokenizer.model_max_length = 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.encode(["a", "b"]), InputError, r"encode\(\) takes one text, got list"),
        (lambda t: t(["a", "b c d"], return_tensors="np"), InputError, "different numbers of tokens .* padding=True"),
        (lambda t: t("a", padding="left"), InputError, "padding = 'left', expected one of False"),
        (lambda t: t("a", return_tensors="tf"), InputError, "return_tensors = 'tf'"),
        (lambda t: t("a", text_pair="b"), TypeError, "text_pair"),
        (lambda t: t(None), InputError, "text is None, expected strings"),
        (lambda t: t("a\ud800", return_offsets_mapping=True), InputError, "lone surrogate"),
        (lambda t: t.decode([10**9]), InputError, "ids reach from 1000000000"),
        (lambda t: t.decode([-1]), InputError, "expected 0 to 24575"),
        (lambda t: t.decode(["a"]), InputError, "expected integers"),
        (lambda t: t.save_pretrained("x"), AttributeError, "what it has: .*encode"),
        (lambda t: t("a").labels, AttributeError, "there is no labels; there are input_ids"),
    ],
)
def test_what_is_not_served_is_told(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(EmbeddingGemma("nano").tokenizer)
