"""Streams of texts into batches, and batches of vectors into one array, with flat memory however many there are."""

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, repeat
from typing import Any

import numpy as np

from gemma_np.arrays import AnyArray
from gemma_np.errors import InputError


def strings(inputs: Any, name: str) -> Iterable[str]:
    """What a caller passed as texts, prompts or titles, to be iterated; each element is checked where it is used.

    Any iterable will do, and a data set that has only `len()` and indices. InputError for what would be iterated, but
    not as meant: one string, a dictionary, and a table, which gives its columns' names.
    """
    for columns in ("columns", "column_names"):  # of pandas and polars, of pyarrow and datasets
        if getattr(type(inputs), columns, None) is not None and not isinstance(inputs, Mapping):
            names = [repr(column) for column in getattr(inputs, columns)] or ["'...'"]
            raise InputError(
                f"{name} is a table ({type(inputs).__name__}) with the columns {', '.join(names)}; pass one of them, "
                f"table[{names[0]}]"
            )
    if isinstance(inputs, str | bytes | Mapping) or getattr(inputs, "shape", None) == ():
        raise InputError(f"{name} is {described(inputs)}, expected strings")
    if isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        return (inputs[i] for i in range(len(inputs)))
    raise InputError(f"{name} is {described(inputs)}, expected strings")


def expected_number(texts: object) -> int | None:
    """How many texts there will be, as far as `len()` tells: a hint, which may be wrong; None: it does not tell."""
    try:
        return operator.length_hint(texts, 0) or None
    except Exception:  # whatever a stranger's __len__ raises: nothing depends on it
        return None


def described(value: object) -> str:
    """For messages: what was passed instead of text."""
    if value is None:
        return "None"
    if isinstance(value, bytes):
        return f"{type(value).__name__} (decode it first)"
    if getattr(value, "shape", None) == ():
        return f"{type(value).__name__} without axes (take its .item())"
    return type(value).__name__


def paired(texts: Iterable[str], prompts: str | Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each text with its prompt; InputError when there are more of the one than of the other."""
    if isinstance(prompts, str):
        yield from zip(texts, repeat(prompts), strict=False)
        return
    end = object()
    others = iter(strings(prompts, "prompt"))
    for text in texts:
        if (prompt := next(others, end)) is end:
            break
        yield text, prompt  # type: ignore[misc]
    else:
        if next(others, end) is end:
            return
    raise InputError("there are not as many prompts or titles as texts; expected one for each text")


def chunked(pairs: Iterator[tuple[str, str]], size: int) -> Iterator[tuple[list[str], list[str]]]:
    """`size` texts at a time, with their prompts."""
    while chunk := list(islice(pairs, min(size, sys.maxsize))):
        yield [text for text, _ in chunk], [prompt for _, prompt in chunk]


def gathered(batches: Iterable[AnyArray], empty: AnyArray, expected: int | None) -> AnyArray:
    """All batches as one array. Each is copied once and nothing is held twice, if as many rows come as are expected.

    empty      [0, ...] of the right width and dtype
    expected   how many rows there will probably be; None: not known. The rows that come decide
    """
    try:
        whole = np.empty((expected or 0, *empty.shape[1:]), dtype=empty.dtype)
    except (MemoryError, ValueError):  # a hint of more than there can be
        whole = empty
    done, more = 0, []
    for batch in batches:
        room = whole[done : done + len(batch)]
        room[:] = batch[: len(room)]
        done += len(room)
        if len(room) < len(batch):
            more.append(batch[len(room) :])
    return whole if done == len(whole) and not more else np.concatenate([whole[:done], *more])
