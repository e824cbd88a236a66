"""The tokenizer in a GGUF file: llama.cpp's tables of pieces, scores and types, and back."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.arrays import AnyArray
from gemma_np.config import Config
from gemma_np.errors import CheckpointError
from gemma_np.gguf.file import GGUF, Texts
from gemma_np.gguf.names import CONTROL, NORMAL, OLLAMA, UNKNOWN, USER_DEFINED
from gemma_np.tokens.pieces import SPACE, Pieces, PieceTable, make_pieces
from gemma_np.tokens.tokenizer import Tokenizer

log = logging.getLogger("gemma_np")


def gguf_pieces(file: GGUF, config: Config) -> Pieces:
    """The tokenizer in the file. CheckpointError for one of another kind.

    Ollama puts no space before a text where its file does not say so; and the file may have pieces beyond the embedding
    table's rows, of the models that see pictures.
    """
    path, metadata = file.source.path, file.metadata
    ollama = metadata.get("general.architecture") == OLLAMA.architecture

    def setting(key: str, kind: Any, default: Any = None) -> Any:
        value = metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, kind):
            raise CheckpointError(f"{path}: tokenizer.ggml.{key} is {value!r}, expected {kind.__name__}")
        return value

    if (kind := setting("model", str)) != "llama":
        raise CheckpointError(
            f"{path}: tokenizer.ggml.model = {kind!r}; EmbeddingGemma's is 'llama', pieces with scores. "
            "Convert the model again, with its tokenizer"
        )
    for key, default, expected in (("add_space_prefix", not ollama, False), ("normalizer.lowercase", False, False)):
        if setting(key, bool, default) is not expected:
            raise CheckpointError(f"{path}: tokenizer.ggml.{key} is true; EmbeddingGemma's is false. Convert it again")
    table, scores, types = setting("tokens", Texts), setting("scores", np.ndarray), setting("token_type", np.ndarray)
    if ollama and len(table) > config.V:
        table, scores, types = table.first(config.V), scores[: config.V], types[: config.V]
    if len(table) != config.V:
        raise CheckpointError(
            f"{path}: the tokenizer has {len(table):,} pieces, the embedding table {config.V:,} rows; convert it again"
        )
    prefix = [setting("bos_token_id", int)] if setting("add_bos_token", bool, True) else []
    suffix = [setting("eos_token_id", int)] if setting("add_eos_token", bool, False) else []
    return from_scores(path, PieceTable(*table.joined()), scores, types, prefix, suffix)


def open_tokenizer(file: GGUF, config: Config, run: Callable[[int], None] | None) -> Tokenizer:
    """The tokenizer in the file; see Tokenizer for `run`. A warning in the log where no text gets its end."""
    pieces = gguf_pieces(file, config)
    if not len(pieces.suffix):
        log.warning(
            "%s: texts do not end with <eos> (tokenizer.ggml.add_eos_token), as EmbeddingGemma's do: its vectors are "
            "those of llama.cpp, not of the checkpoint",
            file.source.path,
        )
    return Tokenizer(file.source.path, config, pieces, run)


def from_scores(
    path: Path, table: PieceTable, scores: AnyArray, types: AnyArray, prefix: Sequence[int], suffix: Sequence[int]
) -> Pieces:
    """The pieces of a GGUF file of SentencePiece's kind: tokenizer.ggml.tokens, scores and token_type.

    A higher score merges first; a score is all that SentencePiece has, the order of equal ones is that of
    tokenizer.json. What is user-defined merges before the rest: in SentencePiece's own model its score is 0, the
    highest, but converters write -1000. They also write its U+2581 as spaces.

    prefix, suffix  ids around each text: [bos] and [eos] where the file says add_bos and add_eos, else empty
    raises          CheckpointError
    """
    scores, types, V = np.asarray(scores, np.float32), np.asarray(types), len(table.starts) - 1
    user = types == USER_DEFINED
    try:
        if not V == len(scores) == len(types):
            raise ValueError(f"{V} pieces, {len(scores)} scores and {len(types)} types do not fit together")
        if np.isnan(scores).any():
            raise ValueError("a score is NaN")
        if any(not 0 <= id < V for id in (*prefix, *suffix)):
            raise ValueError(f"bos or eos is none of the {V} pieces")
        normal = types == NORMAL
        ranks = np.full(V, -1, np.int32)
        ranks[normal] = np.unique(-scores[normal], return_inverse=True)[1] + 1
        ranks[user] = 0
        special = np.flatnonzero((types == CONTROL) | (types == UNKNOWN)).tolist()
        added = np.flatnonzero(user).tolist() + special
        spaced = with_spaces(table, user)
        return make_pieces(path, spaced, ranks, np.zeros(V), added, special, prefix, suffix, pieces=V)
    except ValueError as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be used: {error}") from None


def with_spaces(table: PieceTable, chosen: AnyArray) -> PieceTable:
    """The table with U+2581 for spaces in the chosen pieces, bool [V]."""
    spaces = np.flatnonzero(table.text == ord(" "))
    spaces = spaces[chosen[np.searchsorted(table.starts, spaces, side="right") - 1]]
    text = table.text.copy()
    text[spaces] = SPACE[0]
    rest = np.tile(np.frombuffer(SPACE[1:], np.uint8), len(spaces))
    starts = table.starts + 2 * np.searchsorted(spaces, table.starts)
    return PieceTable(np.insert(text, np.repeat(spaces + 1, 2), rest), starts.astype(np.int32))
