"""A tokenizer under the keys of llama.cpp: tables of pieces, scores and types."""

import os
import warnings
from typing import Any

import numpy as np

from gemma_np.checkpoint.source import Source
from gemma_np.errors import GemmaWarning, InputError
from gemma_np.gguf.file import open_gguf
from gemma_np.gguf.names import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED
from gemma_np.gguf.tokenizer import gguf_pieces
from gemma_np.tokens.json_file import Inexpressible, from_tokenizer_json
from gemma_np.tokens.pieces import FILE, SPACE, Pieces, open_pieces

ADDED_SCORE = -1000.0  # of pieces that do not merge, as llama.cpp's converter writes it


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
