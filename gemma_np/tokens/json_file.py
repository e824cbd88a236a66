"""tokenizer.json to the arrays of pieces.py, where these can say the same, and back.

The `tokenizers` package merges by a table of pairs, the arrays by the rank of the piece that a pair makes. A table says
the same as ranks if it is sorted by them, which is checked merge by merge:

- Pieces come in groups, one after the other in the table. A group's number is the rank of its pieces.
- A group of one piece has all the ways to split it, or a single one; the longer left part comes first.
- Only the first group may have several pieces. Each is one character again and again, and among those of the same
  character the longer left part comes first, then the longer right part: Gemma's runs of spaces, newlines and tabs.
  Where such runs stand side by side does not matter: as long as any pair of this group is left, only pairs of this
  group merge, and what happens in one run changes no other.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemma_np.errors import CheckpointError
from gemma_np.files.mapped import read_json_object
from gemma_np.files.writing import replaced
from gemma_np.tokens.pieces import SPACE, Pieces, joined, make_pieces

Merge = tuple[str, str]


class Inexpressible(Exception):
    """A tokenizer.json says what the arrays cannot; the message says what. The file itself still serves."""


def require(right: bool, why: str) -> None:
    if not right:
        raise Inexpressible(why)


def from_tokenizer_json(path: Path) -> Pieces:
    """The arrays of a tokenizer.json.

    raises  Inexpressible; CheckpointError: the file is missing or no JSON
    """
    content = read_json_object(path)
    try:
        return _converted(path, content)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise Inexpressible(f"it has not the form of a tokenizer.json ({error!r})") from None
    except ValueError as error:
        raise Inexpressible(str(error)) from None


NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE.decode()}
# Splits at spaces, and the normaliser has left none: it does nothing.
PRE_TOKENIZER = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def _converted(path: Path, content: dict[str, Any]) -> Pieces:
    model, vocabulary = content["model"], content["model"]["vocab"]
    require(content["normalizer"] == NORMALIZER, "its normalizer is not the replacement of spaces by U+2581")
    require(content["pre_tokenizer"] in (None, PRE_TOKENIZER), "its pre_tokenizer is not Gemma's, which never splits")
    require(model["type"] == "BPE", f"its model is {model['type']}, not BPE")
    require(model["byte_fallback"] is True, "its model has no byte_fallback")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        require(not model.get(name), f"its model has {name} = {model.get(name)!r}")
    table = sorted(vocabulary, key=vocabulary.__getitem__)
    require([vocabulary[piece] for piece in table] == list(range(len(table))), "its ids have gaps")
    merges: list[Merge] = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append((left, right))
    ranks, splits = ranked(merges, vocabulary)
    pieces = len(table)
    added: dict[str, int] = {}
    special = []
    for token in content["added_tokens"]:
        text, id = token["content"], token["id"]
        for flag in ("normalized", "lstrip", "rstrip", "single_word"):
            require(token[flag] is False, f"its added token {text!r} has {flag} = {token[flag]!r}")
        require(id == vocabulary.get(text, len(table)), f"its added token {text!r} has the id {id}")
        require(text not in added, f"its added token {text!r} is listed twice")
        if id == len(table):
            table.append(text)
        added[text] = id
        if token["special"]:
            special.append(id)
    ranks += [-1] * (len(table) - pieces)
    splits += [0] * (len(table) - pieces)
    prefix, suffix = frame(content["post_processor"])
    require(all(0 <= id < len(table) for id in prefix + suffix), "its post_processor has ids that are no pieces")
    encoded = [piece.encode() for piece in table]
    return make_pieces(path, joined(encoded), ranks, splits, list(added.values()), special, prefix, suffix, pieces)


def frame(post_processor: Any) -> tuple[list[int], list[int]]:
    """The ids that a post-processor puts before and after a text."""
    if post_processor is None:
        return [], []
    require(post_processor["type"] == "TemplateProcessing", f"its post_processor is {post_processor['type']}")
    found: tuple[list[int], list[int]] = ([], [])
    texts = 0
    for item in post_processor["single"]:
        if "SpecialToken" in item:
            found[texts].extend(post_processor["special_tokens"][item["SpecialToken"]["id"]]["ids"])
        else:
            texts += 1
            require(item["Sequence"]["id"] == "A" and texts == 1, "its post_processor does not take each text once")
    require(texts == 1, "its post_processor leaves the text out")
    return found


def ranked(merges: Sequence[Merge], vocabulary: dict[str, int]) -> tuple[list[int], list[int]]:
    """Each piece's rank and split, after the checks that the head of this file tells of."""
    ranks, splits = [-1] * len(vocabulary), [0] * len(vocabulary)
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}
    lefts: dict[str, list[str]] = {}  # piece -> its merges' left parts
    for left, right in merges:
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
            raise Inexpressible(f"its merge {left!r} + {right!r} is of pieces that it lacks")
        if left in bytes_ or right in bytes_:
            raise Inexpressible(f"its merge {left!r} + {right!r} is of a byte")
        lefts.setdefault(left + right, []).append(left)
    for rank, group in enumerate(groups(merges)):
        check_order(group, rank)
        for left, right in group:
            ranks[vocabulary[left + right]] = rank
    for piece, found in lefts.items():
        if len(found) < sum(piece[:k] in vocabulary and piece[k:] in vocabulary for k in range(1, len(piece))):
            if len(found) > 1:
                raise Inexpressible(f"{len(found)} merges make {piece!r}, neither all that could nor a single one")
            splits[vocabulary[piece]] = len(found[0].encode())
    return ranks, splits


