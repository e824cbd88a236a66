"""Text -> ids. The `tokenizers` package alone is the judge; for Gemma's tokenizer also vectors made by others.

What the arrays of tokenizer.safetensors give is judged in test_bpe.py; here, that Tokenizer is the same with them.
"""

import itertools
import json
import lzma
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tokenizers
from gemma_np.kernels import cache
from gemma_np.kernels.choice import choose
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import CheckpointError, EmbeddingGemma, InputError
from gemma_np.config import Config, read_config
from gemma_np.tokens.json_file import from_tokenizer_json
from gemma_np.tokens.pieces import FILE, Pieces, joined, make_pieces, open_pieces, save_pieces
from gemma_np.tokens.tokenizer import Tokenizer

WORLD = [
    "The quick brown fox jumps over the lazy dog.",
    "Voix ambiguë d'un cœur qui préfère les jattes de kiwis. Größe, Straße, ﬁnanziell",
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "דג סקרן שט בים",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "ว่างเปล่าไม่มีช่องว่าง",
    "いろはにほへと ちりぬるを 色は匂へど",
    "我能吞下玻璃而不伤身体。𠜎𠜱𠝹",
    "키스의 고유조건은 입술끼리 만나야 하고",
    "ᚠᛇᚻ᛫ᛒᛦᚦ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⵜⴰⵎⴰⵣⵉⵖⵜ 𓀀𓀁 𐍈",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 #️⃣ ❤️",
    "a\u0301 e\u0308 \u1e9b\u0323 Å Å Å",  # letters with marks behind them: nothing may be normalised
    "\x00\x01\x07\x1b[0m\x7f\x80\x9f\u200b\u200d\u202e\u2028\u2029\ufeff\ufffd\ufffe\uffff\U0010ffff",
    " leading, trailing  and   many spaces ",
    "tab\tnewline\nreturn\r\nnew\n\nlines\n\n\n",
    "▁ is the tokenizer's own space, <0x0A> is no byte, <eos> and <pad> are tokens",
    "x" * 3000,
    "長" * 3000,
    "word " * 1000,
    "\n" * 500,
    " " * 500,
    " ",
    "a",
    "",
]


@pytest.fixture(scope="module")
def config(small: Path) -> Config:
    return read_config(small)


@pytest.fixture(scope="module")
def ours(small: Path, config: Config) -> Tokenizer:
    return Tokenizer(small, config)


@pytest.fixture(scope="module")
def theirs(small: Path) -> tokenizers.Tokenizer:
    """The package itself, without a limit."""
    package = tokenizers.Tokenizer.from_file(str(small / "tokenizer.json"))
    package.no_truncation()
    package.no_padding()
    return package


def ids_of(tokenizer: Tokenizer, text: str, max_tokens: int | None = None) -> list[int]:
    ((array,), _) = tokenizer.encode([text], max_tokens)
    assert (array.dtype, array.ndim) == (np.int32, 1)
    return [int(token) for token in array]


