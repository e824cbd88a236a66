"""Text -> token ids, by the checkpoint's tokenizer.safetensors, or its tokenizer.json and the `tokenizers` package.

The package and Gemma's tokenizer.json take 290 MB and a second to open, the arrays of tokenizer.safetensors 7 MB and
some milliseconds; the ids are the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from gemma_np.arrays import Int32
from gemma_np.config import Config
from gemma_np.errors import CheckpointError, InputError
from gemma_np.tokens.bpe import Encoder
from gemma_np.tokens.package import TOKENIZER_JSON, Package
from gemma_np.tokens.pieces import Pieces, folder_pieces

MAX_FRAME = 64  # ids around a text


class TextEncoder(Protocol):
    """What ids come from.

    path            its file
    sizes           how many ids are pieces of text, and what all ids are below, those of added tokens too
    prefix, suffix  the ids before and after a text
    """

    path: Path
    sizes: tuple[int, int]
    prefix: list[int]
    suffix: list[int]

    def encode(self, texts: Sequence[str]) -> list[Int32]: ...

    def name(self, id: int) -> str: ...

    def id_of(self, name: str) -> int | None: ...

    def offsets(self, texts: Sequence[str]) -> list[Int32]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...

    @property
    def special_ids(self) -> set[int]: ...


class Tokenizer:
    """A checkpoint's tokenizer, with its own limit on length.

    BOS comes first and EOS last, as the checkpoint says, and both count towards the limit. A text that is too long
    loses its last tokens, never its EOS.

    pieces      from elsewhere; None: the folder's tokenizer.safetensors, or else its tokenizer.json
    run         the compiled kernel for pieces, see bpe.Encoder

    max_length  the longest text in tokens, special ones included: for whoever encodes; `encode` is told
    rows        of the embedding table: ids are below it
    frame       how many special tokens are before and after a text
    """

    def __init__(
        self, folder: Path, config: Config, pieces: Pieces | None = None, run: Callable[[int], None] | None = None
    ) -> None:
        pieces = folder_pieces(folder) if pieces is None else pieces
        self._encoder: TextEncoder = (
            Package(folder / TOKENIZER_JSON, config.V) if pieces is None else Encoder(pieces.below(config.V), run)
        )
        self.path, self.prefix, self.suffix = self._encoder.path, self._encoder.prefix, self._encoder.suffix
        self.rows, self.max_length = config.V, config.max_positions
        self.frame = len(self.prefix), len(self.suffix)
        self._check(config)

    def _check(self, config: Config) -> None:
        """Refuse another model's tokenizer: its ids would name other rows of the embedding table."""
        size, _ = self._encoder.sizes
        if size > config.V:
            raise CheckpointError(
                f"{self.path} has {size:,} pieces, but config.json says vocab_size = {config.V:,}: it belongs to "
                f"another model; take the {self.path.name} that came with these weights"
            )
        if len(self.prefix) + len(self.suffix) > MAX_FRAME:
            raise CheckpointError(
                f"{self.path} puts {len(self.prefix) + len(self.suffix):,} ids around each text, expected at most "
                f"{MAX_FRAME}; take the {self.path.name} that came with these weights"
            )
        if any(id >= config.V for id in (*self.prefix, *self.suffix)):
            raise CheckpointError(
                f"{self.path} puts the ids {[*self.prefix, *self.suffix]} around a text, but the embedding table has "
                f"{config.V:,} rows: it belongs to another model; take the {self.path.name} that came with these "
                "weights"
            )
        for where, found, expected in (("before", self.prefix, config.bos), ("after", self.suffix, config.eos)):
            if found and expected and found[-1] not in expected:
                raise CheckpointError(
                    f"{self.path} puts the id {found[-1]} {where} a text, but config.json says {sorted(expected)}: it "
                    f"belongs to another model; take the {self.path.name} that came with these weights"
                )

    def encode(
        self, texts: Sequence[str], max_tokens: int | None = None, first: int = 0
    ) -> tuple[list[Int32], list[int]]:
        """Token ids of some texts, special tokens included.

        max_tokens  longest result, special tokens included; None: no limit
        first       the number of texts[0] in messages
        returns     int32 arrays, and how many tokens each text has without the limit
        raises      InputError: a text that is no valid Unicode, a token that has no row in the embedding table
        """
        for i, text in enumerate(texts, first):
            check_unicode("text", i, text)
        ids = self._encoder.encode(texts)
        lengths = [len(tokens) for tokens in ids]
        if max_tokens is not None:
            for i, tokens in enumerate(ids):
                if len(tokens) > max_tokens:
                    kept = self.bare(tokens)[: max(max_tokens - sum(self.frame), 0)]
                    ids[i] = np.array([*self.prefix, *kept, *self.suffix], np.int32)
        if self._encoder.sizes[1] > self.rows:  # the package's ids may have gaps
            self._check_rows(ids, first)
        return ids, lengths

    def _check_rows(self, ids: Sequence[Int32], first: int) -> None:
        for i, array in enumerate(ids, first):
            if array.size and array.max() >= self.rows:
                raise InputError(
                    f"text {i} holds the token {self._encoder.name(int(array.max()))} (id {array.max()}), "
                    f"for which the embedding table of {self.rows:,} rows has none; take it out of the text",
                    text=i,
                )

    def bare(self, tokens: Int32) -> Int32:
        """A text's ids without the special ones around it."""
        return tokens[self.frame[0] : len(tokens) - self.frame[1]]

    def offsets(self, texts: Sequence[str]) -> list[Int32]:
        """The characters [from, to) that each token stands for, in code points: int32 [T, 2] for each text, without the
        special tokens around it. Tokens that are bytes of one character all stand for it."""
        for i, text in enumerate(texts):
            check_unicode("text", i, text)
        return self._encoder.offsets(texts)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Ids below `rows` -> their text; bytes that are no UTF-8 become U+FFFD."""
        return self._encoder.decode(ids, skip_special_tokens)

    def name(self, id: int) -> str:
        """The piece of an id."""
        return self._encoder.name(id)

    def id_of(self, name: str) -> int | None:
        """The id of a piece; None: it is none."""
        id = self._encoder.id_of(name)
        return id if id is not None and id < self.rows else None

    @property
    def special_ids(self) -> set[int]:
        """The ids of special tokens, which are no text."""
        return {id for id in self._encoder.special_ids if id < self.rows}

    def prompt_length(self, prompt: str) -> int:
        """How many leading tokens are the prompt's, BOS included: what `include_prompt: false` leaves out of the mean.

        As sentence-transformers counts: the prompt is tokenised alone, and a special token at its end is not its own.
        """
        return len(self._encoder.encode([prompt])[0]) - bool(self.suffix)


def check_unicode(what: str, i: int, text: str) -> None:
    """InputError for a string that no UTF-8 can express; `what` and `i` say which one it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} {i} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is "
            "no Unicode text; decode its source with errors='replace'",
            text=i,
        ) from None
