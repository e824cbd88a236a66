"""The arrays of a tokenizer: into a file and back, and what no file may do."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import small_tokenizer

from gemma_np import CheckpointError
from gemma_np.tokens.bpe import Encoder, bytes_before_space
from gemma_np.tokens.json_file import from_tokenizer_json
from gemma_np.tokens.pieces import (
    FILE,
    Pieces,
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


def test_the_real_vocabulary_is_small(gemma_pieces: Pieces, tmp_path: Path) -> None:
    save_pieces(gemma_pieces, tmp_path / FILE)
    assert (tmp_path / FILE).stat().st_size < 9e6
    found = open_pieces(tmp_path / FILE)
    assert equal(found, gemma_pieces)
    assert sum(array.nbytes for array in Encoder(found, None).arrays.values()) < 9e6
