"""Token ids by a tokenizer.json and the `tokenizers` package, which takes 290 MB and a second for Gemma's."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_np.arrays import Int32
from gemma_np.errors import CheckpointError
from gemma_np.files.mapped import LFS_POINTER, MAX_HEADER, refuse_pointer

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_JSON = "tokenizer.json"
MAX_ID = 2**31 - 1  # the package's ids have 32 bits, an embedding table has fewer rows than this


class Package:
    """A tokenizer.json in the `tokenizers` package.

    rows   of the embedding table. An added token that has none (Gemma's <image_soft_token>) is read as text
    """

    def __init__(self, path: Path, rows: int) -> None:
        import tokenizers

        self.path, self._rows = path, rows
        if not os.path.isfile(path):
            raise CheckpointError(f"{path} is missing; a checkpoint folder needs it")
        if path.stat().st_size > MAX_HEADER:
            raise CheckpointError(f"{path} is not a tokenizer (it has more than {MAX_HEADER:,} bytes)")
        with path.open("rb") as file:
            refuse_pointer(path, file.read(len(LFS_POINTER)))
        with self._errors("is not a tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        if why := unserved(self._tokenizer):
            raise CheckpointError(f"{path}: {why} is not served; take the model's own tokenizer.json")
        self._rowless = {id for id in self._tokenizer.get_added_tokens_decoder() if id >= rows}
        self.sizes = self._tokenizer.get_vocab_size(with_added_tokens=False), MAX_ID + 1  # there may be gaps
        with self._errors("is not a tokenizer"):
            bare = self._tokenizer.encode("a", add_special_tokens=False).ids
            full = self._tokenizer.encode("a").ids
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        self.prefix, self.suffix = full[:start], full[start + len(bare) :]

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """The package's errors as ours. It raises nothing more specific than Exception, and panics, which are none."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(f"{self.path} {what} ({error}); download it again") from None

    def encode(self, texts: Sequence[str]) -> list[Int32]:
        ids = self._encoded(self._tokenizer, texts)
        for i, tokens in enumerate(ids):
            if tokens.size and not self._rowless.isdisjoint(tokens[tokens >= self._rows].tolist()):
                ids[i] = self._encoded(self._with_rows_alone, texts[i : i + 1])[0]
        return ids

    def _encoded(self, tokenizer: "tokenizers.Tokenizer", texts: Sequence[str]) -> list[Int32]:
        with self._errors("fails on a text"):
            encodings = tokenizer.encode_batch_fast(list(texts))
        return [np.array(encoding.ids, np.uint32).clip(max=MAX_ID).astype(np.int32) for encoding in encodings]

    @cached_property
    def _with_rows_alone(self) -> "tokenizers.Tokenizer":
        """The same without the added tokens that have no row. Of Gemma's it takes 270 MB and some seconds more, once,
        when the first text has such a token; tokenizer.safetensors costs nothing."""
        import tokenizers

        content = json.loads(self._tokenizer.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] not in self._rowless]
        with self._errors("is not a tokenizer"):
            return tokenizers.Tokenizer.from_str(json.dumps(content))

    def name(self, id: int) -> str:
        return str(self._tokenizer.id_to_token(id))

    def id_of(self, name: str) -> int | None:
        return self._tokenizer.token_to_id(name)

    @property
    def special_ids(self) -> set[int]:
        return {id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        with self._errors("fails on ids"):
            return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def offsets(self, texts: Sequence[str]) -> list[Int32]:
        found = []
        for text in texts:
            with self._errors("fails on a text"):
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
                if not self._rowless.isdisjoint(encoding.ids):
                    encoding = self._with_rows_alone.encode(text, add_special_tokens=False)
            found.append(np.array(encoding.offsets, np.int32).reshape(-1, 2))
        return found


def unserved(tokenizer: "tokenizers.Tokenizer") -> str | None:
    """The part of a tokenizer that could blow a text up, or give other ids each time; Gemma's has none.

    The package runs any: a Replace of "a" by "aa", 40 times in a sequence, asks for a terabyte and ends the process.
    """

    def settings(part: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"type": None} if part is None else json.loads(part.__getstate__())
        return found

    normalizer = settings(tokenizer.normalizer)
    splitter = settings(tokenizer.pre_tokenizer)
    frame = settings(tokenizer.post_processor)
    for name, part, served in (
        ("normalizer", normalizer, (None, "Replace")),
        ("pre_tokenizer", splitter, (None, "Split", "Whitespace")),
        ("post_processor", frame, (None, "TemplateProcessing")),
        ("model", {"type": type(tokenizer.model).__name__}, ("BPE", "WordLevel")),
    ):
        if part["type"] not in served:
            return f"the {name} {part['type']}"
        if "String" not in part.get("pattern", {"String": ""}):
            return f"a {name} with the pattern {part['pattern']}"
    if len(normalizer.get("content", "")) > 1:
        return "a normalizer that lengthens texts"
    if getattr(tokenizer.model, "dropout", None):
        return "a model with dropout"
    if frame["type"] and [item["Sequence"]["id"] for item in frame["single"] if "Sequence" in item] != ["A"]:
        return "a post_processor that takes a text several times"
    return None
