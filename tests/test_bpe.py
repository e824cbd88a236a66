"""Text -> ids by the arrays: the kernel in the plain column and this machine's own, and its meaning in Python. The
`tokenizers` package is the judge, on tokenizers of every kind that the arrays can express.

With NUMBA_DISABLE_JIT=1 the same tests run the kernel as Python, where an access outside of its arrays is an error; see
test_emulated.py.
"""

import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from gemma_np.kernels import compiling
from gemma_np.kernels.choice import choose
from gemma_np.kernels.columns import BY_NAME
from gemma_np.kernels.objects import places
from gemma_np.kernels.plan import ENCODE, HASH_BASE, HASH_PRIME
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizer import small_tokenizer

from gemma_np.gguf.tokenizer import from_scores
from gemma_np.tokens import bpe
from gemma_np.tokens.bpe import Encoder
from gemma_np.tokens.json_file import from_tokenizer_json
from gemma_np.tokens.pieces import Pieces, joined

EMULATED = os.environ.get("NUMBA_DISABLE_JIT") == "1"
NATIVE = choose().column
COMPILED = [] if NATIVE is None else sorted({"plain", NATIVE.name})
WAYS = ["emulated"] if EMULATED else [*COMPILED, "python"]

Run = Callable[[int], None] | None

COMPILE = """
import sys; from pathlib import Path; from gemma_np.kernels import build, plan
Path(sys.argv[1]).write_bytes(build.build({plan.ENCODE: build.shipped()[plan.ENCODE]}))
"""


@pytest.fixture(scope="session")
def objects() -> dict[str, Any]:
    """Compilers of the kernel alone, for all columns at once."""
    started = {}
    for name in () if EMULATED else COMPILED:
        folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-P", "-c", COMPILE, f"{folder.name}/encode.o"]
        started[name] = subprocess.Popen(command, env=compiling.environment(BY_NAME[name], ("f32",))), folder
    return started


@pytest.fixture(scope="session", params=WAYS)
def run(request: pytest.FixtureRequest, objects: dict[str, Any]) -> Run:
    """What an Encoder is given: a compiled kernel, or None for the meaning."""
    if request.param not in objects:
        return None
    import ctypes

    process, folder = objects[request.param]
    assert process.wait() == 0
    found = places(Path(folder.name, "encode.o").read_bytes(), [ENCODE])
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(found[ENCODE])


class Checked(Encoder):
    """An Encoder whose kernel is Python and sees its own arrays alone."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__(pieces, self.emulate)

    def prepared(self, texts: Sequence[bytes]) -> Any:
        self.lent = super().prepared(texts)
        return self.lent

    def emulate(self, call: int) -> None:
        from gemma_np.kernels import simd
        from gemma_np.kernels.bpe import encode_texts

        simd.lend(*self.arrays.values(), *(array for array in self.lent if array.size))
        encode_texts(call)


def encoder(pieces: Pieces, run: Run) -> Encoder:
    return Checked(pieces) if EMULATED else Encoder(pieces, run)


class Pair:
    """A tokenizer of the package, and ours from its JSON."""

    def __init__(self, theirs: tokenizers.Tokenizer, run: Run, folder: Path) -> None:
        theirs.save(str(folder / "tokenizer.json"))
        self.theirs, self.ours = theirs, encoder(from_tokenizer_json(folder / "tokenizer.json"), run)

    def check(self, *texts: str) -> None:
        found = self.ours.encode(texts)
        for text, ids, encoding in zip(texts, found, self.theirs.encode_batch_fast(list(texts)), strict=True):
            assert ids.dtype == np.int32
            assert ids.tolist() == encoding.ids, repr(text[:80])


def tokenizer(
    pieces: Sequence[str], merges: Sequence[tuple[str, str]], added: Sequence[str] = (), **changes: Any
) -> tokenizers.Tokenizer:
    """A tokenizer of Gemma's layout with these pieces; `changes` replace parts of its JSON's model."""
    table = ["<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *pieces]
    content = json.loads(small_tokenizer().to_str())
    vocabulary = {piece: id for id, piece in enumerate(table)}
    content["model"] |= {"vocab": vocabulary, "merges": [list(pair) for pair in merges], **changes}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [*(token for token in added if token in vocabulary), *(t for t in added if t not in vocabulary)]
    ids = iter(range(len(table), len(table) + len(tokens)))
    content["added_tokens"] = [
        {"id": vocabulary[t] if t in vocabulary else next(ids), "content": t, **flags, "special": False}
        for t in ["<eos>", "<bos>", *tokens]
    ]
    special = {"<bos>": 1, "<eos>": 0}
    content["post_processor"]["special_tokens"] = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in special.items()}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def all_splits(pieces: Sequence[str], first: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Merges as Gemma's tokenizer.json has them: those of `first`, sorted by the longer left part, then the longer
    right; then piece by piece, the longer left part first."""
    known = {*pieces, "▁"}

    def splits(piece: str) -> list[tuple[str, str]]:
        every = [(piece[:k], piece[k:]) for k in range(len(piece) - 1, 0, -1)]
        return [pair for pair in every if known.issuperset(pair)]

    leading = sorted((pair for piece in first for pair in splits(piece)), key=lambda p: (-len(p[0]), -len(p[1])))
    return leading + [pair for piece in pieces if piece not in first for pair in splits(piece)]


