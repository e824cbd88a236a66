"""The tokenizer in a GGUF file: the ids that llama.cpp's tables give, and what is said of tables that cannot be."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from test_gguf_source import exported
from test_pieces import BYTES

from gemma_np import CheckpointError
from gemma_np.arrays import AnyArray
from gemma_np.gguf.file import GGUF, open_gguf
from gemma_np.gguf.source import gguf_config
from gemma_np.gguf.tokenizer import from_scores, gguf_pieces, with_spaces
from gemma_np.tokens.bpe import Encoder, encode_in_python
from gemma_np.tokens.pieces import Pieces, PieceTable, joined


@pytest.fixture(scope="module")
def file(small: Path, tmp_path_factory: pytest.TempPathFactory) -> GGUF:
    return open_gguf(exported(small, tmp_path_factory.mktemp("gguf") / "small.gguf"))


@pytest.fixture(scope="module")
def gemma_json(shared: Path) -> Path:
    return shared / "data/embeddinggemma-300m/tokenizer.json"


# ---- the file's settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "none", "tokenizer.ggml.model = 'none'"),
        ("model", "gpt2", "tokenizer.ggml.model = 'gpt2'"),
        ("add_space_prefix", None, "add_space_prefix is true"),
        ("tokens", None, "tokenizer.ggml.tokens is None"),
        ("scores", np.zeros(3, np.float32), "1024 pieces, 3 scores"),
        ("bos_token_id", None, "bos_token_id is None"),
        ("bos_token_id", 2**31, "bos or eos is none of the 1024 pieces"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(key: str, value: Any, message: str, file: GGUF) -> None:
    metadata = {**file.metadata, f"tokenizer.ggml.{key}": value}
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    with pytest.raises(CheckpointError, match=message):
        gguf_pieces(replace(file, metadata=metadata), gguf_config(file))


def test_a_file_says_what_stands_around_a_text(file: GGUF) -> None:
    """BOS unless it says no, EOS if it says yes: as llama.cpp has it for tokenizers of this kind."""
    for says_bos, prefix in ((True, [2]), (False, []), (None, [2])):
        for says_eos, suffix in ((True, [1]), (False, []), (None, [])):
            added = {"add_bos_token": says_bos, "add_eos_token": says_eos}
            metadata = {**file.metadata, **{f"tokenizer.ggml.{key}": value for key, value in added.items()}}
            metadata = {key: value for key, value in metadata.items() if value is not None}
            pieces = gguf_pieces(replace(file, metadata=metadata), gguf_config(file))
            assert (pieces.prefix.tolist(), pieces.suffix.tolist()) == (prefix, suffix)


def test_a_table_of_another_size_than_the_embeddings_is_refused(file: GGUF) -> None:
    config = replace(gguf_config(file), V=1000)
    with pytest.raises(CheckpointError, match=r"tokenizer has 1,024 pieces, the embedding table 1,000 rows"):
        gguf_pieces(file, config)


# ---- the tables


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


@given(st.lists(st.tuples(st.text(" a▁", max_size=6), st.booleans()), min_size=1, max_size=8))
def test_spaces_of_the_chosen_pieces_are_written_as_gemma_writes_them(pieces: list[tuple[str, bool]]) -> None:
    table = joined([text.encode() for text, _ in pieces])
    found = with_spaces(table, np.array([chosen for _, chosen in pieces]))
    expected = joined([(text.replace(" ", "▁") if chosen else text).encode() for text, chosen in pieces])
    np.testing.assert_array_equal(found.text, expected.text)
    np.testing.assert_array_equal(found.starts, expected.starts)
