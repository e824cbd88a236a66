"""The bundled model: what it is, that it is the default and says so, and that it ranks sensibly."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bounds import FLOAT32, ROUNDED_COSINE
from reference_float64 import Reference

from gemma_np import EmbeddingGemma, hub
from gemma_np.checkpoint.bundle import damaged_files
from gemma_np.cli.main import main

ROOT = Path(__file__).parents[1]
NANO = hub.NANO_FOLDER

# A line each from the world's scripts, with code, emoji, combining marks and white space.
SCRIPTS = """\
All human beings are born free and equal.
Alle Menschen sind frei und gleich an Würde geboren; die Straße ist groß.
Tous les êtres humains naissent libres et égaux, à l'œuvre !
Todos los seres humanos nacen libres, ¿verdad?
人人生而自由,在尊严和权利上一律平等。
すべての人間は、生まれながらにして自由である。カタカナ
모든 인간은 태어날 때부터 자유로우며
Все люди рождаются свободными и равными
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι
يولد جميع الناس أحراراً متساوين
כל בני אדם נולדו בני חורין
सभी मनुष्यों को गौरव और अधिकारों के मामले में
সমস্ত মানুষ স্বাধীনভাবে
மனிதப் பிறவியினர் சகலரும்
ప్రతిపత్తిస్వత్వముల విషయమున
ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ
മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും
มนุษย์ทั้งหลายเกิดมามีอิสระ
ມະນຸດທຸກຄົນເກີດມາມີອິດສະຫຼະ
လူတိုင်းသည် တူညီ လွတ်လပ်သော
មនុស្សទាំងអស់កើតមកមានសេរីភាព
ყველა ადამიანი იბადება თავისუფალი
Բոլոր մարդիկ ծնվում են ազատ
የሰው ልጅ ሁሉ ሲወለድ ነጻና
མིའི་རིགས་རྒྱུད་ཡོངས་ལ་
ᏂᎦᏓ ᎠᏂᏴᏫ ᏂᎨᎫᏓᎸᎾ
ᓄᓇᕗᑦ ⴰⵎⴰⵣⵉⵖ ꦗꦮ ᠮᠣᠩᠭᠣᠯ 𐌲𐌿𐍄𐌹𐍃𐌺 𓀀𓁐 𝕄𝕒𝕥𝕙
é e\u0301 ﬁ ½ ™ ‮abc‬ \u200b\u200d 👩‍👩‍👧‍👦 🇩🇪 \ufffd \ue000
def f(x):\t# two  spaces,   three\r
"""


def test_its_shape_is_what_kernels_like_and_its_size_what_a_wheel_can_carry() -> None:
    config = json.loads((NANO / "config.json").read_text())
    assert config["head_dim"] in (64, 128)
    assert config["num_attention_heads"] > config["num_key_value_heads"] >= 1
    assert all(config[key] % 64 == 0 for key in ("hidden_size", "intermediate_size", "vocab_size"))
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}
    assert config["sliding_window"] < config["max_position_embeddings"]
    assert config["max_position_embeddings"] >= 512
    heads = [json.loads((NANO / name / "config.json").read_text()) for name in ("2_Dense", "3_Dense")]
    assert all(head[key] % 64 == 0 for head in heads for key in ("in_features", "out_features"))
    assert heads[-1]["out_features"] == 384
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) <= 14e6


def test_it_has_the_prompts_of_embeddinggemma(shared: Path) -> None:
    real = json.loads((shared / "data/embeddinggemma-300m/config_sentence_transformers.json").read_text())["prompts"]
    own = json.loads((NANO / "config_sentence_transformers.json").read_text())["prompts"]
    assert own == {name: real[name] for name in own}
    assert {"query", "document", "STS", "Classification", "Clustering"} <= set(own)


@pytest.mark.parametrize("text", [*SCRIPTS.splitlines(keepends=True), "  two", " ", "\n\n\t", "\x00\x1f\x7f"])
def test_every_script_survives_the_tokenizer(text: str, nano_float: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(nano_float / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_pieces_do_not_span_words(nano_float: Path) -> None:
    vocabulary = json.loads((nano_float / "tokenizer.json").read_text())["model"]["vocab"]
    assert not [piece for piece in vocabulary if "\u2581" in piece[1:] and piece.strip("\u2581")]


def test_no_model_named_is_nano_and_one_line_on_stderr_says_so(tmp_path: Path) -> None:
    code = (
        "from gemma_np import EmbeddingGemma; a = EmbeddingGemma(); b = EmbeddingGemma(); "
        "print(a.folder.name, a.encode('a').shape, b.get_embedding_dimension())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GEMMA_NP_MODEL"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "nano (384,) 384\n"
    assert len(done.stderr.splitlines()) == 1
    assert "GEMMA_NP_MODEL=google/embeddinggemma-300m" in done.stderr


def test_named_it_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["similarity", "-m", "nano", "a cat", "a kitten"]) == 0
    assert capsys.readouterr().err == ""


def test_the_environment_sets_another_default(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GEMMA_NP_MODEL", str(small))
    assert EmbeddingGemma().folder == small
    assert main(["info"]) == 0
    captured = capsys.readouterr()
    assert str(small) in captured.out
    assert captured.err == ""


def test_nano_is_the_packages_whatever_has_its_name(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And stderr says so, once: the default must not change with the working directory."""
    (tmp_path / "nano").symlink_to(small)
    monkeypatch.chdir(tmp_path)
    hub._say_which_nano.cache_clear()
    assert EmbeddingGemma("nano").folder == EmbeddingGemma().folder == NANO
    said = [line for line in capsys.readouterr().err.splitlines() if "./nano" in line]
    assert said == [
        "gemma-np: nano is the small model that comes with the package; for what has this name in the working "
        "directory say ./nano"
    ]
    assert pickle.loads(pickle.dumps(EmbeddingGemma("nano"))).folder == NANO


