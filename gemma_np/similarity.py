"""sentence-transformers' four similarities, over NumPy arrays: larger is more alike."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.arrays import Float32
from gemma_np.errors import InputError
from gemma_np.ops import l2_normalize


def _cosine(a: Float32, b: Float32) -> Float32:
    return l2_normalize(a) @ l2_normalize(b).T


def _dot(a: Float32, b: Float32) -> Float32:
    return a @ b.T


def _euclidean(a: Float32, b: Float32) -> Float32:
    return -np.stack([np.sqrt(np.square(row - b).sum(axis=-1)) for row in a])


def _manhattan(a: Float32, b: Float32) -> Float32:
    return -np.stack([np.abs(row - b).sum(axis=-1) for row in a])


FUNCTIONS: dict[str, Callable[[Float32, Float32], Float32]] = {
    "cosine": _cosine,
    "dot": _dot,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}


def similarity(name: str, a: ArrayLike, b: ArrayLike) -> Float32:  # [A, dim], [B, dim] -> [A, B]
    """Every vector of `a` with every vector of `b`; one vector alone counts as a list of one."""
    first, second = _matrix(a), _matrix(b)
    if first.shape[-1] != second.shape[-1]:
        raise InputError(f"vectors of {first.shape[-1]} and of {second.shape[-1]} dimensions cannot be compared")
    if not len(first):
        return np.zeros((0, len(second)), dtype=np.float32)
    return FUNCTIONS[name](first, second)


def scores_of(name: str, query: Float32, documents: Float32) -> Float32:  # [dim], [B, dim] -> [B]
    """A query with each document. Equal documents get equal scores wherever they stand, which a matrix product does not
    promise: so ties can be ranked by position."""
    one, each = _matrix(query), _matrix(documents)
    if name == "cosine":
        one, each = l2_normalize(one), l2_normalize(each)
    if name in ("cosine", "dot"):
        return np.asarray((each * one).sum(axis=-1))
    return np.asarray(FUNCTIONS[name](one, each)[0])


def similarity_pairwise(name: str, a: ArrayLike, b: ArrayLike) -> Float32:  # [A, dim], [A, dim] -> [A]
    """The first vector of `a` with the first of `b`, the second with the second, and so on."""
    first, second = _matrix(a), _matrix(b)
    if first.shape != second.shape:
        raise InputError(f"pairs need equally many vectors of one size, got shapes {first.shape} and {second.shape}")
    rows = [similarity(name, x, y)[0, 0] for x, y in zip(first, second, strict=True)]
    return np.array(rows, dtype=np.float32)


def _matrix(vectors: ArrayLike) -> Float32:
    try:
        array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError):
        kind = type(vectors).__name__
        raise InputError(f"{kind} holds no vectors; expected numbers, [dim] or [count, dim]") from None
    if array.ndim not in (1, 2) or not array.shape[-1]:
        raise InputError(f"vectors have the shape {array.shape}, expected [dim] or [count, dim]")
    return array[None] if array.ndim == 1 else array
