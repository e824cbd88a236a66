"""sentence-transformers' keywords: what changes nothing passes, all else is refused with the reason."""

from typing import Any

import numpy as np
import pytest

from gemma_np import InputError
from gemma_np.keywords import (
    CONSTRUCTOR,
    ENCODE,
    Harmless,
    is_float32,
    max_length_of,
    on_cpu,
    one_of,
    refuse,
    second_name,
)

Table = dict[str, tuple[Harmless, str]]
CASES = [(call, table, name) for call, table in (("encode", ENCODE), ("EmbeddingGemma", CONSTRUCTOR)) for name in table]


class Another:
    """A value that no keyword takes for harmless, unless it takes any."""


@pytest.mark.parametrize(("call", "table", "name"), CASES, ids=[f"{call}-{name}" for call, _, name in CASES])
def test_none_passes_and_a_value_that_is_not_served_is_refused_with_the_reason(
    call: str, table: Table, name: str
) -> None:
    """A keyword that takes any value has no reason to give, and all others have one."""
    harmless, reason = table[name]
    refuse(call, {name: None}, table)
    assert harmless(Another()) == (reason == "")
    if reason:
        with pytest.raises(InputError, match="is not served: ") as caught:
            refuse(call, {name: Another()}, table)
        assert str(caught.value).startswith(f"{call}({name}=<")
        assert str(caught.value).endswith(reason)


def test_a_value_is_one_of_those_that_are_listed_by_type_too() -> None:
    harmless = one_of(None, True, "cpu")
    assert [harmless(value) for value in (None, True, "cpu")] == [True] * 3
    assert [harmless(value) for value in (1, 0, False, "", "CPU", [], np.array([True, True]))] == [False] * 7


@pytest.mark.parametrize(
    ("device", "here"),
    [
        *((device, True) for device in (None, "cpu", "cpu:1", [], ["cpu", None], ("cpu:0", "cpu:1"))),
        *((device, False) for device in ("cuda", "cpux", "", "mps:0", ["cpu", "cuda:1"], 0, {"": "cpu"})),
    ],
    ids=repr,
)
def test_only_the_cpu_is_the_cpu(device: Any, here: bool) -> None:
    assert on_cpu(device) == here


@pytest.mark.parametrize(
    ("dtype", "plain"),
    [
        *((dtype, True) for dtype in (None, "auto", "float32", "torch.float32", np.float32, np.dtype(np.float32))),
        *((dtype, False) for dtype in ("float16", "bfloat16", "torch.bfloat16", "float", np.float64, "float32x", 32)),
    ],
    ids=repr,
)
def test_only_float32_is_float32(dtype: Any, plain: bool) -> None:
    assert is_float32(dtype) == plain


def test_the_first_keyword_that_is_not_served_is_named() -> None:
    table: Table = {"one": (one_of(1), "the one"), "two": (one_of(None), "the other"), "any": (lambda _: True, "")}
    refuse("encode", {}, table)
    refuse("encode", {"one": 1, "any": object()}, table)
    with pytest.raises(InputError, match=r"encode\(two=2\) is not served: the other"):
        refuse("encode", {"one": 1, "two": 2, "any": object()}, table)


def test_a_keyword_that_nobody_knows_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match=r"encode\(\) got an unexpected keyword argument 'nonsense'"):
        refuse("encode", {"nonsense": None}, ENCODE)


def test_two_names_of_one_argument_are_read_as_one() -> None:
    for value, others, expected in ((3, {}, 3), (None, {"other": 4}, 4), (None, {}, None), (0, {"other": None}, 0)):
        kept = {**others, "more": 1}
        assert second_name("one", value, "other", kept) == expected
        assert kept == {"more": 1}
    with pytest.raises(InputError, match="one= and other= are two names of one argument"):
        second_name("one", 0, "other", {"other": 0})


def test_the_longest_text_is_all_that_is_read_of_a_tokenizers_settings() -> None:
    kept: dict[str, Any] = {"tokenizer_kwargs": {"model_max_length": 7, "padding": True, "use_fast": None}, "more": 1}
    assert max_length_of(kept) == 7
    assert kept == {"more": 1}
    assert max_length_of({}) is None
    assert max_length_of({"processor_kwargs": {"model_max_length": 8}}) == 8
    with pytest.raises(InputError, match=r"tokenizer_kwargs=\{'padding_side': 'left'\} is not served"):
        max_length_of({"tokenizer_kwargs": {"padding_side": "left"}})
    with pytest.raises(InputError, match="processor_kwargs is int, expected names with values"):
        max_length_of({"processor_kwargs": 512})