def test_a_folder_called_nano_is_named_as_a_path(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nano").symlink_to(small)
    monkeypatch.chdir(tmp_path)
    for model in ("./nano", "nano/", Path("nano"), tmp_path / "nano"):
        assert EmbeddingGemma(model).get_embedding_dimension() == 64
    assert main(["info", "./nano"]) == 0
    assert main(["info", "-m", "./nano"]) == 0
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def nano() -> EmbeddingGemma:
    return EmbeddingGemma("nano")


# A query and texts, the right one first. Written for this test, after the model was trained on other texts.
RANKINGS = [
    (
        "How do plants make their food?",
        "Leaves turn sunlight, water and carbon dioxide into sugar.",
        "The train to the airport leaves every twenty minutes.",
        "Bread dough has to rest before it goes into the oven.",
    ),
    (
        "my computer will not start",
        "What to do when a laptop does not turn on",
        "How to start a vegetable garden",
        "The history of the railway",
    ),
    (
        "Wo kann ich gut essen?",
        "Ein Restaurant mit guter Küche",
        "Der Bus fährt heute nicht.",
        "Mein Bruder spielt Klavier.",
    ),
    (
        "medicine against pain",
        "Ein Mittel gegen Kopfschmerzen",
        "Das Wetter wird morgen schön.",
        "Wir gehen ins Kino.",
    ),
    ("我想喝水", "I am thirsty.", "He bought a new car.", "The book is on the table."),
]


@pytest.mark.parametrize("ranking", RANKINGS, ids=lambda ranking: ranking[0])
def test_it_ranks_sensibly(nano: EmbeddingGemma, ranking: tuple[str, ...]) -> None:
    query, *documents = ranking
    scores = nano.similarity(nano.encode_query(query), nano.encode_document(documents))[0]
    assert scores.argmax() == 0, scores


@pytest.mark.parametrize(("dim", "least"), [(256, 0.99), (128, 0.95), (64, 0.85)])
def test_cut_vectors_keep_the_order_of_similarities(nano: EmbeddingGemma, dim: int, least: float) -> None:
    """nano's correlations are 1.000 (its width is 256), 0.989 and 0.932; random vectors' would be 0.82, 0.58, 0.41: the
    root of what is kept."""
    texts = [text for ranking in RANKINGS for text in ranking]
    whole, cut = nano.encode(texts), nano.encode(texts, truncate_dim=dim)
    upper = np.triu_indices(len(texts), 1)
    assert np.corrcoef((whole @ whole.T)[upper], (cut @ cut.T)[upper])[0, 1] > least


@pytest.mark.parametrize("tokens", [2, 63, 64, 65, 66, 127, 128, 129, 130, 255, 511, 512])
def test_the_engine_computes_it_exactly(nano: EmbeddingGemma, nano_float: Path, tokens: int) -> None:
    """Against plain float64, on both sides of its window: 64 tokens each way. As shipped, its activations are rounded;
    random ids are harder on that than texts."""
    rng = np.random.default_rng(tokens)
    ids = np.concatenate([[2], rng.integers(261, nano.config.V, tokens - 2), [1]]).astype(np.int32)
    truth = Reference(nano_float).embed(ids.tolist(), 0)
    np.testing.assert_allclose(EmbeddingGemma(nano_float).embed_ids([ids])[0], truth, atol=FLOAT32)
    assert nano.embed_ids([ids])[0] @ truth >= ROUNDED_COSINE


def test_it_is_shipped_as_int8_with_checksums() -> None:
    assert EmbeddingGemma("nano").quantization == "q8_0"
    assert damaged_files(NANO) == []


def test_a_text_of_more_tokens_than_it_reads_is_cut_with_a_warning(nano: EmbeddingGemma) -> None:
    with pytest.warns(UserWarning, match="512"):
        nano.encode("word " * 600)
