"""Streams of texts into batches, and batches of vectors into one array, with flat memory however many there are."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat

import numpy as np

from gemma_np.arrays import AnyArray, Int32
from gemma_np.errors import InputError

# A batch ends at the first of these, whatever the caller asks for: its activations stay in the last cache, and the
# workspace stays small. More would buy nothing: weights are read once for a thousand tokens.
BATCH_TOKENS = 1024
BATCH_TEXTS = 256


def paired(texts: Iterable[str], prompts: str | Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each text with its prompt; InputError when there are more of the one than of the other."""
    if isinstance(prompts, str):
        yield from zip(texts, repeat(prompts), strict=False)
        return
    try:
        yield from zip(texts, prompts, strict=True)
    except ValueError:
        raise InputError("there are not as many prompts or titles as texts; expected one for each text") from None


def chunked(pairs: Iterator[tuple[str, str]], size: int) -> Iterator[tuple[list[str], list[str]]]:
    """`size` texts at a time, with their prompts."""
    while chunk := list(islice(pairs, size)):
        yield [text for text, _ in chunk], [prompt for _, prompt in chunk]


def split(ids: Sequence[Int32]) -> Iterator[slice]:
    """Runs of at most BATCH_TEXTS texts and BATCH_TOKENS tokens together; a longer text is a run of its own."""
    start = tokens = 0
    for i, text in enumerate(ids):
        if i > start and (tokens + len(text) > BATCH_TOKENS or i - start == BATCH_TEXTS):
            yield slice(start, i)
            start, tokens = i, 0
        tokens += len(text)
    if start < len(ids):
        yield slice(start, len(ids))


def gathered(batches: Iterable[AnyArray], empty: AnyArray, total: int | None) -> AnyArray:
    """All batches as one array; with their total number known, each is copied once and nothing is held twice.

    empty    [0, ...] of the right width and dtype
    """
    if total is None:
        return np.concatenate([empty, *batches])
    whole = np.empty((total, *empty.shape[1:]), dtype=empty.dtype)
    done = 0
    for batch in batches:
        whole[done : done + len(batch)] = batch
        done += len(batch)
    return whole
