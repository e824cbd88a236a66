"""A long text in pieces that each fit into so many tokens, cut at the best place there is."""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gemma_np.arrays import Int32
from gemma_np.errors import InputError

# Where a cut is welcome, the best first: after a paragraph, a sentence, a line, a word.
PARAGRAPH = r"\n[^\S\n]*\n\s*"
SENTENCE = r"(?:(?<!\W\w)\.|[!?…])[\"'”’»)\]]*\s+|[。！？｡]+[”’」』）]*\s*"  # not after an initial
BREAKS = tuple(map(re.compile, (PARAGRAPH, SENTENCE, r"\n\s*", r"\s+")))
JOINER = "\u200d"
VIRAMA = 9  # combining class of the sign that joins two consonants


class Piece(NamedTuple):
    """text[start:end] of a text, in code points, and its tokens: prompt, BOS and EOS included."""

    text: str
    start: int
    end: int
    tokens: int


def split(text: str, offsets: Int32, count: Callable[[str], int], max_tokens: int, overlap: int) -> list[Piece]:
    """Pieces of at most `max_tokens` tokens, which cover the text without a gap.

    offsets     of the text's tokens, [T, 2], see Tokenizer.offsets
    count       a piece's tokens, with all that is around it
    overlap     how many tokens at the end of a piece begin the next one, too; fewer where these are no whole characters

    Raises InputError where a single character does not fit. Time grows with the length of the text.
    """
    room = max_tokens - count("")
    if room < 1 or overlap >= room:
        raise InputError(
            f"max_tokens = {max_tokens} leaves {max(room, 0)} for the text beside prompt, BOS and EOS; expected more "
            f"than the overlap of {overlap}"
        )
    pieces: list[Piece] = []
    begins, ends = offsets[:, 0], offsets[:, 1]
    done = 0  # characters
    while done < len(text):
        start = done
        if pieces and overlap:
            begun = int(np.searchsorted(begins, done))  # tokens
            start = max(int(begins[max(begun - overlap, 0)]), pieces[-1].start + 1)
            start = next((i for i in range(start, done) if may_cut(text, i)), done)
        end = done
        while end <= done:  # what overlaps may leave no room for more
            last = int(np.searchsorted(ends, start, "right")) + room
            reach = len(text) if last >= len(offsets) else int(begins[last])
            end, tokens = fitting(text, start, reach, count, max_tokens)
            if end <= done:
                start = done
        pieces.append(Piece(text[start:end], start, end, tokens))
        done = end
    return pieces


def fitting(text: str, start: int, end: int, count: Callable[[str], int], max_tokens: int) -> tuple[int, int]:
    """The end of a piece from `start` that may reach to `end`, and its tokens. A piece alone may have more tokens than
    as a part of the text, since other letters meet: then it ends earlier."""
    end = max(end, start + 1)
    while True:
        cut = end if end == len(text) else best_cut(text, start, end)
        tokens = count(text[start:cut])
        if tokens <= max_tokens:
            return cut, tokens
        if cut == start + 1:
            raise InputError(
                f"max_tokens = {max_tokens} has no room for the character {text[start]!r}, which takes {tokens} tokens "
                "with prompt, BOS and EOS"
            )
        end = max(start + 1, cut - max(1, (cut - start) * (tokens - max_tokens) // tokens))


def best_cut(text: str, start: int, end: int) -> int:
    """The best place for a cut in the second half of text[start:end], else between the last two characters as people
    see them, else at `end`."""
    middle = start + (end - start) // 2
    for pattern in BREAKS:
        cut = middle
        for found in pattern.finditer(text, middle, end):
            cut = found.end()
        if cut > middle and may_cut(text, cut):
            return cut
    for cut in range(end, start, -1):
        if may_cut(text, cut):
            return cut
    return end


def may_cut(text: str, i: int) -> bool:
    """Whether no character, as people see them, is parted by a cut before text[i]: combining marks, conjuncts, joined
    emoji, flags, Hangul syllables, CR LF. The main rules of Unicode's annex 29."""
    if not 0 < i < len(text):
        return True
    before, after = text[i - 1], text[i]
    if before + after == "\r\n" or JOINER in (before, after):
        return False
    if unicodedata.combining(before) == VIRAMA and unicodedata.category(after) == "Lo":
        return False
    if unicodedata.category(after) in ("Mn", "Me", "Mc") or "\U0001f3fb" <= after <= "\U0001f3ff":
        return False
    if "\U0001f1e6" <= after <= "\U0001f1ff":
        flags = 0
        while flags < i and "\U0001f1e6" <= text[i - 1 - flags] <= "\U0001f1ff":
            flags += 1
        return flags % 2 == 0
    leading = "\u1100" <= before <= "\u1112"
    return not (("\u1160" <= after <= "\u11ff") or (leading and "\u1100" <= after <= "\u1112"))
