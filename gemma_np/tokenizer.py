"""Text -> token ids, by the checkpoint's tokenizer.json and the `tokenizers` package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from gemma_np.arrays import Int32
from gemma_np.config import Config
from gemma_np.errors import CheckpointError, InputError


class Tokenizer:
    """A checkpoint's tokenizer, with its own limit on length.

    BOS goes in front and EOS behind, as tokenizer.json's post-processor says, and both count towards the limit. A text
    that is too long loses its last tokens, never its EOS.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.path = folder / "tokenizer.json"
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} is missing; a checkpoint folder needs it")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception as error:  # the package raises nothing more specific
            raise CheckpointError(f"{self.path} is not a tokenizer ({error}); download it again") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._rows = config.V
        self.prefix, self.suffix = self._special_tokens()
        self._check(config)

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts in front of a text and behind it."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a").ids
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return full[:start], full[start + len(bare) :]

    def _check(self, config: Config) -> None:
        """Refuse another model's tokenizer: its ids would name other rows of the embedding table."""
        size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        if size > config.V:
            raise CheckpointError(
                f"{self.path} has {size:,} pieces, but config.json says vocab_size = {config.V:,}: it belongs to "
                "another model; take the tokenizer.json that came with these weights"
            )
        for where, found, expected in (("before", self.prefix, config.bos), ("behind", self.suffix, config.eos)):
            if found and expected and found[-1] not in expected:
                raise CheckpointError(
                    f"{self.path} puts the id {found[-1]} {where} a text, but config.json says {sorted(expected)}: it "
                    "belongs to another model; take the tokenizer.json that came with these weights"
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
            _check_unicode(i, text)
        ids, lengths = [], []
        special = len(self.prefix) + len(self.suffix)
        for encoding in self._tokenizer.encode_batch_fast(list(texts)):
            tokens = encoding.ids
            lengths.append(len(tokens))
            if max_tokens is not None and len(tokens) > max_tokens:
                content = tokens[len(self.prefix) : len(tokens) - len(self.suffix)]
                tokens = self.prefix + content[: max(max_tokens - special, 0)] + self.suffix
            ids.append(np.array(tokens, dtype=np.int32))
        for i, array in enumerate(ids, first):
            if array.size and array.max() >= self._rows:
                raise InputError(
                    f"text {i} holds the token {self._tokenizer.id_to_token(int(array.max()))} (id {array.max()}), "
                    f"for which the embedding table of {self._rows:,} rows has none; take it out of the text"
                )
        return ids, lengths

    def prompt_length(self, prompt: str) -> int:
        """How many leading tokens are the prompt's, BOS included: what `include_prompt: false` leaves out of the mean.

        As sentence-transformers counts: the prompt is tokenised alone, and a special token at its end is not its own.
        """
        return len(self._tokenizer.encode(prompt).ids) - bool(self.suffix)


def _check_unicode(i: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"text {i} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is no "
            "Unicode text; decode its source with errors='replace'"
        ) from None
