"""Text -> token ids without other packages: byte-fallback BPE, as in Gemma's tokenizer.

1. Added tokens (<bos>, "\\n\\n", <table>, ...) are cut out of the text, the longest one first at each place.
2. Spaces become U+2581, each character becomes its piece. One that is no piece becomes its bytes, for good.
3. Of all neighbours that together are a piece, the pair merges whose piece has the lowest rank; then the one with the
   longer left part, the longer right part, the one further left. Until no two neighbours are a piece.

`encode_in_python` is just that, in Python; kernels/bpe.py is the same, compiled. Merges need no table: Gemma's
514,906 are all the ways to split a piece in two, sorted so. json_file.py checks that of a tokenizer.json.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np

from gemma_np.arrays import AnyArray, Int32
from gemma_np.kernels.plan import BPE, HASH_BASE, HASH_PRIME, bpe_scratch
from gemma_np.tokens.pieces import LONGEST, SPACE, Pieces, bits_of_ids

CALL_BYTES = 2**18  # of texts for one call of the kernel
ESCAPE = "surrogateescape"  # a text is UTF-8, but the added tokens of a damaged file may cut it anywhere
FIELD = {name: i for i, name in enumerate(BPE)}


def encode_in_python(text: bytes, pieces: Pieces) -> list[int]:
    """A text's ids, without the prefix and the suffix."""
    ids: list[int] = []
    for part in cut(text, pieces):
        added = pieces.added_ids.get(part)
        ids += merged(part, pieces) if added is None else [added]
    return ids


def cut(text: bytes, pieces: Pieces) -> list[bytes]:
    """The text in parts: its added tokens, and the text between them."""
    parts, begin, i = [], 0, 0
    lengths = pieces.added_lengths
    while i < len(text):
        fits = (n for n in lengths.get(text[i], ()) if text[i : i + n] in pieces.added_ids)
        if n := next(fits, 0):
            parts += [text[begin:i], text[i : i + n]]
            begin = i = i + n
        else:
            i += 1
    return [part for part in (*parts, text[begin:]) if part]


def merged(text: bytes, pieces: Pieces) -> list[int]:
    """The ids of a text without added tokens."""
    characters = text.replace(b" ", SPACE).decode(errors=ESCAPE)
    symbols = [character.encode(errors=ESCAPE) for character in characters]
    after = list(range(1, len(symbols) + 1))
    before = list(range(-1, len(symbols) - 1))
    known = pieces.ids
    heap: list[tuple[int, int, int, int]] = []  # rank, minus the lengths of the left and right part, place

    def offer(i: int) -> None:
        """Put a symbol and its right neighbour on the heap, if they merge."""
        if i < 0 or after[i] == len(symbols):
            return
        left, right = symbols[i], symbols[after[i]]
        whole = known.get(left + right, -1) if left in known and right in known else -1
        if whole >= 0 and pieces.ranks[whole] >= 0 and pieces.splits[whole] in (0, len(left)):
            heapq.heappush(heap, (int(pieces.ranks[whole]), -len(left), -len(right), i))

    for i in range(len(symbols)):
        offer(i)
    while heap:
        _, left_length, right_length, i = heapq.heappop(heap)
        j = after[i]
        left, right = symbols[i], symbols[j] if j < len(symbols) else b""
        if (len(left), len(right)) != (-left_length, -right_length):
            continue  # one of them has merged with another since
        symbols[i], symbols[j] = left + right, b""
        after[i] = after[j]
        if after[i] < len(symbols):
            before[after[i]] = i
        offer(before[i])
        offer(i)
    ids: list[int] = []
    for symbol in filter(None, symbols):
        ids += [known[symbol]] if symbol in known else pieces.byte_ids[list(symbol)].tolist()
    return ids


def decoded(ids: Sequence[int], pieces: Pieces) -> str:
    """The text of some ids. Bytes in a row that are no UTF-8 become U+FFFD each, as in the `tokenizers` package."""
    byte_of = {id: byte for byte, id in enumerate(pieces.byte_ids.tolist())}
    text: list[str] = []
    for are_bytes, run in groupby(ids, byte_of.__contains__):
        if not are_bytes:
            text += [pieces.piece(id).replace(SPACE, b" ").decode(errors="replace") for id in run]
            continue
        raw = bytes(byte_of[id] for id in run)
        try:
            text.append(raw.decode())
        except UnicodeDecodeError:
            text.append("\ufffd" * len(raw))
    return "".join(text)


def offsets_of(text: str, ids: Int32, pieces: Pieces) -> Int32:
    """The characters [from, to) of each id of a text, in code points: int32 [T, 2].

    Where spaces are U+2581, the pieces one after the other are the text, byte by byte.
    """
    raw = np.frombuffer(text.replace(" ", SPACE.decode()).encode() + b"\0", np.uint8)
    sizes = pieces.starts[ids + 1] - pieces.starts[ids]
    for id in np.unique(ids[np.isin(ids, pieces.added)]).tolist():  # only these hold spaces as they are
        sizes[ids == id] += (len(SPACE) - 1) * pieces.piece(id).count(b" ")
    sizes[np.isin(ids, pieces.byte_ids)] = 1
    ends = np.cumsum(sizes)
    characters = np.cumsum((raw & 0xC0) != 0x80)  # begun up to and with each byte
    return np.stack([characters[ends - sizes] - 1, characters[ends - 1]], axis=1).astype(np.int32)