# ---- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", WORLD)
def test_every_script_gives_the_packages_ids(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    assert ids_of(ours, text) == theirs.encode(text).ids


@given(text=st.text())
def test_any_text_gives_the_packages_ids(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    assert ids_of(ours, text) == theirs.encode(text).ids


@given(text=st.text())
def test_any_text_comes_back_from_its_ids(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    # Bytes stand for what has no piece, so nothing is lost, except that U+2581, the tokenizer's space, becomes one.
    assert theirs.decode(ids_of(ours, text)) == text.replace("▁", " ")


def test_bos_stands_in_front_and_eos_behind(ours: Tokenizer, theirs: tokenizers.Tokenizer, config: Config) -> None:
    assert (config.bos, config.eos) == ({2}, {1})
    assert (ours.prefix, ours.suffix) == ([2], [1])
    assert ids_of(ours, "") == [2, 1]
    for text in WORLD:
        assert ids_of(ours, text) == [2, *theirs.encode(text, add_special_tokens=False).ids, 1]


def test_a_batch_is_its_texts_one_by_one(ours: Tokenizer) -> None:
    arrays, lengths = ours.encode(WORLD)
    assert [array.tolist() for array in arrays] == [ids_of(ours, text) for text in WORLD]
    assert lengths == [len(array) for array in arrays]
    assert ours.encode([]) == ([], [])


# ---- length ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2, 3, 4, 5, 6, 7, 8, 13, 21, 64, 100, 255, 256, 257, 512, 2048, 100_000])
def test_a_long_text_is_cut_as_the_package_cuts_it(ours: Tokenizer, small: Path, limit: int) -> None:
    package = tokenizers.Tokenizer.from_file(str(small / "tokenizer.json"))
    package.enable_truncation(max_length=limit)
    arrays, lengths = ours.encode(WORLD, limit)
    for text, array, length in zip(WORLD, arrays, lengths, strict=True):
        assert array.tolist() == package.encode(text).ids
        assert len(array) == min(length, limit)
        assert length == len(ids_of(ours, text))  # as long as it was before the cut


@pytest.mark.parametrize("limit", [0, 1])
def test_bos_and_eos_stay_even_where_the_limit_has_no_room_for_them(ours: Tokenizer, limit: int) -> None:
    assert ids_of(ours, "a long text", limit) == [2, 1]  # the package, given less than 2, does not cut at all
    assert ids_of(ours, "", limit) == [2, 1]


@given(text=st.text(min_size=1, max_size=40), limit=st.integers(2, 50))
def test_a_cut_takes_from_the_end_and_leaves_eos(ours: Tokenizer, text: str, limit: int) -> None:
    whole, cut = ids_of(ours, text), ids_of(ours, text, limit)
    assert cut == (whole if len(whole) <= limit else [*whole[: limit - 1], 1])


def test_a_limit_or_padding_that_the_file_brings_along_is_no_matter(writable: Path, ours: Tokenizer) -> None:
    package = tokenizers.Tokenizer.from_file(str(writable / "tokenizer.json"))
    package.enable_truncation(max_length=8)
    package.enable_padding(length=16)
    package.save(str(writable / "tokenizer.json"))
    tokenizer = Tokenizer(writable, read_config(writable))
    for text in WORLD:
        assert ids_of(tokenizer, text) == ids_of(ours, text)


PROMPTS = ["task: search result | query: ", "title: none | text: ", "q:", " ", "naïve 検索 👍 ", "<eos>", "a<eos>b"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompts_tokens_are_counted_with_bos_and_without_eos(
    ours: Tokenizer, theirs: tokenizers.Tokenizer, prompt: str
) -> None:
    # sentence-transformers, Transformer._get_prompt_length: the prompt alone, less one special token at its end
    assert ours.prompt_length(prompt) == 1 + len(theirs.encode(prompt, add_special_tokens=False).ids)


@pytest.mark.parity
def test_sentence_transformers_has_the_same_ids_and_prompt_lengths(
    small: Path, ours: Tokenizer, sentence_transformers: ModuleType
) -> None:
    transformer = sentence_transformers.SentenceTransformer(str(small), device="cpu")[0]
    for text in WORLD:
        assert transformer.preprocess([text])["input_ids"][0].tolist() == ids_of(ours, text, 2048)
    for prompt in PROMPTS:
        assert transformer.preprocess(["text"], prompt=prompt)["prompt_length"] == ours.prompt_length(prompt)


# ---- texts that cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("\ud800", "U+D800 at character 0"),
        ("abc\udfff", "U+DFFF at character 3"),
        ("👍 \udc80 \ud800", "U+DC80 at character 2"),
        ("\udc00\ud800", "U+DC00 at character 0"),
    ],
)
def test_a_lone_surrogate_is_named(ours: Tokenizer, text: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        ours.encode(["fine", text, "fine"], first=40)
    assert f"text 41 holds the lone surrogate {where}" in str(caught.value)
    str(caught.value).encode()  # the message itself can be printed


@given(text=st.text(st.characters(categories=["Cs", "L", "So"])))
def test_text_with_surrogates_is_read_or_refused(ours: Tokenizer, text: str) -> None:
    lone = any(0xD800 <= ord(character) < 0xE000 for character in text)
    try:
        ours.encode([text])
    except InputError:
        assert lone
    else:
        assert not lone


def test_a_token_that_has_no_row_in_the_table_is_read_as_text(writable: Path) -> None:
    """As the same model's GGUF file reads it; the package without that token is the judge."""
    config = read_config(writable)
    package = tokenizers.Tokenizer.from_file(str(writable / "tokenizer.json"))
    for i in range(package.get_vocab_size(), config.V):
        package.add_tokens([f"<unused{i}>"])
    texts = [
        "<image_soft_token>",
        "a picture: <image_soft_token>s",
        "<bos><image_soft_token> <image_soft_token>",
        "fine",
    ]
    expected = [encoding.ids for encoding in package.encode_batch(texts)]
    package.add_special_tokens(["<image_soft_token>"])  # as in Gemma's own: one more than the table has rows
    assert package.token_to_id("<image_soft_token>") == config.V
    package.save(str(writable / "tokenizer.json"))
    tokenizer = Tokenizer(writable, config)
    assert ids_of(tokenizer, f"<unused{config.V - 1}>") == [2, config.V - 1, 1]
    assert [ids.tolist() for ids in tokenizer.encode(texts)[0]] == expected
    assert tokenizer.prompt_length(texts[0]) == len(expected[0]) - 1
    assert len(ids_of(tokenizer, "word " * 50 + "<image_soft_token>", 16)) == 16


# ---- files that cannot be ----------------------------------------------------------------------------------------


def other_model(path: Path, start: str, end: str, ids: dict[str, int]) -> None:
    """A tokenizer of words, with special tokens like BERT's."""
    package = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 50, "a": 51, **ids}, unk_token="[UNK]"))
    package.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    package.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(), special_tokens=list(ids.items())
    )
    package.save(str(path))


