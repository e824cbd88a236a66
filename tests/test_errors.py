"""Errors and warnings say in their attributes, too, which texts they are about."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from gemma_np import EmbeddingGemma, InputError
from gemma_np.errors import GemmaWarning


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        ([*["a"] * 40, "lone \ud800"], {}),
        ([*["a"] * 40, 7], {}),
        (["a"] * 41, {"prompt": [*[""] * 40, None]}),
        ([*["a"] * 40, "a " * 3000], {"truncate": False}),
    ],
)
def test_an_input_error_has_the_number_of_its_text(small: Path, texts: Any, options: Any) -> None:
    with pytest.raises(InputError, match=r"text 40 (holds|is|has) ") as caught:
        EmbeddingGemma(small).encode(texts, **options)
    assert caught.value.text == 40
    again = pickle.loads(pickle.dumps(caught.value))  # processes pass errors on
    assert (str(again), again.text) == (str(caught.value), 40)


def test_an_input_error_about_no_text_has_no_number(small: Path) -> None:
    with pytest.raises(InputError) as caught:
        EmbeddingGemma(small).encode(["a"], precision="int3")
    assert caught.value.text is None


def test_a_warning_has_the_numbers_of_its_texts(small: Path) -> None:
    model = EmbeddingGemma(small)
    with pytest.warns(GemmaWarning, match="a text had more than 2,048 tokens") as caught:
        model.encode(["a " * 3000, "b", "c " * 3000])
    assert [warning.message.texts for warning in caught] == [(0, 2)]  # type: ignore[union-attr]
    with pytest.warns(GemmaWarning, match="a text begins with the prompt") as caught:
        model.encode(["a", f"{model.prompts['query']}b"], prompt_name="query")
    assert [warning.message.texts for warning in caught] == [(1,)]  # type: ignore[union-attr]
