"""A tokenizer's vocabulary as arrays: from a GGUF file's tables, and in tokenizer.safetensors, mapped in milliseconds.

What the arrays mean, and how a text becomes ids by them: bpe.py. From tokenizer.json and back: json_file.py.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from gemma_np.arrays import AnyArray, Int32
from gemma_np.errors import CheckpointError
from gemma_np.files.safetensors import open_safetensors
from gemma_np.files.writing import replaced
from gemma_np.kernels.plan import HASH_BASE, HASH_PRIME

FILE = "tokenizer.safetensors"
LAYOUT = 1  # of the file
SPACE = "\u2581".encode()
LONGEST = 255  # bytes of a piece
MAX_PROBES = 4096  # slots in a row that are taken; Gemma's hash table has 235
DTYPES: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "U8": np.dtype("u1")}
BYTES = ("text", "splits", "special")  # arrays of bytes; the others are int32


@dataclass(frozen=True, eq=False)
class Pieces:
    """A tokenizer's vocabulary. V pieces and A added tokens; a token may be both.

    path     where it comes from, for messages
    text     uint8: all pieces one after the other, UTF-8
    starts   int32 [V + 1]: piece i is text[starts[i] : starts[i + 1]]
    ranks    int32 [V]: the lowest merges first; -1: no merge makes this piece
    splits   uint8 [V]: 0: any two pieces merge into it; k: only those of which the left one has k bytes
    slots    int32 [2^k]: the hash table of the pieces, see kernels/plan.py
    added    int32 [A]: the added tokens, sorted by their bytes
    special  uint8 [A]: 1 for those that are no text (<bos>), as tokenizer.json has it; it changes no ids
    byte_ids int32 [256]: the ids of <0x00> to <0xFF>
    prefix   int32: ids before each text; suffix: after it
    pieces   how many ids are pieces that merge; the others, after them, are added tokens only
    """

    path: Path
    text: AnyArray
    starts: Int32
    ranks: Int32
    splits: AnyArray
    slots: Int32
    added: Int32
    special: AnyArray
    byte_ids: Int32
    prefix: Int32
    suffix: Int32
    pieces: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def piece(self, id: int) -> bytes:
        return bytes(self.text[self.starts[id] : self.starts[id + 1]])

    def id_of(self, piece: bytes) -> int | None:
        """The id of a piece or an added token, found among all that are as long."""
        alike = np.flatnonzero(np.diff(self.starts) == len(piece))
        rows = self.text[self.starts[alike][:, None] + np.arange(len(piece))]
        same = alike[(rows == np.frombuffer(piece, np.uint8)).all(axis=1)] if piece else alike
        return int(same[0]) if same.size else None

    def below(self, rows: int) -> "Pieces":
        """The same without the added tokens that have none of so many rows of an embedding table."""
        kept = self.added < rows
        return self if kept.all() else replace(self, added=self.added[kept], special=self.special[kept])

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The pieces that merge. A Python dictionary, for encode_in_python alone: it costs more than all arrays."""
        text, starts = self.text.tobytes(), self.starts.tolist()
        return {text[starts[id] : starts[id + 1]]: id for id in range(self.pieces)}

    @cached_property
    def added_ids(self) -> dict[bytes, int]:
        return {self.piece(id): id for id in self.added.tolist()}

    @cached_property
    def added_lengths(self) -> dict[int, list[int]]:
        """First byte -> how long the added tokens are that begin with it, the longest first."""
        found: dict[int, set[int]] = {}
        for token in self.added_ids:
            found.setdefault(token[0], set()).add(len(token))
        return {byte: sorted(lengths, reverse=True) for byte, lengths in found.items()}


class PieceTable(NamedTuple):
    """Each id's bytes: text uint8, all one after the other, and starts int32 [V + 1], as in Pieces."""

    text: AnyArray
    starts: Int32


def joined(pieces: Sequence[bytes]) -> PieceTable:
    """The pieces' table."""
    starts = np.concatenate([[0], np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))])
    return PieceTable(np.frombuffer(b"".join(pieces), np.uint8), starts.astype(np.int32))


