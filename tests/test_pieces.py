"""The arrays of a tokenizer: into a file and back, from a GGUF file's tables, and what no file may do."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import small_tokenizer

from gemma_np import CheckpointError
from gemma_np.arrays import AnyArray
from gemma_np.gguf.tokenizer import from_scores
from gemma_np.tokens.bpe import Encoder, bytes_before_space, encode_in_python
from gemma_np.tokens.json_file import from_tokenizer_json
from gemma_np.tokens.pieces import (
    FILE,
    Pieces,
    PieceTable,
    hash_table,
    hashed,
    joined,
    make_pieces,
    open_pieces,
    save_pieces,
)

BYTES = [f"<0x{byte:02X}>".encode() for byte in range(256)]


def equal(one: Pieces, other: Pieces) -> bool:
    return one.pieces == other.pieces and all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in fields(Pieces)
        if field.name not in ("path", "pieces")
    )


@pytest.fixture(scope="module")
def small_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    small_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="module")
def pieces(small_json: Path) -> Pieces:
    return from_tokenizer_json(small_json)


@pytest.fixture(scope="module")
def gemma_json(shared: Path) -> Path:
    return shared / "data/embeddinggemma-300m/tokenizer.json"


# ---- files


def test_a_file_brings_all_arrays_back(pieces: Pieces, tmp_path: Path) -> None:
    save_pieces(pieces, tmp_path / FILE)
    found = open_pieces(tmp_path / FILE)
    assert equal(found, pieces)
    assert found.path == tmp_path / FILE
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    tensors = safetensors.numpy.load_file(tmp_path / FILE)  # a plain safetensors file for others too
    assert np.array_equal(tensors["ranks"], pieces.ranks)


def test_the_arrays_are_mapped_and_not_read(pieces: Pieces, tmp_path: Path) -> None:
    save_pieces(pieces, tmp_path / FILE)
    found = open_pieces(tmp_path / FILE)
    for name in ("text", "starts", "ranks", "splits", "slots"):
        assert getattr(found, name).base is not None, name
        assert not getattr(found, name).flags.writeable, name


def test_a_file_whose_arrays_are_not_aligned_serves_too(pieces: Pieces, tmp_path: Path) -> None:
    save_pieces(pieces, tmp_path / FILE)
    data = (tmp_path / FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    (tmp_path / FILE).write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    found = open_pieces(tmp_path / FILE)
    assert equal(found, pieces)
    assert found.starts.flags.aligned


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another layout": (lambda a: a.update(layout=np.array([2, 10], np.int32)), "layout is"),
    "no layout": (lambda a: a.pop("layout"), "there is no layout"),
    "no slots": (lambda a: a.pop("slots"), "there is no slots"),
    "ranks of floats": (lambda a: a.update(ranks=a["ranks"].astype(np.float32)), "ranks is no row of I32"),
    "ranks in rows": (lambda a: a.update(ranks=a["ranks"].reshape(1, -1)), "ranks is no row of I32"),
    "fewer ranks": (lambda a: a.update(ranks=a["ranks"][:-1]), "ranks has "),
    "fewer splits": (lambda a: a.update(splits=a["splits"][:-1]), "splits has "),
    "fewer bytes": (lambda a: a.update(byte_ids=a["byte_ids"][:-1]), "byte_ids has 255 elements, expected 256"),
    "more special": (lambda a: a.update(special=np.zeros(77, np.uint8)), "special has 77"),
    "a low rank": (lambda a: a["ranks"].__setitem__(3, -2), "a rank is below -1"),
    "no text": (lambda a: a.update(text=a["text"][:0]), "starts do not part 0 bytes"),
    "text cut off": (lambda a: a.update(text=a["text"][:-1]), "starts do not part"),
    "a late start": (lambda a: a["starts"].__setitem__(0, 1), "starts do not part"),
    "starts that go back": (lambda a: a["starts"].__setitem__(5, 2**31 - 1), "starts do not part"),
    "a negative start": (lambda a: a["starts"].__setitem__(5, -(2**31)), "starts do not part"),
    "no pieces": (lambda a: a.update(starts=a["starts"][:1]), "of 0 ids are pieces"),
    "nothing at all": (lambda a: a.update(starts=a["starts"][:0]), "of -1 ids are pieces"),
    "more pieces than ids": (lambda a: a["layout"].__setitem__(1, 10**6), "1000000 of "),
    "a negative number": (lambda a: a["layout"].__setitem__(1, -1), "-1 of "),
    "an added token beyond": (lambda a: a["added"].__setitem__(0, 10**6), "added names an id"),
    "a negative byte": (lambda a: a["byte_ids"].__setitem__(255, -1), "byte_ids names an id"),
    "bos beyond": (lambda a: a.update(prefix=np.array([10**6], np.int32)), "prefix names an id"),
    "eos below": (lambda a: a.update(suffix=np.array([-1], np.int32)), "suffix names an id"),
    "slots of another number": (lambda a: a.update(slots=a["slots"][:-1]), "slots are no hash table"),
    "few slots": (lambda a: a.update(slots=a["slots"][:512]), "slots are no hash table"),
    "no slots at all": (lambda a: a.update(slots=a["slots"][:0]), "slots are no hash table"),
    "full slots": (lambda a: np.maximum(a["slots"], 0, out=a["slots"]), "slots are no hash table"),
    "a slot below -1": (lambda a: a["slots"].__setitem__(0, -2), "slots are no hash table"),
    "a slot's id beyond": (lambda a: a["slots"].__setitem__(0, 2**31 - 1), "slots are no hash table"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_lead_a_reader_astray_is_refused(pieces: Pieces, tmp_path: Path, change: str) -> None:
    save_pieces(pieces, tmp_path / FILE)
    arrays = {name: array.copy() for name, array in safetensors.numpy.load_file(tmp_path / FILE).items()}
    spoil, message = CHANGES[change]
    spoil(arrays)
    safetensors.numpy.save_file(arrays, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=f"{message}.*make or download it again"):
        open_pieces(tmp_path / FILE)


def test_a_file_that_is_cut_off_or_missing_is_refused(pieces: Pieces, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors is missing"):
        open_pieces(tmp_path / FILE)
    save_pieces(pieces, tmp_path / FILE)
    data = (tmp_path / FILE).read_bytes()
    for kept in (0, 7, 100, len(data) - 1):
        (tmp_path / FILE).write_bytes(data[:kept])
        with pytest.raises(CheckpointError):
            open_pieces(tmp_path / FILE)


# ---- the hash table


@given(st.lists(st.binary(min_size=1, max_size=8), unique=True, max_size=60))
def test_every_piece_is_found_where_its_hash_says(words: list[bytes]) -> None:
    text = np.frombuffer(b"".join(words) + b"?", np.uint8)
    starts = np.cumsum([0, *map(len, words), 1]).astype(np.int32)
    slots = hash_table(hashed(text, starts)[: len(words)], len(words) + 1)
    bits, id_bits = len(slots).bit_length() - 1, max(len(words), 1).bit_length()
    assert len(slots) == 1 << bits
    assert np.count_nonzero(slots >= 0) == len(words)
    for id, word in enumerate(words):
        hash = 0
        for byte in word:
            hash = (hash * 1_000_003 + byte + 1) % (2**31 - 1)
        slot = hash
        while (entry := int(slots[slot % len(slots)])) & (1 << id_bits) - 1 != id:
            assert entry >= 0, word
            slot += 1
        assert entry >> id_bits == hash >> bits


def test_a_space_behind_something_else_in_a_piece_is_told(tmp_path: Path) -> None:
    def found(*words: str) -> list[int]:
        table = joined([*BYTES, *(word.encode() for word in words)])
        zeros = np.zeros(256 + len(words), np.int32)
        return np.flatnonzero(
            bytes_before_space(make_pieces(tmp_path, table, zeros, zeros, [], [], [], [], len(zeros)))
        ).tolist()

    assert found("▁", "▁▁", "▁a", "a") == []
    assert found("a", "▁") == []  # side by side, and no piece
    assert found("a▁", "▁▁▁b", "c▁▁", "éd▁▁e▁") == [ord("a"), ord("c"), ord("d"), ord("e")]
    assert found("猫▁", "x▁▁▁猫") == sorted({"猫".encode()[-1], ord("x")})


# ---- from GGUF's tables


def tables(path: Path) -> tuple[PieceTable, AnyArray, AnyArray]:
    """What llama.cpp's converter writes for a tokenizer.json of Gemma's layout: scores fall with the rank, added tokens
    have -1000 and spaces for U+2581."""
    content = json.loads(path.read_bytes())
    vocabulary = content["model"]["vocab"]
    order: dict[str, int] = {}
    for left, right in content["model"]["merges"]:
        order.setdefault(left + right, len(order))
    table = list(vocabulary)
    scores = np.array([-order.get(piece, len(order)) - 1 for piece in table], np.float32)
    types = np.ones(len(table), np.int32)
    types[[vocabulary[byte.decode()] for byte in BYTES]] = 6
    for token in content["added_tokens"]:
        if (id := token["id"]) < len(table):
            types[id], scores[id] = 3 if token["special"] else 4, -1000
            if not token["special"]:
                table[id] = table[id].replace("▁", " ")
    types[vocabulary["<unk>"]] = 2
    return joined([piece.encode() for piece in table]), scores, types


def check_tables(path: Path, texts: Sequence[str], encode: Callable[[Pieces, str], list[int]]) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(path))
    content = json.loads(path.read_bytes())
    vocabulary = content["model"]["vocab"]
    found = from_scores(path, *tables(path), [vocabulary["<bos>"]], [vocabulary["<eos>"]])
    for text in texts:
        assert encode(found, text) == theirs.encode(text, add_special_tokens=False).ids, repr(text[:80])


TEXTS = [
    *(
        "the quick brown fox",
        "a  b   c    d" + " " * 40 + "e",
        "▁▁ ▁",
        "\n\n\n\t\t\t\n" * 20,
        "naïve 猫 🙂 <bos>x<unk>",
    ),
    *("", "<table><tr> <td>", "[multimodal]" + " " * 31 + "x" + " " * 32, "word " * 50, "=" * 100, "> </"),
]


def test_gemmas_tables_of_gguf_give_the_packages_ids(gemma_json: Path) -> None:
    check_tables(gemma_json, TEXTS, lambda pieces, text: encode_in_python(text.encode(), pieces))


def test_bos_and_eos_stand_where_they_are_asked_for(tmp_path: Path) -> None:
    table, types = joined([b"<bos>", *BYTES, b"a"]), np.array([3, *[6] * 256, 1])
    for prefix, suffix in (([], []), ([0], []), ([], [0]), ([0], [0, 0])):
        found = from_scores(tmp_path, table, np.zeros(258, np.float32), types, prefix, suffix)
        (ids,) = Encoder(found, None).encode(["a"])
        assert ids.tolist() == [*prefix, 257, *suffix]


def test_a_higher_score_merges_first_and_unused_pieces_never(tmp_path: Path) -> None:
    table = joined([*BYTES, b"a", b"b", b"c", b"ab", b"bc", b"abc"])
    types = np.array([6] * 256 + [1] * 6)

    def ids(ab: float, bc: float, types: AnyArray) -> list[int]:
        scores = np.array([0] * 259 + [ab, bc, -9], np.float32)
        return encode_in_python(b"abc", from_scores(tmp_path, table, scores, types, [], []))

    assert ids(-1, -2, types) == ids(-2, -1, types) == [261]
    unused = types.copy()
    unused[261] = 5
    assert ids(-1, -2, unused) == [259, 258]
    assert ids(-2, -1, unused) == [256, 260]


BAD_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "scores": ({"scores": np.zeros(3)}, "258 pieces, 3 scores and 258 types do not fit"),
    "types": ({"types": np.ones(3)}, "258 pieces, 258 scores and 3 types do not fit"),
    "nan": ({"scores": np.full(258, np.nan)}, "a score is NaN"),
    "bos": ({"prefix": [258]}, "bos or eos is none of the 258 pieces"),
    "eos": ({"suffix": [-1]}, "bos or eos is none of the 258 pieces"),
    "twice": ({"table": joined([*BYTES, b"a", b"a"])}, "the pieces 256 and 257 are the same, b'a'"),
    "empty": ({"table": joined([*BYTES, b"a", b""])}, "pieces must have 1 to 255 bytes"),
    "long": ({"table": joined([*BYTES, b"a", b"b" * 256])}, "pieces must have 1 to 255 bytes"),
    "byte": ({"table": joined([*BYTES[1:], b"b", b"a", b"c"])}, "<0x00> is no piece"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_tables_that_cannot_be_are_refused(tmp_path: Path, kind: str) -> None:
    change, message = BAD_TABLES[kind]
    good = joined([*BYTES, b"a", b"b"])
    table = {"table": good, "scores": np.zeros(258), "types": np.ones(258), "prefix": [], "suffix": []}
    from_scores(tmp_path, **table)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"its tokenizer cannot be used: {message}"):
        from_scores(tmp_path, **table | change)  # type: ignore[arg-type]


def test_the_real_vocabulary_is_small(gemma_pieces: Pieces, tmp_path: Path) -> None:
    save_pieces(gemma_pieces, tmp_path / FILE)
    assert (tmp_path / FILE).stat().st_size < 9e6
    found = open_pieces(tmp_path / FILE)
    assert equal(found, gemma_pieces)
    assert sum(array.nbytes for array in Encoder(found, None).arrays.values()) < 9e6
