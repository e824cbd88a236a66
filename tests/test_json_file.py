"""tokenizer.json to arrays and back; the `tokenizers` package and Hugging Face read what comes out."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tokenizers
from small_tokenizer import small_tokenizer

from gemma_np import CheckpointError
from gemma_np.gguf.tokenizer import from_scores
from gemma_np.tokens.json_file import Inexpressible, from_tokenizer_json, ranked, write_tokenizer_json
from gemma_np.tokens.pieces import FILE, Pieces, joined, open_pieces, save_pieces

SMALL = json.loads(small_tokenizer().to_str())


def written(folder: Path, content: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


# ---- and back


def test_back_from_a_file_it_is_the_same_json(nano_float: Path, tmp_path: Path) -> None:
    for source in (written(tmp_path, SMALL), nano_float / "tokenizer.json"):
        save_pieces(from_tokenizer_json(source), tmp_path / FILE)
        write_tokenizer_json(open_pieces(tmp_path / FILE), tmp_path / "back.json")
        assert json.loads((tmp_path / "back.json").read_bytes()) == json.loads(source.read_bytes())
    tokenizers.Tokenizer.from_file(str(tmp_path / "back.json"))


def test_gemmas_own_is_the_same_json_merge_by_merge(shared: Path, gemma_pieces: Pieces, tmp_path: Path) -> None:
    """All 514,906 merges in their order: the arrays have lost nothing."""
    source = shared / "data/embeddinggemma-300m/tokenizer.json"
    write_tokenizer_json(gemma_pieces, tmp_path / "back.json")
    assert json.loads((tmp_path / "back.json").read_bytes()) == json.loads(source.read_bytes())


@pytest.mark.parametrize(("prefix", "suffix"), [([], []), ([1], []), ([], [0]), ([1, 1], [0])])
def test_what_stands_around_a_text_is_written_too(tmp_path: Path, prefix: list[int], suffix: list[int]) -> None:
    table = ["<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab"]
    types = [3, 3, *[6] * 256, 1, 1, 1]
    pieces = from_scores(
        tmp_path, joined([piece.encode() for piece in table]), [0.0] * len(table), types, prefix, suffix
    )  # type: ignore[arg-type]
    write_tokenizer_json(pieces, tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("aab<bos>").ids == [*prefix, 258, 260, 1, *suffix]
    assert theirs.decode([258, 260], skip_special_tokens=True) == "aab"
    back = from_tokenizer_json(tmp_path / "tokenizer.json")
    assert (back.prefix.tolist(), back.suffix.tolist()) == (prefix, suffix)


def test_hugging_face_reads_what_is_written(small: Path, tmp_path: Path, sentence_transformers: ModuleType) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "checkpoint"))
    (folder / "tokenizer.json").unlink()
    write_tokenizer_json(from_tokenizer_json(small / "tokenizer.json"), folder / "tokenizer.json")
    texts = ["the quick brown fox", "naïve  猫\n\n<eos>"]
    found, expected = (
        sentence_transformers.SentenceTransformer(str(path), device="cpu", local_files_only=True).tokenize(texts)
        for path in (folder, small)
    )
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()


# ---- what the arrays cannot say


def changed(*keys: str | int, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def added(**change: Any) -> Callable[[Any], None]:
    def add(content: Any) -> None:
        token = {**content["added_tokens"][0], "content": "<new>", "id": len(content["model"]["vocab"])}
        content["added_tokens"].append(token | change)

    return add


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "no normalizer": (changed("normalizer", value=None), "its normalizer is not"),
    "another normalizer": (changed("normalizer", "content", value="_"), "its normalizer is not"),
    "NFC": (changed("normalizer", value={"type": "NFC"}), "its normalizer is not"),
    "another pre_tokenizer": (changed("pre_tokenizer", "pattern", "String", value="a"), "its pre_tokenizer is not"),
    "ByteLevel": (changed("pre_tokenizer", value={"type": "ByteLevel"}), "its pre_tokenizer is not"),
    "no BPE": (changed("model", "type", value="Unigram"), "its model is Unigram, not BPE"),
    "no byte fallback": (changed("model", "byte_fallback", value=False), "its model has no byte_fallback"),
    "dropout": (changed("model", "dropout", value=0.1), r"dropout = 0\.1"),
    "a prefix": (changed("model", "continuing_subword_prefix", value="##"), "continuing_subword_prefix = '##'"),
    "a suffix": (changed("model", "end_of_word_suffix", value="</w>"), "end_of_word_suffix = '</w>'"),
    "ignore_merges": (changed("model", "ignore_merges", value=True), "ignore_merges = True"),
    "gaps": (changed("model", "vocab", "far", value=99_999), "its ids have gaps"),
    "no byte": (lambda c: c["model"]["vocab"].update(new=c["model"]["vocab"].pop("<0x41>")), "<0x41> is no piece"),
    "normalized": (added(normalized=True), "'<new>' has normalized = True"),
    "lstrip": (added(lstrip=True), "'<new>' has lstrip = True"),
    "rstrip": (added(rstrip=True), "'<new>' has rstrip = True"),
    "single_word": (added(single_word=True), "'<new>' has single_word = True"),
    "another id": (added(id=77), "'<new>' has the id 77"),
    "twice": (added(content="<eos>", id=1), "'<eos>' is listed twice"),
    "a long one": (added(content="x" * 256), "pieces must have 1 to 255 bytes"),
    "an empty one": (added(content=""), "pieces must have 1 to 255 bytes"),
    "another processor": (changed("post_processor", value={"type": "ByteLevel"}), "its post_processor is ByteLevel"),
    "no text": (lambda c: c["post_processor"]["single"].pop(1), "leaves the text out"),
    "texts twice": (lambda c: c["post_processor"]["single"].insert(1, {"Sequence": {"id": "A"}}), "each text once"),
    "an id beyond": (changed("post_processor", "special_tokens", "<bos>", "ids", value=[10**6]), "that are no pieces"),
    "no model": (lambda c: c.pop("model"), "not the form of a tokenizer.json"),
    "a list": (changed("model", value=[]), "not the form of a tokenizer.json"),
    "a merge of three": (lambda c: c["model"]["merges"].append("a b c"), "too many values"),
    "a strange merge": (lambda c: c["model"]["merges"].append(["猫", "🙂"]), "of pieces that it lacks"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_arrays_cannot_say_is_told_by_name(tmp_path: Path, kind: str) -> None:
    content = copy.deepcopy(SMALL)
    change, message = REFUSED[kind]
    change(content)
    with pytest.raises(Inexpressible, match=message):
        from_tokenizer_json(written(tmp_path, content))


def test_variants_that_say_the_same_are_taken(tmp_path: Path) -> None:
    content = copy.deepcopy(SMALL)
    content["pre_tokenizer"] = None
    content["model"] |= {"dropout": 0.0, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]  # as older files have them
    content["post_processor"] = None
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    found = from_tokenizer_json(written(tmp_path, content))
    expected = from_tokenizer_json(written(tmp_path, SMALL))
    assert (found.ranks == expected.ranks).all()
    assert (found.prefix.tolist(), found.suffix.tolist()) == ([], [])


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{", b"null"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        from_tokenizer_json(tmp_path / "tokenizer.json")


# ---- merges


def vocabulary(*pieces: str) -> dict[str, int]:
    return {piece: id for id, piece in enumerate(pieces)}


def pairs(text: str) -> list[tuple[str, str]]:
    return [(one, two) for one, two in (pair.split("+") for pair in text.split())]


ABC = vocabulary("a", "b", "c", "ab", "bc", "abc", "aa", "aaa", "bb", "bbb", "<0x41>", "<0x41>a")


@pytest.mark.parametrize(
    ("merges", "ranks", "splits"),
    [
        ("a+b b+c ab+c a+bc", {"ab": 0, "bc": 1, "abc": 2}, {}),
        ("b+c a+b", {"ab": 1, "bc": 0}, {}),
        ("a+b b+c a+bc", {"ab": 0, "bc": 1, "abc": 2}, {"abc": 1}),
        ("a+b b+c ab+c", {"ab": 0, "bc": 1, "abc": 2}, {"abc": 2}),
        ("aa+a bb+b a+aa b+bb a+a b+b", {"aaa": 0, "bbb": 0, "aa": 1, "bb": 2}, {}),
        ("", {}, {}),
    ],
)
def test_merges_become_ranks_and_splits(merges: str, ranks: dict[str, int], splits: dict[str, int]) -> None:
    found = ranked(pairs(merges), ABC)
    assert found == ([ranks.get(piece, -1) for piece in ABC], [splits.get(piece, 0) for piece in ABC])


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("a+bc ab+c", "do not begin with the longest left part"),
        ("a+b a+b", "do not begin with the longest left part"),
        ("ab+c a+b a+bc", "its merges of 'ab' and 'abc' take turns"),
        ("a+b aa+a b+bb a+aa bb+b", "its merges of 'aaa' and 'bbb' take turns"),  # runs, and not in front
        ("aa+a b+bb a+aa bb+b", "do not begin with the longest left part"),
        ("<0x41>+a", "is of a byte"),
        ("a+c", "of pieces that it lacks"),
    ],
)
def test_merges_that_no_ranks_can_say_are_refused(merges: str, message: str) -> None:
    with pytest.raises(Inexpressible, match=message):
        ranked(pairs(merges), ABC)


def test_some_but_not_all_splits_of_a_piece_are_refused() -> None:
    known = vocabulary("a", "b", "c", "d", "ab", "bcd", "cd", "abc", "abcd")
    with pytest.raises(Inexpressible, match="2 merges make 'abcd', neither all that could nor a single one"):
        ranked(pairs("abc+d ab+cd"), known)
