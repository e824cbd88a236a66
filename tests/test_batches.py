from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from gemma_np import InputError
from gemma_np.batches import chunked, expected_number, gathered, paired, strings


def test_texts_are_taken_from_a_generator_only_as_they_are_needed() -> None:
    taken = []

    def texts():  # type: ignore[no-untyped-def]
        for i in range(100):
            taken.append(i)
            yield str(i)

    chunks = chunked(paired(texts(), "p "), 8)
    assert next(chunks) == ([str(i) for i in range(8)], ["p "] * 8)
    assert len(taken) == 8


@pytest.mark.parametrize("expected", [None, 0, 1, 2, 3, 5, 6, 4000, 10**15])
def test_gathered_batches_are_one_array_however_many_were_expected(expected: int | None) -> None:
    """Memory that was never written would hold whatever was there before: other people's vectors."""
    rows = np.arange(10, dtype=np.int8).reshape(5, 2)
    whole = gathered(iter([rows[:2], rows[2:3], rows[3:]]), np.empty((0, 2), np.int8), expected)
    np.testing.assert_array_equal(whole, rows)
    assert whole.dtype == np.int8


def test_no_batches_are_an_empty_array() -> None:
    assert gathered([], np.empty((0, 7), np.float32), None).shape == (0, 7)
    assert gathered([], np.empty((0, 7), np.float32), 0).shape == (0, 7)


class Unhelpful:
    """An iterable whose length is not the number of its texts, or no number at all."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> int:
        if isinstance(self.length, Exception):
            raise self.length
        return int(self.length)

    def __iter__(self) -> Iterator[str]:
        yield from ("a", "b")


@pytest.mark.parametrize(
    ("texts", "number"),
    [
        (["a"], 1),
        ((text for text in "ab"), None),
        (tqdm((text for text in "ab"), total=500, disable=True), 500),
        (tqdm((text for text in "ab"), disable=True), None),
        (Unhelpful(7), 7),
        (Unhelpful(-1), None),
        (Unhelpful(TypeError("no length")), None),
        (Unhelpful(RuntimeError("not now")), None),
    ],
)
def test_a_length_is_a_hint_and_its_failure_is_nobodys_trouble(texts: Any, number: int | None) -> None:
    assert expected_number(texts) == number


class Table:
    """What pandas and polars have in common: `columns`, and iteration over their names."""

    columns = ("id", "text")

    def __len__(self) -> int:
        return 200

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


class ColumnNames(Table):
    """pyarrow and datasets call them so."""

    columns = None  # type: ignore[assignment]
    column_names = ("id", "text")


class MapStyle:
    """A data set of torch's kind: a length and indices, no iteration, and no IndexError at the end."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> str:
        return f"text {i}"


@pytest.mark.parametrize("table", [Table(), ColumnNames()])
def test_a_table_is_refused_with_the_cure(table: Any) -> None:
    with pytest.raises(InputError, match=r"inputs is a table \(.*\) with the columns 'id', 'text'; .*table\['id'\]"):
        strings(table, "inputs")


def test_a_data_set_with_a_length_and_indices_will_do() -> None:
    assert list(strings(MapStyle(), "inputs")) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("inputs", [None, 3, "one", b"one", {"a": "b"}, np.array("one"), np.float32(3)])
def test_what_is_no_collection_of_strings_is_told(inputs: Any) -> None:
    with pytest.raises(InputError, match=r"^prompt is .*, expected strings"):
        strings(inputs, "prompt")


@pytest.mark.parametrize("prompts", [["p"], ["p", "q", "r"], [], (p for p in "p")])
def test_fewer_or_more_prompts_than_texts_are_told(prompts: Any) -> None:
    with pytest.raises(InputError, match="not as many prompts or titles as texts"):
        list(paired(["a", "b"], prompts))


def test_an_error_of_the_callers_own_generator_is_not_taken_for_missing_prompts() -> None:
    def texts() -> Iterator[str]:
        yield "a"
        raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        list(paired(texts(), ["p", "q"]))


def test_an_object_with_a_label_called_columns_is_no_table() -> None:
    """A pandas Series gives its labels as attributes, too."""

    class Labelled(list[str]):
        def __getattr__(self, name: str) -> str:
            if name == "columns":
                return self[0]
            raise AttributeError(name)

    assert list(strings(Labelled(["a text", "b"]), "inputs")) == ["a text", "b"]


def test_an_empty_table_is_refused_too() -> None:
    class Empty(Table):
        columns = ()  # type: ignore[assignment]

    with pytest.raises(InputError, match="is a table"):
        strings(Empty(), "inputs")