class Encoder:
    """Texts -> ids, compiled where there is something compiled.

    run   the kernel, see kernels/objects.py; None: `encode_in_python`, some fifty times as slow
    """

    def __init__(self, pieces: Pieces, run: Callable[[int], None] | None) -> None:
        self.pieces, self.path, self._run = pieces, pieces.path, run
        self.sizes = pieces.pieces, max(pieces.pieces, int(pieces.added.max(initial=-1)) + 1)
        self.prefix, self.suffix = pieces.prefix.tolist(), pieces.suffix.tolist()
        heads = pieces.text[pieces.starts[pieces.added]]
        powers = [pow(HASH_BASE, n, HASH_PRIME) for n in range(LONGEST + 1)]
        self.arrays: dict[str, AnyArray] = {  # what the kernel's addresses lead to
            "pieces": pieces.text,
            **{name: getattr(pieces, name) for name in ("starts", "ranks", "splits", "slots", "added", "byte_ids")},
            **{"prefix": pieces.prefix, "suffix": pieces.suffix},
            "added_from": np.searchsorted(heads, np.arange(257)).astype(np.int32),
            "powers": np.array(powers, np.int32),
            "bytes_before_space": bytes_before_space(pieces),
        }
        numbers = {
            "prefix_count": len(pieces.prefix),
            "suffix_count": len(pieces.suffix),
            "slot_bits": len(pieces.slots).bit_length() - 1,
            "id_bits": bits_of_ids(len(pieces)),
            "longest": int(np.diff(pieces.starts).max()),
        }
        addresses = {name: array.ctypes.data for name, array in self.arrays.items()}
        self._template = np.array([{**addresses, **numbers}.get(name, 0) for name in BPE], np.int64)

    @property
    def compiled(self) -> bool:
        return self._run is not None

    def name(self, id: int) -> str:
        return self.pieces.piece(id).decode(errors="replace")

    def id_of(self, name: str) -> int | None:
        return self.pieces.id_of(name.encode(errors=ESCAPE))

    @property
    def special_ids(self) -> set[int]:
        return set(self.pieces.added[self.pieces.special == 1].tolist())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        skipped = self.special_ids if skip_special_tokens else ()
        return decoded([id for id in ids if id not in skipped], self.pieces)

    def offsets(self, texts: Sequence[str]) -> list[Int32]:
        before, after = len(self.prefix), len(self.suffix)
        each = self.encode(texts)
        return [
            offsets_of(text, ids[before : len(ids) - after], self.pieces) for text, ids in zip(texts, each, strict=True)
        ]

    def encode(self, texts: Sequence[str]) -> list[Int32]:
        """The ids of some texts, with prefix and suffix. Several threads may call at once."""
        raw = [text.encode() for text in texts]
        if self._run is None:
            return [
                np.array([*self.prefix, *encode_in_python(text, self.pieces), *self.suffix], np.int32) for text in raw
            ]
        found: list[Int32] = []
        for part in parts(raw):
            call, ids, counts, *_kept = self.prepared(part)
            self._run(call.ctypes.data)
            stops = np.cumsum(counts).tolist()
            whole = ids[: stops[-1]].copy()
            found += [whole[begin:end] for begin, end in pairwise([0, *stops])]
        return found

    def prepared(self, texts: Sequence[bytes]) -> list[AnyArray]:
        """What one call of the kernel needs: its record, the ids and their counts to be, and all that it leads to."""
        joined = np.frombuffer(b"".join(texts) + b" ", np.uint8)  # NumPy has no addresses in empty bytes
        size, special = len(joined) - 1, len(self.prefix) + len(self.suffix)
        ids = np.empty(3 * size + special * len(texts), np.int32)  # a space may become three bytes
        own: dict[str, AnyArray] = {
            "text": joined,
            "ends": np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))),
            "out": ids,
            "counts": np.empty(len(texts), np.int64),
            **{name: np.empty(count, dtype) for name, (dtype, count) in bpe_scratch(size).items()},
        }
        call = self._template.copy()
        for name, array in own.items():
            call[FIELD[name]] = array.ctypes.data
        call[FIELD["size"]], call[FIELD["texts"]] = size, len(texts)
        return [call, ids, own["counts"], *own.values()]


def parts(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """The texts in groups of some size: room for a group is made at once, and Ctrl-C waits for one."""
    begin = size = 0
    for i, text in enumerate(texts):
        if i > begin and size + len(text) > CALL_BYTES:
            yield texts[begin:i]
            begin, size = i, 0
        size += len(text)
    if begin < len(texts):
        yield texts[begin:]


def bytes_before_space(pieces: Pieces) -> AnyArray:
    """Which bytes a piece has before a space, uint8 [256]: after any other byte a text can be cut. Gemma has a single
    piece with a space after something else."""
    text, found = pieces.text, np.zeros(256, np.uint8)
    here = np.zeros(len(text) + 3, bool)  # a space ends before the byte i
    here[3 : len(text) + 1] = (text[:-2] == SPACE[0]) & (text[1:-1] == SPACE[1]) & (text[2:] == SPACE[2])
    inner = here[3:].copy()  # one begins at the byte i
    inner[pieces.starts[:-1]] = False
    inner &= ~here[: len(inner)]
    found[text[np.flatnonzero(inner) - 1]] = 1
    return found