def random_pieces(seed: int, alphabet: str, count: int, longest: int) -> list[str]:
    """The alphabet and words of it, in an order of chance."""
    draw = random.Random(seed)
    words = {"".join(draw.choices(alphabet, k=draw.randint(2, longest))) for _ in range(count)} - {"▁"}
    found = [*(letter for letter in alphabet if letter != "▁"), *sorted(words)]
    draw.shuffle(found)
    return found


MANY = 40 if EMULATED else 400


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_chance_with_all_their_splits(seed: int, run: Run, tmp_path: Path) -> None:
    """Few letters, so that pieces overlap in every way, spaces in their middle included; `é` is no piece of its own."""
    pieces = [*random_pieces(seed, "abß▁", 60, 5), "bé", "éb", "▁é"]
    pair = Pair(tokenizer(pieces, all_splits(pieces), ["ab<", "ab<<a", "<a", "b b", "▁▁"]), run, tmp_path)
    draw = random.Random(seed)
    pair.check(*("".join(draw.choices("abaß ▁é<", k=draw.randint(0, 60))) for _ in range(MANY)))


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_chance_with_one_split_each(seed: int, run: Run, tmp_path: Path) -> None:
    pieces = random_pieces(seed, "abc▁", 80, 6)
    draw, some = random.Random(seed), []
    for piece in pieces:
        splits = [(one, two) for one, two in all_splits(pieces) if one + two == piece]
        some += draw.sample(splits, min(len(splits), 1))
    pair = Pair(tokenizer(pieces, some), run, tmp_path)
    assert pair.ours.pieces.splits.any()
    pair.check(*("".join(draw.choices("abca ▁d", k=draw.randint(0, 60))) for _ in range(MANY)))


def test_runs_that_take_turns_in_the_table(run: Run, tmp_path: Path) -> None:
    """As Gemma's newlines, tabs and spaces: longer runs first, whichever character they are of."""
    runs = [character * n for n in range(2, 12) for character in ("▁", "a", "b")]
    pieces = ["a", "b", *runs, "ab", "▁a", "b▁", "▁▁ab", "▁ab"]
    merges = all_splits(pieces, first=runs)
    pair = Pair(tokenizer(pieces, merges), run, tmp_path)
    draw = random.Random(0)
    pair.check(*("".join(draw.choice("ab ") * draw.randint(1, 30) for _ in range(6)) for _ in range(MANY)))


