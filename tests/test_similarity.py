"""The four similarities against plain loops in float64, and against sentence-transformers where it is there."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from gemma_np import InputError
from gemma_np.similarity import similarity, similarity_pairwise

rng = np.random.default_rng(0)
A, B = rng.standard_normal((4, 6), dtype=np.float32), rng.standard_normal((3, 6), dtype=np.float32)

# A product or difference, a sum of 6, and a root or quotient: at most 9 roundings of 2^-24 of what is added up, 6 terms
# of 4 at most.
ATOL = 9 * 2**-24 * 24

PLAIN: dict[str, Callable[[list[float], list[float]], float]] = {
    "cosine": lambda x, y: sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y),
    "dot": lambda x, y: sum(a * b for a, b in zip(x, y, strict=True)),
    "euclidean": lambda x, y: -math.dist(x, y),
    "manhattan": lambda x, y: -sum(abs(a - b) for a, b in zip(x, y, strict=True)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_every_pair_and_pair_by_pair(name: str) -> None:
    expected = [[PLAIN[name](a, b) for b in B.tolist()] for a in A.tolist()]
    ours = similarity(name, A, B)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=ATOL)
    np.testing.assert_allclose(similarity_pairwise(name, A[:3], B), np.diag(np.array(expected)[:3]), rtol=0, atol=ATOL)


def test_lists_integers_single_vectors_and_no_vectors_are_welcome() -> None:
    assert similarity("cosine", [1, 0], [[2, 0], [0, 2]]).tolist() == [[1, 0]]
    assert similarity("dot", np.int8([[1, 2]]), np.int8([[100, 100]])).tolist() == [[300]]
    for name in PLAIN:
        assert similarity(name, np.zeros((0, 6)), B).shape == (0, 3)
        assert similarity(name, A, np.zeros((0, 6))).shape == (4, 0)


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match="6 and of 5 dimensions"):
        similarity("cosine", A, B[:, :5])
    with pytest.raises(InputError, match="equally many"):
        similarity_pairwise("cosine", A, B)


@pytest.mark.parametrize("name", PLAIN)
def test_sentence_transformers_agrees(name: str, sentence_transformers: object) -> None:
    from sentence_transformers import SimilarityFunction

    theirs = SimilarityFunction.to_similarity_fn(name)(A, B).numpy()
    np.testing.assert_allclose(similarity(name, A, B), theirs, rtol=0, atol=2 * ATOL)  # theirs is float32 too


@pytest.mark.parametrize("vectors", [np.float32(3), None, [], np.zeros((2, 2, 2)), "text", [["a"]]])
def test_what_is_no_vector_is_told(vectors: object) -> None:
    for pair in ((vectors, A), (A, vectors)):
        with pytest.raises(InputError, match=r"expected (numbers, )?\[dim\] or \[count, dim\]"):
            similarity("cosine", *pair)  # type: ignore[arg-type]
