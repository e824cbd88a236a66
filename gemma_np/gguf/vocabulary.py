"""A tokenizer under the keys of llama.cpp: tables of pieces, scores and types."""

from typing import Any

import numpy as np

from gemma_np.arrays import Float32, Int32
from gemma_np.checkpoint.source import Source
from gemma_np.errors import InputError, warn
from gemma_np.gguf.names import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED
from gemma_np.tokens.json_file import Inexpressible
from gemma_np.tokens.pieces import SPACE, Pieces

ADDED_SCORE = -1000.0  # of pieces that do not merge, as llama.cpp's converter writes it


def tokenizer_metadata(source: Source) -> dict[str, Any]:
    """A model's tokenizer under llama.cpp's keys, one piece for each row of the embedding table.

    InputError for one that these tables cannot express; GemmaWarning for one that llama.cpp will read a little
    differently.
    """
    try:
        pieces = source.pieces()
    except Inexpressible as error:
        raise InputError(f"{source.path}: its tokenizer.json cannot be exported: {error}") from None
    table, kinds = named(pieces, source.config.V)
    scores = scored(pieces, kinds)
    bos, eos = pieces.prefix.tolist(), pieces.suffix.tolist()
    if len(bos) > 1 or len(eos) > 1:
        raise InputError(f"{pieces.path} puts several tokens around a text; llama.cpp has room for one on each side")
    if pieces.splits.any() or (kinds[: len(pieces)] == UNUSED).any():
        warn(
            f"{pieces.path}: some pieces merge in one way only, which GGUF's tables cannot say: llama.cpp may part "
            "some words otherwise, and vectors then differ"
        )
    ids = {piece: id for id, piece in enumerate(table)}
    known = {"unknown": b"<unk>", "padding": b"<pad>", "mask": b"<mask>"}
    settings: dict[str, Any] = {
        "model": "llama",
        "pre": "default",
        "tokens": table,
        "scores": scores,
        "token_type": kinds,
        **{f"{name}_token_id": found[0] for name, found in (("bos", bos), ("eos", eos)) if found},
        **{f"{name}_token_id": ids[piece] for name, piece in known.items() if piece in ids},
        "add_bos_token": bool(bos),
        "add_eos_token": bool(eos),
        "add_space_prefix": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in settings.items()}


def named(pieces: Pieces, V: int) -> tuple[list[bytes], Int32]:
    """The bytes and the type of each of V pieces. Rows of the table that have no piece are `[PAD...]`, unused."""
    table = [pieces.piece(id) for id in range(min(len(pieces), V))]
    kinds = np.full(V, UNUSED, np.int32)
    kinds[: len(table)] = NORMAL
    kinds[pieces.byte_ids] = BYTE
    for id, special in zip(pieces.added.tolist(), pieces.special.tolist(), strict=True):
        if id < len(table):
            kinds[id] = CONTROL if special else USER_DEFINED
            table[id] = table[id] if special else table[id].replace(SPACE, b" ")
    merges = pieces.ranks[: len(table)] >= 0
    for id in np.flatnonzero((kinds[: len(table)] == NORMAL) & ~merges).tolist():
        if len(table[id].decode(errors="replace")) > 1:
            kinds[id] = UNUSED
    return table + [f"[PAD{id}]".encode() for id in range(len(table), V)], kinds


def scored(pieces: Pieces, kinds: Int32) -> Float32:
    """The score of each piece: the lower its rank, the higher. Pieces that no merge makes come last."""
    ranks = pieces.ranks[: len(kinds)]
    ranks = np.where(ranks < 0, ranks.max(initial=0) + 1, ranks)
    scores = np.full(len(kinds), ADDED_SCORE, np.float32)
    merged = kinds[: len(ranks)] == NORMAL
    scores[: len(ranks)][merged] = -1 - np.unique(ranks[merged], return_inverse=True)[1]
    return scores