@pytest.mark.parametrize("seed", range(8))
def test_runs_of_some_lengths_that_have_no_scores(seed: int, run: Run, tmp_path: Path) -> None:
    """User-defined pieces of GGUF: all have the same rank, so that the parts' lengths decide."""
    draw = random.Random(seed)
    runs = ["▁" * n for n in sorted(draw.sample(range(2, 16), draw.randint(2, 13)))]
    pieces = ["a", *runs, "▁a"]
    theirs = tokenizer(pieces, all_splits(pieces, first=runs), runs)
    table = [piece for piece, _ in sorted(theirs.get_vocab().items(), key=lambda entry: entry[1])]
    types = np.array([{"<": 6, "▁": 4 if len(piece) > 1 else 1}.get(piece[0], 1) for piece in table])
    types[[0, 1, table.index("▁a")]] = 3, 3, 1
    ours = encoder(
        from_scores(tmp_path, joined([piece.encode() for piece in table]), -np.arange(len(table)), types, [1], [0]), run
    )
    texts = ["a".join(" " * draw.randint(0, 50) for _ in range(4)) for _ in range(MANY // 4)]
    assert [ids.tolist() for ids in ours.encode(texts)] == [e.ids for e in theirs.encode_batch(texts)]


def test_words_of_every_length_around_a_group_of_symbols(run: Run, tmp_path: Path) -> None:
    pieces = ["a", "b", "aa", "ab", "aaaa", "abab", "ba", "bab"]
    pair = Pair(tokenizer(pieces, all_splits(pieces)), run, tmp_path)
    for word in ("a", "ab", "aab"):
        pair.check(*((word * 200)[:n] for n in [*range(1, 70), 127, 128, 129, 255, 256, 257, 511, 512, 513]))


def test_a_piece_that_no_merge_makes_is_only_a_piece(run: Run, tmp_path: Path) -> None:
    pieces = ["a", "b", "c", "ab", "bc", "abc"]
    Pair(tokenizer(pieces, [("b", "c")]), run, tmp_path).check("ab", "abc", "aabbcc", "cab")


def test_a_piece_is_never_made_of_a_character_that_is_none(run: Run, tmp_path: Path) -> None:
    pieces = ["a", "aé", "éa", "éé", "aéa"]
    Pair(tokenizer(pieces, []), run, tmp_path).check("aé", "éa", "aéa", "éé", "é", "aaéaa")


def test_added_tokens_are_cut_out_first_and_the_longest_wins(run: Run, tmp_path: Path) -> None:
    pieces = ["a", "b", "c", "ab", "abc", "▁▁", "▁▁▁", "<", ">", "\n"]
    added = ["abc", "ab", "bca", "cab", "<a>", "<a>>", "<", "▁▁", "▁ a", " b", "\n", "\n\n", "é", "\x00", "👍🏽", "👍"]
    pair = Pair(tokenizer(pieces, all_splits(pieces), added), run, tmp_path)
    pair.check(
        "abcab", "ababc", "bcab", "<a>>>", "<<a", "  ▁▁▁ ▁ a b", "\n\n\n", "éa", "\x00\x00", "👍👍🏽🏽", "ab", "<a"
    )
    draw = random.Random(1)
    pair.check(*("".join(draw.choices("abc<> ▁\né\x00👍🏽", k=draw.randint(0, 40))) for _ in range(MANY)))


def test_without_a_piece_for_the_space_it_becomes_three_bytes(run: Run, tmp_path: Path) -> None:
    """The most ids that a text can have: three for each of its bytes."""
    theirs = json.loads(tokenizer(["a"], []).to_str())
    theirs["model"]["vocab"]["unseen"] = theirs["model"]["vocab"].pop("▁")
    pair = Pair(tokenizers.Tokenizer.from_str(json.dumps(theirs)), run, tmp_path)
    pair.check(" ", " " * 1000, "a a", "▁")


def test_pieces_as_long_as_can_be(run: Run, tmp_path: Path) -> None:
    """Two of them side by side are longer than any piece, and than the table of powers."""
    pieces = ["a", "b", *("a" * 2**n for n in range(1, 8)), "a" * 255, "b" * 2, "b" * 127, "b" * 254]
    pair = Pair(tokenizer(pieces, all_splits(pieces)), run, tmp_path)
    pair.check("a" * 128 * 5, "a" * 127, "b" * 600, "ab" * 20)


def same_hashes() -> tuple[str, str]:
    """Two words of seven letters that the hash does not tell apart."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (1 << 18, 7), dtype=np.uint64)
    hashes = np.zeros(len(letters), np.uint64)
    for column in letters.T:
        hashes = (hashes * HASH_BASE + column + 1) % HASH_PRIME
    order = np.argsort(hashes, kind="stable")
    for one, other in pairwise(order.tolist()):
        if hashes[one] == hashes[other] and (letters[one] != letters[other]).any():
            return tuple("".join(map(chr, letters[i].tolist())) for i in (one, other))  # type: ignore[return-value]
    raise AssertionError("there are dozens")


def test_words_of_the_same_hash_are_told_apart(run: Run, tmp_path: Path) -> None:
    one, other = same_hashes()
    letters = sorted({*one, *other})
    prefixes = sorted({word[:n] for word in (one, other) for n in range(2, 7)}, key=len)
    pieces = [*letters, *prefixes, one]
    Pair(tokenizer(pieces, all_splits(pieces)), run, tmp_path).check(one, other, other + one, one + other)


def test_an_added_token_that_is_half_a_character_does_no_harm(run: Run, tmp_path: Path) -> None:
    """Only a damaged file has such a token; every byte is some id all the same."""
    names = ["<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    table = [*(name.encode() for name in names), b"\xc3", b"\x82", b"\xac "]
    types = np.array([3, *[6] * 256, 1, 3, 3, 3])
    ours = encoder(from_scores(tmp_path, joined(table), np.zeros(len(table)), types, [], []), run)
    (ids,) = ours.encode(["é € a"])
    assert ids.tolist() == [258, 1 + 0xA9, 257, 1 + 0xE2, 259, 260, 1 + ord("a")]


# ---- small tokenizers on all texts


@pytest.fixture(scope="session")
def small_pair(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(small_tokenizer(), run, tmp_path_factory.mktemp("small"))


@settings(max_examples=30 if EMULATED else 300, deadline=None)
@given(texts=st.lists(st.text(), max_size=5))
def test_any_texts_give_the_packages_ids(small_pair: Pair, texts: list[str]) -> None:
    small_pair.check(*texts)


@settings(max_examples=30 if EMULATED else 300, deadline=None)
@given(text=st.text(st.sampled_from("the quick <bos>eos▁ \n\t.éß猫🙂\x00")))
def test_likely_texts_give_the_packages_ids(small_pair: Pair, text: str) -> None:
    small_pair.check(text)


def test_the_empty_text_and_the_empty_batch(small_pair: Pair) -> None:
    small_pair.check("", "a", "", "")
    assert small_pair.ours.encode([]) == []


def test_many_texts_are_encoded_group_by_group(small_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "one", "a second text", "", "x" * 50, "é" * 30, "end", ""]
    for size in (0, 1, 5, 60, 10_000):
        monkeypatch.setattr(bpe, "CALL_BYTES", size)
        small_pair.check(*texts)


def test_threads_do_not_disturb_each_other(small_pair: Pair) -> None:
    if EMULATED:
        return  # memory is lent to one thread at a time
    texts = [[f"{number} the quick brown fox {i} " * 20 for i in range(50)] for number in range(4)]
    expected = [[encoding.ids for encoding in small_pair.theirs.encode_batch(some)] for some in texts]
    found: dict[int, list[list[int]]] = {}

    def work(number: int) -> None:
        for _ in range(5):
            found[number] = [ids.tolist() for ids in small_pair.ours.encode(texts[number])]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == expected


def test_nanos_own(run: Run, nano_float: Path) -> None:
    ours = encoder(from_tokenizer_json(nano_float / "tokenizer.json"), run)
    theirs = tokenizers.Tokenizer.from_file(str(nano_float / "tokenizer.json"))
    texts = ["task: search result | query: which planet is red?", "naïve Größe 猫 👍", "a  b\n\n\tc <eos> ▁"]
    assert [ids.tolist() for ids in ours.encode(texts)] == [e.ids for e in theirs.encode_batch(texts)]


# ---- Gemma's own; as Python, its vocabulary takes too long


@pytest.fixture(scope="session")
def gemma_theirs(shared: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(shared / "data/embeddinggemma-300m/tokenizer.json"))


@pytest.fixture(scope="session")
def gemma(run: Run, gemma_pieces: Pieces, gemma_theirs: tokenizers.Tokenizer) -> Pair:
    pair = object.__new__(Pair)
    pair.theirs, pair.ours = gemma_theirs, Encoder(gemma_pieces, run)
    return pair


AWKWARD = [
    *(
        c * n
        for c in (" ", "▁", "\n", "\t", "\r", "\x00", "a", "=", "é", "猫", "🫨", "<")
        for n in (1, 2, 30, 31, 32, 97)
    ),
    *(f"a{' ' * n}b{'▁' * n}\n" for n in range(1, 70)),
    *(" " * n + "▁" * m + " " * n for n in (1, 2, 15, 16, 31) for m in (1, 2, 15, 16, 31)),
    *("\n" * n + "\t" * m + "\n" * n for n in (1, 2, 15, 16, 31) for m in (1, 2, 15, 16, 31)),
    *("> </ ", ">▁</", "> < /", "a> </b> </c>", ">> </ >▁</>"),  # the one piece with a space in its middle
    *("<bos>", "<eos><eos>", "<start_of_turn>user\n", "<unused99>", "<unused9", "<unused6241>x", "<table><tr><td>"),
    *("</td>x</tr", "<<<b>>", "[multimodal]", "<0x0A>", "<0x41", "<image_soft_token>", "<unk><pad><mask>"),
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 #️⃣ ❤️ a\u0301 \u1e9b\u0323 \u200b\u200d\ufeff\ufffd\uffff\U0010ffff \x7f\x80\x85\xa0",
    "ᚠᛇᚻ᛫ᛒᛦᚦ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⵜⴰⵎⴰⵣⵉⵖⵜ 𓀀𓀁 𐍈 𠜎𠜱𠝹",
]


def test_gemmas_ids_of_awkward_texts(gemma: Pair) -> None:
    gemma.check(*AWKWARD)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" ▁\n\t<>/eab"))))
def test_gemmas_ids_of_any_text(gemma: Pair, text: str) -> None:
    gemma.check(text)


def test_gemmas_ids_of_its_own_pieces(gemma: Pair) -> None:
    """Every piece as a text, and every piece behind another; in Python a sample of them."""
    pieces = [gemma.ours.pieces.piece(id).decode() for id in range(0, 262_144, 41 if gemma.ours.compiled else 4001)]
    gemma.check(*pieces, *(one + two for one, two in zip(pieces, reversed(pieces), strict=True)))


@pytest.mark.parametrize("file", ["multi_sentences.tsv", "en_sentences.tsv", "parallel.tsv"])
def test_gemmas_ids_of_the_worlds_sentences(gemma: Pair, shared: Path, file: str) -> None:
    """A sample; tools/compare_tokenizers.py compares all."""
    step = 40 if gemma.ours.compiled else 2000
    with lzma.open(shared / f"data/train/{file}.xz", "rt", encoding="utf-8", newline="\n") as lines:
        gemma.check(*(line.rstrip("\n") for i, line in enumerate(lines) if i % step == 0 and i < 200_000))


@pytest.mark.parametrize("unit", ["a", " ", "▁", "\n", "Donaudampfschifffahrt", "🫨", "<", "猫が好き", "a b\n", "ab"])
def test_gemmas_ids_of_a_long_text_of_one_kind(gemma: Pair, unit: str) -> None:
    size = 1_000_000 if gemma.ours.compiled else 10_000
    gemma.check(unit * (size // len(unit.encode())))