def test_a_tokenizer_with_more_pieces_than_the_table_has_rows_is_refused(small: Path, config: Config) -> None:
    pieces = tokenizers.Tokenizer.from_file(str(small / "tokenizer.json")).get_vocab_size(with_added_tokens=False)
    Tokenizer(small, replace(config, V=pieces))
    with pytest.raises(CheckpointError, match=rf"has {pieces:,} pieces, .* vocab_size = {pieces - 1:,}: it belongs to"):
        Tokenizer(small, replace(config, V=pieces - 1))


@pytest.mark.parametrize(
    ("start", "end", "ids", "message"),
    [
        ("[CLS]", "[SEP]", {"[CLS]": 101, "[SEP]": 102}, r"puts the id 101 before a text, but config\.json says \[2\]"),
        ("[CLS]", "", {"[CLS]": 101}, "puts the id 101 before a text"),
        ("", "[SEP]", {"[SEP]": 102}, r"puts the id 102 after a text, but config\.json says \[1\]"),
        ("<bos>", "</s>", {"<bos>": 2, "</s>": 3}, "puts the id 3 after a text"),
    ],
)
def test_another_models_tokenizer_is_refused(
    tmp_path: Path, config: Config, start: str, end: str, ids: dict[str, int], message: str
) -> None:
    other_model(tmp_path / "tokenizer.json", start, end, ids)
    with pytest.raises(CheckpointError, match=f"{message}.*take the tokenizer.json that came with these weights"):
        Tokenizer(tmp_path, config)


def test_a_config_that_names_several_ids_or_none_is_not_held_against_the_tokenizer(small: Path, config: Config) -> None:
    Tokenizer(small, replace(config, eos=frozenset({1, 106})))
    Tokenizer(small, replace(config, bos=frozenset(), eos=frozenset()))


def test_a_tokenizer_that_adds_nothing_has_neither_prefix_nor_suffix(tmp_path: Path, config: Config) -> None:
    other_model(tmp_path / "tokenizer.json", "", "", {})
    tokenizer = Tokenizer(tmp_path, config)
    assert (tokenizer.prefix, tokenizer.suffix) == ([], [])
    assert ids_of(tokenizer, "a b a") == [51, 50, 51]
    assert ids_of(tokenizer, "a b a", 2) == [51, 50]
    assert tokenizer.prompt_length("a b") == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model": {"type": "BPE"}}', b"version https"],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, config: Config, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer .*download it again"):
        Tokenizer(tmp_path, config)


def test_a_download_that_broke_off_is_refused(writable: Path, config: Config) -> None:
    path = writable / "tokenizer.json"
    data = path.read_bytes()
    for kept in (1, len(data) // 2, len(data.rstrip()) - 1):
        path.write_bytes(data[:kept])
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
            Tokenizer(writable, config)


def test_a_missing_tokenizer_and_a_folder_in_its_place_are_refused(tmp_path: Path, config: Config) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path, config)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path, config)


# ---- tokenizer.safetensors ---------------------------------------------------------------------------------------


@pytest.fixture
def compact(writable: Path) -> Path:
    """A checkpoint with the arrays instead of tokenizer.json."""
    save_pieces(from_tokenizer_json(writable / "tokenizer.json"), writable / FILE)
    (writable / "tokenizer.json").unlink()
    return writable


