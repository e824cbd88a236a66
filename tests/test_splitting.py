"""A long text in pieces: what must always hold, over texts of many scripts and all sizes."""

import random
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_np import EmbeddingGemma, InputError
from gemma_np.splitting import best_cut, may_cut

PROSE = "The red planet is Mars. It has two moons, e.g. Phobos!\n\nVenus is hot. " * 20
SCRIPTS = (
    "私は猫です。名前はまだ無い。" * 20 + "สวัสดีครับยินดีต้อนรับ" * 10 + "👩‍👩‍👧‍👦🇩🇪🇫🇷" * 20 + "e\u0301" * 50 + "각" * 20
)


@pytest.fixture(scope="module")
def model() -> EmbeddingGemma:
    return EmbeddingGemma("nano")


def check(model: EmbeddingGemma, text: str, max_tokens: int, overlap: int = 0, prompt_name: str | None = None) -> Any:
    pieces = model.split(text, max_tokens, overlap, prompt_name)
    end = 0
    for piece in pieces:
        assert piece.text == text[piece.start : piece.end]
        assert piece.tokens == model.count_tokens(piece.text, prompt_name) <= max_tokens
        assert piece.start <= end < piece.end or piece.start == end < piece.end  # no gap, and each adds something
        end = piece.end
    assert end == len(text)
    if not overlap:
        assert "".join(piece.text for piece in pieces) == text
    assert pieces == model.split(text, max_tokens, overlap, prompt_name)
    return pieces


@pytest.mark.parametrize(
    "text", [PROSE, SCRIPTS, "x" * 3000, " " * 500, "\n" * 300, "a \u2581 b <bos> " * 100, "z\u0300\u0301" * 200]
)
@pytest.mark.parametrize(("max_tokens", "overlap"), [(8, 0), (8, 3), (32, 0), (64, 16), (511, 1), (512, 0)])
def test_pieces_fit_and_cover_the_text(model: EmbeddingGemma, text: str, max_tokens: int, overlap: int) -> None:
    check(model, text, max_tokens, overlap)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=300), max_tokens=st.integers(14, 40), overlap=st.integers(0, 7))
def test_any_text(model: EmbeddingGemma, text: str, max_tokens: int, overlap: int) -> None:
    check(model, text.encode(errors="replace").decode(), max_tokens, overlap)


def test_the_prompt_belongs_to_the_budget(model: EmbeddingGemma) -> None:
    with_prompt, without = check(model, PROSE, 40, 0, "document"), check(model, PROSE, 40)
    assert len(with_prompt) > len(without)
    assert model.encode_document([piece.text for piece in with_prompt], truncate=False).shape[0] == len(with_prompt)


def test_one_piece_where_it_fits(model: EmbeddingGemma) -> None:
    assert model.split("") == []
    assert model.split("a text") == [("a text", 0, 6, model.count_tokens("a text"))]
    n = model.count_tokens(PROSE[:200])
    assert len(model.split(PROSE[:200], n)) == 1 < len(model.split(PROSE[:200], n - 1))


def test_cuts_are_after_sentences_where_there_are_some(model: EmbeddingGemma) -> None:
    assert all(piece.text.rstrip()[-1] in ".!" for piece in model.split(PROSE, 48))
    assert best_cut("One two three. Three four", 0, 25) == 15
    assert best_cut("Who was J. R. Tolkien, e.g. a", 0, 29) == 28  # no sentence ends after an initial
    assert best_cut("para one\n\npara two. x", 0, 21) == 20  # in the second half alone
    assert best_cut("aaaa bbbb cccc dd", 0, 17) == 15


def test_overlap_is_of_so_many_tokens(model: EmbeddingGemma) -> None:
    pieces = model.split(PROSE, 48, 10)
    for one, other in pairwise(pieces):
        shared = PROSE[other.start : one.end]
        # BOS and EOS are not of it; a cut within a token, before the letter after a space, may make two of one
        assert 0 < model.count_tokens(shared) - 2 <= 10 + 1


def test_characters_as_people_see_them_stay_whole(sentence_transformers: ModuleType) -> None:
    """The `regex` package's \\X, which transformers brings, has all of Unicode's rules."""
    regex = pytest.importorskip("regex", reason="needs the extra `parity`: regex")
    rng = random.Random(0)
    parts = ["a", "é", "e\u0301", "👩‍👩‍👧", "🇩🇪", "👍🏽", "각", "ᄀ\u1161\u11a8", "\r\n", "น้ำ"[:2], "क्", " ", "私"]
    for _ in range(200):
        text = "".join(rng.choice(parts) for _ in range(12))
        wholes = {m.end() for m in regex.finditer(r"\X", text)}
        allowed = {i for i in range(1, len(text) + 1) if may_cut(text, i)}
        assert allowed <= wholes | {len(text)}, text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens = 0, expected a positive integer"),
        ({"max_tokens": 513}, "max_tokens = 513, but texts are cut at max_seq_length = 512"),
        ({"max_tokens": 2}, "leaves 0 for the text"),
        ({"max_tokens": 10, "overlap": 8}, "more than the overlap of 8"),
        ({"max_tokens": 11, "prompt_name": "document"}, "leaves 0"),
        ({"overlap": -1}, "overlap = -1"),
        ({"prompt_name": "nonsense"}, "is unknown"),
    ],
)
def test_what_cannot_be_is_told(model: EmbeddingGemma, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.split(PROSE, **options)


def test_a_character_of_many_tokens(model: EmbeddingGemma) -> None:
    assert len(check(model, "🜁" * 5, 7)) == 5
    with pytest.raises(InputError, match="has no room for the character '🜁'"):
        model.split("🜁", 4)
    for text in (b"bytes", None, "a\ud800"):
        with pytest.raises(InputError, match="text 0"):
            model.split(text)  # type: ignore[arg-type]


def test_time_grows_with_the_length(model: EmbeddingGemma, small: Path) -> None:
    """Not by a clock: by how many characters are tokenised for a text and for one of four times the length."""
    counted: list[int] = []
    real = model.count_tokens
    model.count_tokens = lambda text, **options: counted.append(len(text)) or real(text, **options)  # type: ignore
    try:
        sums = []
        for text in (PROSE * 4, PROSE * 16):
            counted.clear()
            model.split(text, 64, 8)
            sums.append(sum(counted))
    finally:
        del model.count_tokens
    assert sums[1] < 4.5 * sums[0]