def make_pieces(
    path: Path,
    table: PieceTable,
    ranks: AnyArray | Sequence[int],
    splits: AnyArray | Sequence[int],
    added: Sequence[int],
    special: Sequence[int],
    prefix: Sequence[int],
    suffix: Sequence[int],
    pieces: int,
) -> Pieces:
    """The arrays of Pieces; `special` names those of `added` that are special.

    raises  ValueError: a table that cannot be, with the reason
    """
    text, starts = table
    lengths = np.diff(starts)
    if not lengths.size or lengths.min() < 1 or lengths.max() > LONGEST:
        raise ValueError(f"pieces must have 1 to {LONGEST} bytes")
    hashes = hashed(text, starts)
    if twins := first_twins(table, hashes):
        one, other = twins
        raise ValueError(f"the pieces {one} and {other} are the same, {piece_of(table, one)!r}")
    ordered = sorted(added, key=lambda id: piece_of(table, id))
    return Pieces(
        path,
        text,
        starts,
        np.asarray(ranks, np.int32),
        np.asarray(splits, np.uint8),
        hash_table(hashes[:pieces], len(lengths)),
        np.array(ordered, np.int32),
        np.isin(ordered, list(special)).astype(np.uint8),
        ids_of_bytes(table),
        np.array(prefix, np.int32),
        np.array(suffix, np.int32),
        pieces,
    )


def piece_of(table: PieceTable, id: int) -> bytes:
    return table.text[table.starts[id] : table.starts[id + 1]].tobytes()


def ids_of_bytes(table: PieceTable) -> Int32:
    """The ids of <0x00> to <0xFF>."""
    places = np.flatnonzero(np.diff(table.starts) == len("<0x00>"))
    likely = places[table.text[table.starts[places]] == ord("<")].tolist()
    ids = {piece_of(table, id): id for id in likely}
    names = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    if absent := [name.decode() for name in names if name not in ids]:
        raise ValueError(f"{absent[0]} is no piece; without it, not every text has ids")
    return np.array([ids[name] for name in names], np.int32)


def first_twins(table: PieceTable, hashes: AnyArray) -> tuple[int, int] | None:
    """Two pieces that are the same, if there are any; only those of one hash can be."""
    order = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    seen: dict[bytes, int] = {}
    for id in order[np.unique(np.concatenate([alike, alike + 1]))].tolist():
        if (other := seen.setdefault(piece_of(table, id), id)) != id:
            return other, id
    return None


def hashed(text: AnyArray, starts: Int32) -> AnyArray:
    """Each piece's hash, see kernels/plan.py."""
    lengths = np.diff(starts)
    longest_first = np.argsort(-lengths, kind="stable")
    hashes = np.zeros(len(lengths), np.uint64)
    for depth in range(lengths.max(initial=0)):
        some = longest_first[: np.count_nonzero(lengths > depth)]
        hashes[some] = (hashes[some] * HASH_BASE + text[starts[some] + depth] + 1) % HASH_PRIME
    return hashes.astype(np.int64)