def test_the_arrays_give_the_same_ids_as_the_json(compact: Path, config: Config, ours: Tokenizer) -> None:
    tokenizer = Tokenizer(compact, config)
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.path) == (ours.prefix, ours.suffix, compact / FILE)
    for limit in (None, 0, 1, 2, 3, 8, 300):
        (found, lengths), (expected, counts) = tokenizer.encode(WORLD, limit), ours.encode(WORLD, limit)
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
        assert {ids.dtype for ids in found} == {np.dtype(np.int32)}
        assert lengths == counts
    assert tokenizer.encode([]) == ([], [])
    assert [tokenizer.prompt_length(prompt) for prompt in PROMPTS] == [ours.prompt_length(prompt) for prompt in PROMPTS]
    with pytest.raises(InputError, match=r"text 41 holds the lone surrogate U\+D800 at character 1"):
        tokenizer.encode(["fine", "a\ud800"], first=40)


def test_a_checkpoint_with_arrays_embeds_as_one_with_json(compact: Path, small: Path) -> None:
    texts = ["the quick brown fox", "naïve 猫", ""]
    assert np.array_equal(EmbeddingGemma(compact).encode(texts), EmbeddingGemma(small).encode(texts))


def test_the_arrays_are_preferred_and_need_no_package(compact: Path, small: Path) -> None:
    shutil.copy(small / "tokenizer.json", compact / "tokenizer.json")
    program = (
        f"import sys; from gemma_np import EmbeddingGemma; print(EmbeddingGemma({str(compact)!r}).encode('a').shape)"
    )
    program += "; print('tokenizers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "(64,)\nFalse\n", done.stderr


def test_damaged_arrays_are_an_error_also_beside_a_json(compact: Path, config: Config, small: Path) -> None:
    shutil.copy(small / "tokenizer.json", compact / "tokenizer.json")
    (compact / FILE).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors"):
        Tokenizer(compact, config)


def test_arrays_from_elsewhere_serve_a_folder_without_a_tokenizer(tmp_path: Path, config: Config, small: Path) -> None:
    pieces = from_tokenizer_json(small / "tokenizer.json")
    assert ids_of(Tokenizer(tmp_path, config, pieces), "a") == ids_of(Tokenizer(small, config), "a")


def test_arrays_of_another_model_are_refused(compact: Path, config: Config) -> None:
    pieces = open_pieces(compact / FILE)
    for changed, message in (
        (replace(config, V=pieces.pieces - 1), "it belongs to another model; take the tokenizer.safetensors that came"),
        (replace(config, bos=frozenset({99})), "puts the id 2 before a text"),
        (replace(config, eos=frozenset({99})), "puts the id 1 after a text"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Tokenizer(compact, changed)


def test_an_added_token_without_a_row_is_read_as_text_by_the_arrays_too(compact: Path, config: Config) -> None:
    """Gemma's <image_soft_token> is one past the table; in a GGUF file it is no piece at all."""
    pieces = open_pieces(compact / FILE)
    plain = Tokenizer(compact, config)
    for run in (None, kernel_for_texts()):
        tokenizer = Tokenizer(compact, replace(config, V=pieces.pieces), with_token(pieces, "<image>"), run)
        for text in ("fine", "an <image> here", "<image>"):
            assert ids_of(tokenizer, text) == ids_of(plain, text)


def kernel_for_texts() -> Callable[[int], None] | None:
    column = choose().column
    return cache.kernels_for(column, ("q8_0",)).encode if column else None


def with_token(pieces: Pieces, token: str) -> Pieces:
    """The same pieces, and one more added token."""
    table = [*(pieces.piece(id) for id in range(len(pieces))), token.encode()]
    added = [*pieces.added.tolist(), len(pieces)]
    around = pieces.prefix.tolist(), pieces.suffix.tolist()
    return make_pieces(
        pieces.path, joined(table), [*pieces.ranks, -1], [*pieces.splits, 0], added, [], *around, pieces=pieces.pieces
    )


# ---- Gemma's own -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["json", "arrays"])
def gemma(request: pytest.FixtureRequest, shared: Path, gemma_pieces: Pieces) -> Tokenizer:
    """By tokenizer.json, and by the arrays on this machine's kernel."""
    folder = shared / "data/embeddinggemma-300m"
    config = read_config(folder)
    if request.param == "json":
        return Tokenizer(folder, config)
    column = choose().column
    return Tokenizer(folder, config, gemma_pieces, cache.kernels_for(column, ("q8_0",)).encode if column else None)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [2, 9259, 236764, 1902, 236888, 1]),
        ("a", [2, 236746, 1]),
        (" ", [2, 236743, 1]),
        ("", [2, 1]),
    ],
)
def test_gemmas_tokenizer_gives_the_known_ids(gemma: Tokenizer, text: str, ids: list[int]) -> None:
    assert ids_of(gemma, text) == ids


