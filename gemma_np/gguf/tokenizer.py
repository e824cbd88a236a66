"""The tokenizer in a GGUF file: llama.cpp's tables of pieces, scores and types, and back."""

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_np.config import Config
from gemma_np.errors import CheckpointError, GemmaWarning, InputError
from gemma_np.gguf.file import GGUF, Texts, open_gguf
from gemma_np.tokens.json_file import Inexpressible, from_tokenizer_json
from gemma_np.tokens.pieces import (
    BYTE,
    CONTROL,
    FILE,
    NORMAL,
    SPACE,
    UNUSED,
    USER_DEFINED,
    Pieces,
    Table,
    from_scores,
    open_pieces,
)
from gemma_np.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemma_np.checkpoint.source import Source

ADDED_SCORE = -1000.0  # of pieces that do not merge, as llama.cpp's converter writes it


def gguf_pieces(file: GGUF, config: Config) -> Pieces:
    """The tokenizer in the file. CheckpointError for one of another kind."""
    path, metadata = file.source.path, file.metadata

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
    for key, default, expected in (("add_space_prefix", True, False), ("normalizer.lowercase", False, False)):
        if setting(key, bool, default) is not expected:
            raise CheckpointError(f"{path}: tokenizer.ggml.{key} is true; EmbeddingGemma's is false. Convert it again")
    table, scores, types = setting("tokens", Texts), setting("scores", np.ndarray), setting("token_type", np.ndarray)
    if len(table) != config.V:
        raise CheckpointError(
            f"{path}: the tokenizer has {len(table):,} pieces, the embedding table {config.V:,} rows; convert it again"
        )
    prefix = [setting("bos_token_id", int)] if setting("add_bos_token", bool, True) else []
    suffix = [setting("eos_token_id", int)] if setting("add_eos_token", bool, False) else []
    return from_scores(path, Table(*table.joined()), scores, types, prefix, suffix)


def open_tokenizer(file: GGUF, config: Config, run: Callable[[int], None] | None) -> Tokenizer:
    """The tokenizer in the file; see Tokenizer for `run`."""
    return Tokenizer(file.source.path, config, gguf_pieces(file, config), run)


def tokenizer_metadata(source: "Source") -> dict[str, Any]:
    """A model's tokenizer under llama.cpp's keys, one piece for each row of the embedding table.

    InputError for one that these tables cannot express; GemmaWarning for one that llama.cpp will read a little
    differently.
    """
    pieces = pieces_of(source)
    V = source.config.V
    table = [pieces.piece(id) for id in range(min(len(pieces), V))]
    kinds = np.full(len(table), NORMAL, np.int32)
    kinds[pieces.byte_ids] = BYTE
    added = dict(zip(pieces.added.tolist(), pieces.special.tolist(), strict=True))
    for id, special in added.items():
        if id < len(table):
            kinds[id] = CONTROL if special else USER_DEFINED
            table[id] = table[id] if special else table[id].replace(SPACE, b" ")
    ranks = pieces.ranks[: len(table)]
    for id in np.flatnonzero((kinds == NORMAL) & (ranks < 0)).tolist():
        if len(table[id].decode(errors="replace")) > 1:
            kinds[id] = UNUSED
    merged = kinds == NORMAL
    ranks = np.where(ranks < 0, ranks.max(initial=0) + 1, ranks)  # what no merge makes comes last
    scores = np.full(len(table), ADDED_SCORE, np.float32)
    scores[merged] = -1 - np.unique(ranks[merged], return_inverse=True)[1]
    table += [f"[PAD{id}]".encode() for id in range(len(table), V)]
    padding = V - len(kinds)
    around = {"bos": pieces.prefix.tolist(), "eos": pieces.suffix.tolist()}
    if any(len(ids) > 1 for ids in around.values()):
        raise InputError(f"{pieces.path} puts several tokens around a text; llama.cpp has room for one on each side")
    if pieces.splits.any() or (kinds == UNUSED).any():
        warnings.warn(
            f"{pieces.path}: some pieces merge in one way only, which GGUF's tables cannot say: llama.cpp may part "
            "some words otherwise, and vectors then differ",
            GemmaWarning,
            stacklevel=2,
        )
    ids = {piece: id for id, piece in enumerate(table)}
    known = {"unknown": b"<unk>", "padding": b"<pad>", "mask": b"<mask>"}
    settings: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "tokens": table,
        "scores": np.concatenate([scores, np.full(padding, ADDED_SCORE, np.float32)]),
        "token_type": np.concatenate([kinds, np.full(padding, UNUSED, np.int32)]),
        **{f"{name}_token_id": found[0] for name, found in around.items() if found},
        **{f"{name}_token_id": ids[piece] for name, piece in known.items() if piece in ids},
        **{f"add_{name}_token": bool(found) for name, found in around.items()},
        "add_space_prefix": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in settings.items()}


def pieces_of(source: "Source") -> Pieces:
    """The tokenizer of a model as tables."""
    if os.path.isfile(source.path):
        return gguf_pieces(open_gguf(source.path), source.config)
    trunk = source.path / source.modules.trunk
    if os.path.isfile(trunk / FILE):
        return open_pieces(trunk / FILE)
    try:
        return from_tokenizer_json(trunk / "tokenizer.json")
    except Inexpressible as error:
        raise InputError(f"{trunk / 'tokenizer.json'} cannot be exported: {error}") from None
