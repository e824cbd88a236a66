"""What became of each text of a call: how many tokens it has, whether it was cut, and why it has no vector."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemma_np.arrays import AnyArray
from gemma_np.batches import described, strings
from gemma_np.errors import InputError
from gemma_np.tokens.tokenizer import check_unicode

OUTPUT_VALUES = ("sentence_embedding", "token_embeddings", None)
ERRORS = ("raise", "mark")


class Outcomes:
    """Of B texts, in their order; `encode(..., return_info=True)` gives it, `stream(..., outcomes=)` fills it.

    tokens     int32 [B]: how many each has, prompt, BOS and EOS included, before any cut; 0: it has no vector
    truncated  bool [B]: whether it had more than `max_seq_length` and was cut there
    ok         bool [B]: whether it has a vector
    errors     number of a text, from 0 -> why it has none
    """

    def __init__(self) -> None:
        self.errors: dict[int, str] = {}
        self._tokens: list[int] = []
        self._truncated: list[bool] = []

    def __repr__(self) -> str:
        return f"Outcomes({len(self)} texts, {sum(self._truncated)} truncated, {len(self.errors)} errors)"

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, lengths: Sequence[int], limit: int, errors: Mapping[int, str]) -> None:
        """The next texts': their numbers of tokens, where they are cut, and the errors by the texts' numbers."""
        for i, length in enumerate(lengths, len(self)):
            self._tokens.append(0 if i in errors else length)
            self._truncated.append(length > limit and i not in errors)
        self.errors.update(errors)

    @property
    def tokens(self) -> AnyArray:
        return np.array(self._tokens, np.int32)

    @property
    def truncated(self) -> AnyArray:
        return np.array(self._truncated, bool)

    @property
    def ok(self) -> AnyArray:
        found = np.ones(len(self), bool)
        found[list(self.errors)] = False
        return found


def check_string(what: str, i: int, string: object) -> None:
    """InputError for what is no string, or no Unicode; `what` and `i` say which one it is."""
    if not isinstance(string, str):
        raise InputError(f"{what} {i} is {described(string)}, expected a string", text=i)
    check_unicode(what, i, string)


def prompted(texts: Sequence[Any], prompts: str | Sequence[str], first: int = 0) -> list[str]:
    """Each text after its prompt; InputError for what is no text."""
    if isinstance(texts, str):
        raise InputError("one string was passed where a list of strings is expected; put it into a list")
    texts = list(strings(texts, "texts"))
    each = [prompts] * len(texts) if isinstance(prompts, str) else list(strings(prompts, "prompts"))
    if len(each) != len(texts):
        raise InputError(f"{len(each)} prompts for {len(texts)} texts; expected one for all, or one for each")
    for what, group in (("text", texts), ("the prompt of text", each)):
        for i, string in enumerate(group, first):
            check_string(what, i, string)
    return [prompt + text for prompt, text in zip(each, texts, strict=True)]


def sound(texts: Sequence[object], first: int) -> tuple[list[str], dict[int, str]]:
    """The texts with an empty one in place of each that is no string or no Unicode, and why, by the texts' numbers."""
    kept, errors = [], {}
    for i, text in enumerate(texts, first):
        try:
            check_string("text", i, text)
        except InputError as error:
            errors[i], text = str(error), ""
        kept.append(text)
    return kept, errors  # type: ignore[return-value]


def check_marks(errors: str, output_value: str | None, precision: str, outcomes: Outcomes | None) -> None:
    """InputError for what `stream` cannot give."""
    for name, value, known in (("output_value", output_value, OUTPUT_VALUES), ("errors", errors, ERRORS)):
        if value not in known:
            raise InputError(f"{name} = {value!r}, expected one of {', '.join(map(repr, known))}")
    if errors == "mark" and output_value != "sentence_embedding":
        raise InputError("errors='mark' is for sentence embeddings; texts without one have no tokens either")
    if errors == "mark" and precision != "float32" and outcomes is None:
        raise InputError(
            f"errors='mark' with precision = {precision!r} needs return_info=True: codes have no value that marks a "
            "text without a vector"
        )