def groups(merges: Sequence[Merge]) -> list[Sequence[Merge]]:
    """The table in as many parts as can be such that all merges of a piece are in the same one."""
    last = {left + right: i for i, (left, right) in enumerate(merges)}
    found, begin, end = [], 0, 0
    for i, (left, right) in enumerate(merges):
        end = max(end, last[left + right])
        if i == end:
            found.append(merges[begin : i + 1])
            begin, end = i + 1, i + 1
    return found


def check_order(group: Sequence[Merge], rank: int) -> None:
    """Pieces of a group are one, or runs of characters; each character's merges are in order."""
    pieces = {left + right for left, right in group}
    if len(pieces) > 1 and (rank > 0 or any(len(set(piece)) > 1 for piece in pieces)):
        raise Inexpressible(f"its merges of {' and '.join(map(repr, sorted(pieces)[:2]))} take turns")
    for character in {piece[0] for piece in pieces}:
        lengths = [(-len(left), -len(right)) for left, right in group if left[0] == character]
        if any(one >= other for one, other in pairwise(lengths)):
            raise Inexpressible(f"its merges of {min(pieces)!r} do not begin with the longest left part")


def write_tokenizer_json(pieces: Pieces, path: Path) -> None:
    """A tokenizer.json that gives the same ids, for other packages.

    raises  CheckpointError: pieces that are no UTF-8, which only a damaged file has
    """
    try:
        table = [pieces.piece(id).decode() for id in range(len(pieces))]
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{pieces.path}: a piece is no UTF-8 ({error}); make or download it again") from None
    vocabulary = {piece: id for id, piece in enumerate(table[: pieces.pieces])}
    merges = []
    for piece, rank, split in zip(vocabulary, pieces.ranks.tolist(), pieces.splits.tolist(), strict=False):
        for k in range(1, len(piece) if rank >= 0 else 0):
            left, right = piece[:k], piece[k:]
            if left in vocabulary and right in vocabulary and split in (0, len(left.encode())):
                merges.append((rank, -len(left), -len(right), left, right))
    merges.sort(key=lambda merge: merge[:3])
    special = dict(zip(pieces.added.tolist(), pieces.special.tolist(), strict=True))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": table[id], **flags, "special": bool(special[id])} for id in sorted(special)
        ],
        "normalizer": NORMALIZER,
        "pre_tokenizer": PRE_TOKENIZER,
        "post_processor": template(table, pieces.prefix.tolist(), pieces.suffix.tolist()),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE.decode()}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>" if "<unk>" in vocabulary else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [[left, right] for *_, left, right in merges],
        },
    }
    with replaced(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=2).encode())


def template(table: Sequence[str], prefix: Sequence[int], suffix: Sequence[int]) -> dict[str, Any]:
    """A post-processor with these ids around a text, or around each of a pair."""

    def sequence(name: str, type: int) -> list[dict[str, Any]]:
        def tokens(ids: Sequence[int]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": table[id], "type_id": type}} for id in ids]

        return [*tokens(prefix), {"Sequence": {"id": name, "type_id": type}}, *tokens(suffix)]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {
            table[id]: {"id": table[id], "ids": [id], "tokens": [table[id]]} for id in sorted({*prefix, *suffix})
        },
    }
