"""One bad text does not lose the others, and each text's tokens and cut are told."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_np import EmbeddingGemma, GemmaWarning, InputError
from gemma_np.outcomes import Outcomes

GOOD = ["a cat", "two dogs", "", "word " * 40]
BAD: list[Any] = ["a cat", None, "two dogs", "a\ud800", "", b"bytes", "word " * 40, 3.5]
WHERE = [1, 3, 5, 7]


@pytest.fixture
def model(small: Path) -> EmbeddingGemma:
    return EmbeddingGemma(small)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_good_texts_vectors_are_what_they_would_be(model: EmbeddingGemma, batch_size: int) -> None:
    with pytest.warns(GemmaWarning, match="a text has no vector") as caught:
        vectors, found = model.encode(BAD, batch_size=batch_size, errors="mark", return_info=True)
    assert caught[0].message.texts == tuple(WHERE)  # type: ignore[union-attr]
    np.testing.assert_array_equal(vectors[found.ok], model.encode(GOOD))
    assert np.isnan(vectors[WHERE]).all()
    assert np.flatnonzero(~found.ok).tolist() == list(found.errors) == WHERE
    assert found.tokens[found.ok].tolist() == model.count_tokens(GOOD)
    assert not found.tokens[WHERE].any()
    assert found.errors[1] == "text 1 is None, expected a string"
    assert "text 3 holds the lone surrogate U+D800 at character 1" in found.errors[3]
    assert found.errors[5].startswith("text 5 is bytes (decode it first)")


def test_without_info_rows_of_nan_tell(model: EmbeddingGemma) -> None:
    with pytest.warns(GemmaWarning, match="a text has no vector"):
        vectors = model.encode(BAD, errors="mark")
    assert np.isnan(vectors).all(axis=1).nonzero()[0].tolist() == WHERE


def test_a_text_that_is_too_long(model: EmbeddingGemma) -> None:
    model.max_seq_length = 20
    with pytest.warns(GemmaWarning, match="was cut there"):
        vectors, found = model.encode(GOOD, return_info=True)
    assert found.truncated.tolist() == [False, False, False, True]
    assert found.tokens.tolist() == model.count_tokens(GOOD)  # before the cut
    assert (found.tokens.dtype, found.truncated.dtype, found.ok.all()) == (np.int32, bool, True)
    with pytest.warns(GemmaWarning, match="a text has no vector"):
        marked, other = model.encode(GOOD, return_info=True, truncate=False, errors="mark")
    assert "text 3 has" in other.errors[3]
    assert (other.truncated.any(), other.ok.tolist()) == (False, [True, True, True, False])
    np.testing.assert_array_equal(marked[:3], vectors[:3])
    with pytest.raises(InputError, match="text 3 has"):
        model.encode(GOOD, return_info=True, truncate=False)


def test_codes_have_a_mask_or_are_refused(model: EmbeddingGemma) -> None:
    for precision in ("int8", "ubinary"):
        with pytest.warns(GemmaWarning):
            codes, found = model.encode(BAD, precision=precision, errors="mark", return_info=True)
        np.testing.assert_array_equal(codes[found.ok], model.encode(GOOD, precision=precision))
        with pytest.raises(InputError, match="needs return_info=True"):
            model.encode(BAD, precision=precision, errors="mark")


def test_one_text(model: EmbeddingGemma) -> None:
    vector, found = model.encode("a cat", return_info=True)
    np.testing.assert_array_equal(vector, model.encode("a cat"))
    assert (len(found), found.ok.tolist(), repr(found)) == (1, [True], "Outcomes(1 texts, 0 truncated, 0 errors)")
    tokens, found = model.encode_query(["a", "b c"], output_value="token_embeddings", return_info=True)
    assert [len(one) for one in tokens] == found.tokens.tolist()
    assert model.encode([], return_info=True)[1].ok.shape == (0,)


def test_nothing_else_is_marked(model: EmbeddingGemma) -> None:
    with pytest.raises(InputError, match=r"the prompt of text 0 holds the lone surrogate"):
        model.encode(["a", "b"], prompt="\ud800", errors="mark")
    with pytest.raises(InputError, match="is unknown"):
        model.encode(["a"], prompt_name="nonsense", errors="mark")
    with pytest.raises(InputError, match="errors = 'ignore', expected one of 'raise', 'mark'"):
        model.encode(["a"], errors="ignore")
    with pytest.raises(InputError, match="for sentence embeddings"):
        model.encode(["a"], errors="mark", output_value="token_embeddings")
    with pytest.raises(InputError, match="text 1 is None"):
        model.encode(["a", None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["a"], errors="mark")


def test_a_stream_fills_it_as_it_goes(model: EmbeddingGemma) -> None:
    seen = Outcomes()
    for i, batch in enumerate(model.stream(GOOD, batch_size=2, outcomes=seen)):
        assert (len(batch), len(seen)) == (2, 2 * i + 2)


def test_a_token_without_a_row_is_marked(model: EmbeddingGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer finds such texts one at a time."""
    real = model._tokenizer.encode

    def encode(texts: Any, max_tokens: Any = None, first: int = 0) -> Any:
        for i, text in enumerate(texts, first):
            if "rowless" in text:
                raise InputError(f"text {i} holds the token", text=i)
        return real(texts, max_tokens, first)

    monkeypatch.setattr(model._tokenizer, "encode", encode)
    with pytest.warns(GemmaWarning):
        _, found = model.encode(["a", "rowless", "b", "rowless 2", None], errors="mark", return_info=True)
    assert sorted(found.errors) == [1, 3, 4]