def hash_table(hashes: AnyArray, ids: int) -> Int32:
    """The slots of kernels/plan.py, between a third and two thirds of them taken by the first of all ids, whose hashes
    are given."""
    pieces, id_bits = len(hashes), bits_of_ids(ids)
    bits = max(id_bits, (pieces * 3 // 2).bit_length())
    entries = (hashes >> bits << id_bits | np.arange(pieces)).astype(np.int32)
    slots = np.full(1 << bits, -1, np.int32)
    waiting, places = np.arange(pieces), hashes & (1 << bits) - 1
    while waiting.size:  # who finds a slot taken tries the next one
        free = np.flatnonzero(slots[places] < 0)
        first = free[np.unique(places[free], return_index=True)[1]]
        slots[places[first]] = entries[waiting[first]]
        waiting, places = np.delete(waiting, first), np.delete(places, first) + 1 & (1 << bits) - 1
    return slots


def save_pieces(pieces: Pieces, path: Path) -> None:
    """Write a tokenizer.safetensors; it appears when it is complete."""
    arrays = {name: np.ascontiguousarray(getattr(pieces, name)) for name in array_names()}
    arrays["layout"] = np.array([LAYOUT, pieces.pieces], np.int32)
    with replaced(path) as file:
        file.write(save(arrays, metadata={"format": "gemma_np tokenizer"}))


def array_names() -> list[str]:
    """Of the arrays in a file."""
    return [field.name for field in fields(Pieces) if field.name not in ("path", "pieces")]


def folder_pieces(folder: Path) -> Pieces | None:
    """What a folder's tokenizer.safetensors holds; None where there is none, and tokenizer.json must do."""
    return open_pieces(folder / FILE) if os.path.exists(folder / FILE) else None


def open_pieces(path: Path) -> Pieces:
    """Map a tokenizer.safetensors.

    raises  CheckpointError: anything that could lead a reader out of the arrays, or nowhere
    """

    def damaged(why: str) -> CheckpointError:
        return CheckpointError(f"{path}: {why}; the file is damaged or of another kind, make or download it again")

    tensors = open_safetensors(path)
    arrays: dict[str, Any] = {}
    for name in ("layout", *array_names()):
        kind = "U8" if name in BYTES else "I32"
        if name not in tensors:
            raise damaged(f"there is no {name}")
        tensor = tensors[name]
        if tensor.dtype != kind or len(tensor.shape) != 1:
            raise damaged(f"{name} is no row of {kind}")
        mapped: AnyArray = np.frombuffer(tensor.source.map, DTYPES[kind], math.prod(tensor.shape), tensor.offset)
        arrays[name] = np.require(mapped, DTYPES[kind].newbyteorder("="), "A")
    layout = arrays.pop("layout")
    if len(layout) != 2 or layout[0] != LAYOUT:
        raise damaged(f"layout is {layout.tolist()[:2]}, expected [{LAYOUT}, pieces]")
    found = Pieces(path, **arrays, pieces=int(layout[1]))
    for why in faults(found):
        raise damaged(why)
    return found


def faults(pieces: Pieces) -> Iterator[str]:
    """What is wrong with arrays from a file. Each is looked for where those before it are not found."""
    V, text, starts = len(pieces.starts) - 1, pieces.text, pieces.starts
    lengths = np.diff(starts.astype(np.int64))  # in int32, starts could run past 2^31 and around
    if not (V >= 1 and 0 <= pieces.pieces <= V):
        yield f"{pieces.pieces} of {V} ids are pieces"
    if not (starts[0] == 0 and starts[-1] == len(text) and lengths.min() >= 1 and lengths.max() <= LONGEST):
        yield f"starts do not part {len(text):,} bytes into pieces of 1 to {LONGEST}"
    for name, expected in (("ranks", V), ("splits", V), ("byte_ids", 256), ("special", len(pieces.added))):
        if (count := len(getattr(pieces, name))) != expected:
            yield f"{name} has {count} elements, expected {expected}"
    if pieces.ranks.min() < -1:
        yield "a rank is below -1"
    for name in ("added", "byte_ids", "prefix", "suffix"):
        ids = getattr(pieces, name)
        if ids.size and not 0 <= ids.min() <= ids.max() < V:
            yield f"{name} names an id that none of the {V} pieces has"
    slots, id_bits = pieces.slots, bits_of_ids(V)
    size = len(slots)
    if size < 1 << id_bits or size & size - 1 or slots.min() != -1:
        yield "slots are no hash table of the pieces"
    if (slots & (1 << id_bits) - 1)[slots >= 0].max(initial=0) >= V:
        yield "slots are no hash table of the pieces"
    longest = np.diff(np.flatnonzero(slots < 0), prepend=-1, append=size).max()
    if longest > MAX_PROBES:
        yield f"{longest - 1:,} slots without a gap would be searched one by one"


def bits_of_ids(V: int) -> int:
    """How many bits of a slot are the id."""
    return max(V - 1, 1).bit_length()