def parsed(line: str) -> list[int]:
    return [int(token) for token in line.split(",")]


@pytest.mark.parametrize("source", ["sentencepiece", "tokenizers"])  # two libraries made them
def test_gemmas_tokenizer_agrees_with_vectors_made_by_others(gemma: Tokenizer, shared: Path, source: str) -> None:
    folder = shared / "data/tokenizer/kitoken_gemma3_vectors"
    pairs: list[tuple[str, list[int]]] = []
    for name in ("small", "mixed"):
        texts = (folder / f"{name}_input.txt").read_bytes().decode().removesuffix("\n").split("\n")
        lines = (folder / source / f"{name}_tokens_gemma3.txt").read_text().removesuffix("\n").split("\n")
        texts = [text.replace("\\n", "\n").replace("\\s", " ") for text in texts]  # as the vectors' makers wrote them
        pairs += [(text, parsed(line)) for text, line in zip(texts, lines, strict=True)]
    assert (len(pairs), sum(len(ids) for _, ids in pairs)) == (140, 25_289)
    torture = parsed((folder / source / "utf8_tokens_gemma3.txt").read_text())
    assert len(torture) == 5_087
    pairs.append(((folder / "utf8_input.txt").read_bytes().decode(), torture))
    arrays, _ = gemma.encode([text for text, _ in pairs])
    for (text, ids), array in zip(pairs, arrays, strict=True):
        assert array.tolist() == [2, *ids, 1], repr(text[:60])


def sentences_of_every_language(path: Path, total: int) -> list[str]:
    """As many sentences of each language as of any other, as far as there are so many."""
    texts: dict[str, list[str]] = defaultdict(list)
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            _, language, text = line.rstrip("\n").split("\t", 2)
            if len(texts[language]) < 200:
                texts[language].append(text)
    turns = itertools.zip_longest(*texts.values())
    return list(itertools.islice((text for turn in turns for text in turn if text is not None), total))


def test_gemmas_tokenizer_gives_the_packages_ids_in_every_language(gemma: Tokenizer, shared: Path) -> None:
    folder = shared / "data/embeddinggemma-300m"
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    sentences = sentences_of_every_language(shared / "data/train/multi_sentences.tsv.xz", 10_000)
    assert len(sentences) == 10_000
    long = [" ".join(sentences[i : i + 500]) for i in range(0, 10_000, 500)]  # over the limit of 2048 tokens
    texts = [prompt + text for prompt, text in zip(itertools.cycle(["", *prompts.values()]), sentences + long)]
    package = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    package.enable_truncation(max_length=2048)
    arrays, lengths = gemma.encode(texts, 2048)
    assert sum(length > 2048 for length in lengths) == len(long)
    for text, array, encoding in zip(texts, arrays, package.encode_batch(texts), strict=True):
        assert array.tolist() == encoding.ids, repr(text[:60])


def test_gemmas_image_token_has_no_row_and_is_read_as_text(gemma: Tokenizer, shared: Path) -> None:
    package = json.loads((shared / "data/embeddinggemma-300m/tokenizer.json").read_text())
    package["added_tokens"] = [token for token in package["added_tokens"] if token["content"] != "<image_soft_token>"]
    judge = tokenizers.Tokenizer.from_str(json.dumps(package))
    texts = ["<image_soft_token>", "a<image_soft_token>b", "fine"]
    assert [ids.tolist() for ids in gemma.encode(texts)[0]] == [judge.encode(text).ids for text in texts]
    assert max(ids.max() for ids in gemma.encode(texts)[0]) < 262_144


@pytest.mark.parity
def test_transformers_has_the_same_ids_for_gemma(gemma: Tokenizer, shared: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    theirs: Callable[..., Any] = transformers.AutoTokenizer.from_pretrained(str(shared / "data/embeddinggemma-300m"))
    for text in WORLD:
        assert ids_of(gemma, text, 2048) == theirs(text, truncation=True, max_length=2048)["input_ids"], text[:60]
