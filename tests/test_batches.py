from itertools import pairwise

import numpy as np
import pytest

from gemma_np import InputError
from gemma_np.batches import BATCH_TEXTS, BATCH_TOKENS, chunked, gathered, paired, split


@pytest.mark.parametrize(
    "lengths", [[], [1], [5000], [1024, 1], [500, 500, 25], [500, 500, 24], [1] * 9000, [5000] * 3]
)
def test_batches_keep_every_text_in_order_and_end_at_1024_tokens(lengths: list[int]) -> None:
    ids = [np.zeros(n, np.int32) for n in lengths]
    parts = list(split(ids))
    assert [n for part in parts for n in lengths[part]] == lengths
    for part in parts:
        assert sum(lengths[part]) <= BATCH_TOKENS or part.stop - part.start == 1
    for one, two in pairwise(parts):  # no batch could have taken one text more
        assert sum(lengths[one]) + lengths[two.start] > BATCH_TOKENS or one.stop - one.start == BATCH_TEXTS


def test_texts_are_taken_from_a_generator_only_as_they_are_needed() -> None:
    taken = []

    def texts():  # type: ignore[no-untyped-def]
        for i in range(100):
            taken.append(i)
            yield str(i)

    chunks = chunked(paired(texts(), "p "), 8)
    assert next(chunks) == ([str(i) for i in range(8)], ["p "] * 8)
    assert len(taken) == 8


def test_too_few_prompts_are_told() -> None:
    with pytest.raises(InputError, match="not as many prompts or titles as texts"):
        list(paired(["a", "b"], ["p"]))


@pytest.mark.parametrize("total", [None, 5])
def test_gathered_batches_are_one_array(total: int | None) -> None:
    rows = np.arange(10, dtype=np.int8).reshape(5, 2)
    whole = gathered(iter([rows[:2], rows[2:]]), np.empty((0, 2), np.int8), total)
    np.testing.assert_array_equal(whole, rows)
    assert whole.dtype == np.int8


def test_no_batches_are_an_empty_array() -> None:
    assert gathered([], np.empty((0, 7), np.float32), None).shape == (0, 7)
    assert gathered([], np.empty((0, 7), np.float32), 0).shape == (0, 7)
