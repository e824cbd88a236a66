"""The engine against sentence-transformers, live; a float64 reference judges both.

Two float32 engines sum in different orders. On weights with the real model's outliers each is up to 6e-5 away from the
truth, so "equal" cannot mean a fixed distance between the two. Our error must be at most 4 times Hugging Face's own
(one text per batch; in other batch orders it differs from itself by up to 3 times that), or FLOAT32, the rounding of a
unit vector's entries through a network without outliers, whichever is larger. On some texts either engine is thirty
times as far off as on most. So where many texts are compared, Hugging Face's largest error counts for each of them, and
our median error must be at most twice theirs.
"""

import itertools
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import FLOAT32, ROUNDED_COSINE, SAME_COSINE
from reference_float64 import Reference
from zoo import TEXTS, ZOO, text_of

from gemma_np import EmbeddingGemma

pytestmark = pytest.mark.parity

LENGTHS = (16, 129, 255, 256, 257, 258, 511, 512, 513, 514, 1000, 2048, 3000)


@pytest.fixture(scope="session")
def hugging_face(sentence_transformers: ModuleType) -> Callable[[Path], Any]:
    """Loads a folder with sentence-transformers, in float32 whatever the file holds."""
    import torch

    def load(folder: Path) -> Any:
        return sentence_transformers.SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )

    return load


@pytest.fixture(scope="session")
def full(sentence_transformers: ModuleType, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full size with Gemma's own tokenizer, and weights with the real model's outliers, in bfloat16."""
    return full_size(shared, tmp_path_factory.mktemp("full") / "realistic", "realistic", "bfloat16")


def full_size(shared: Path, out: Path, weights: str, dtype: str) -> Path:
    from make_checkpoint import make_checkpoint

    tokenizer = shared / "data" / "embeddinggemma-300m"
    config = json.loads((tokenizer / "config.json").read_text())
    return make_checkpoint(out, config, weights=weights, dtype=dtype, tokenizer=tokenizer)


def test_full_size_weights_behave_like_the_real_ones(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from weight_report import report

    assert report(full) == 0, capsys.readouterr().out


class Judge:
    """One checkpoint in three engines: ours, sentence-transformers, and the float64 reference."""

    def __init__(self, folder: Path, hugging_face: Callable[[Path], Any], theirs: Path | None = None) -> None:
        self.ours = EmbeddingGemma(folder)
        self.theirs = hugging_face(theirs or folder)
        self.reference = Reference(folder)

    def check(self, *texts: tuple[str, str | None]) -> None:
        """Texts with the names of their prompts: ids are equal, and our errors within bounds, at the full size and cut
        to every Matryoshka dimension."""
        rows = [row for text, prompt_name in texts for row in self.errors(text, prompt_name)]
        mine, theirs = (np.array([row[i] for row in rows]) for i in (1, 2))
        for where, error, _ in rows:
            assert error <= max(4 * theirs.max(), FLOAT32), f"{where}; the largest of these is {theirs.max():.1e}"
        if len(texts) > 1:
            print(f"median error {np.median(mine):.1e}, Hugging Face's {np.median(theirs):.1e}")
            assert np.median(mine) <= 2 * np.median(theirs)

    def errors(self, text: str, prompt_name: str | None) -> list[tuple[str, float, float]]:
        """For each dimension: words that say where, our error and Hugging Face's."""
        prompt = self.ours.resolve_prompt(prompt_name)
        ids = self.ours.prepare([text], prompt)[0][0]
        their_ids = self.theirs.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
        assert ids.tolist() == their_ids, f"{text[:40]!r}: token ids differ"

        full_dim, found = self.ours.full_dim, []
        truth = self.reference.embed(ids.tolist(), self.ours._tokenizer.prompt_length(prompt) if prompt else 0)
        for dim in (full_dim, full_dim // 6):
            expected = truth[:dim]
            if self.ours.modules.normalizes:
                expected = expected / np.linalg.norm(expected)
            options: dict[str, Any] = {"prompt_name": prompt_name, "batch_size": 1, "truncate_dim": dim}
            mine = self.ours.encode(text, **options)
            other = self.theirs.encode(text, **options, normalize_embeddings=self.ours.modules.normalizes)
            size = np.linalg.norm(expected)
            my_error, their_error = (float(np.abs(vector - expected).max() / size) for vector in (mine, other))
            cosine = mine @ other / np.linalg.norm(mine) / np.linalg.norm(other)
            where = f"{len(ids)} tokens, {dim} dimensions: error {my_error:.1e}, Hugging Face's {their_error:.1e}"
            print(where)
            assert cosine >= SAME_COSINE, f"{where}, cosine {cosine}"
            found.append((where, my_error, their_error))
        return found


# ---- full size -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_judge(full: Path, hugging_face: Callable[[Path], Any]) -> Judge:
    return Judge(full, hugging_face)


@pytest.mark.parametrize("text", ["", "a"])
def test_the_shortest_texts_at_full_size(full_judge: Judge, text: str) -> None:
    full_judge.check((text, None))


@pytest.mark.filterwarnings("ignore:a text had more than")  # 3000 tokens are cut at 2048, here as there
@pytest.mark.parametrize("prompt_name", ["query", "document"])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_every_length_at_full_size(full_judge: Judge, tokens: int, prompt_name: str) -> None:
    full_judge.check((text_of(full_judge.ours, tokens, prompt_name), prompt_name))


def test_well_behaved_weights_at_full_size_differ_by_rounding_only(
    hugging_face: Callable[[Path], Any], shared: Path, tmp_path: Path
) -> None:
    folder = full_size(shared, tmp_path / "plain", "plain", "float32")
    ours, theirs = EmbeddingGemma(folder), hugging_face(folder)
    for tokens in (3, 16, 129, 257, 514, 1000):
        text = text_of(ours, tokens, None)
        difference = np.abs(ours.encode(text) - theirs.encode(text)).max()
        assert difference <= FLOAT32, f"{tokens} tokens: {difference:.1e}"
    shutil.rmtree(folder)


def test_every_step_agrees_at_full_size(sentence_transformers: ModuleType, full: Path) -> None:
    from layer_diff import TOLERANCE, compare, huggingface_steps, our_steps

    model = EmbeddingGemma(full)
    ids = np.random.default_rng(0).integers(4, model.config.V, 600).astype(np.int32)
    rows = compare(our_steps(model, ids), huggingface_steps(full, ids), TOLERANCE)
    assert len(rows) > 24 * 14
    assert [row for row in rows if not row[2]] == []


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_rounded_activations_cost_little_at_full_size(full: Path, quantization: str) -> None:
    """Judged by a float64 pass over the same rounded weights: what is left is the kernels' own rounding, to int8. 98
    products in a row would cost a token 1.1e-3, see bounds.py; a mean of 3 and more has half of the noise, or less."""
    from test_forward import exact_weights

    ours = EmbeddingGemma(full, quantization=quantization)
    judge = Reference(full, exact_weights(ours))
    for tokens in (3, 9, 16, 40, 100, 257, 400, 600):
        ids = ours.prepare([text_of(ours, tokens, None)])[0][0]
        cosine = float(ours.embed_ids([ids])[0] @ judge.embed(ids.tolist()))
        print(f"{quantization}, {tokens} tokens: cosine {cosine:.6f}")
        assert cosine >= 0.999, f"{tokens} tokens: {cosine:.6f}"


# ---- the zoo -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a text had more than")
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, tmp_path: Path, hugging_face: Callable[[Path], Any]) -> None:
    folder = ZOO[name].make(tmp_path / "ours")
    judge = Judge(folder, hugging_face, ZOO[name].make_for_hugging_face(tmp_path))
    window = ZOO[name].radius
    lengths = (window, window + 1, window + 2, 2 * window + 1, 2 * window + 2, 300)
    judge.check(
        *((text, prompt_name) for text in TEXTS for prompt_name in (None, "query", "document")),
        *((text_of(judge.ours, max(tokens, 2), None), None) for tokens in lengths),
    )


@pytest.mark.parametrize("name", ["defaults", "include_prompt_false"])
def test_a_model_saved_again_by_sentence_transformers_gives_the_same_bits(
    name: str, tmp_path: Path, hugging_face: Callable[[Path], Any]
) -> None:
    folder = ZOO[name].make(tmp_path / "ours")
    hugging_face(folder).save_pretrained(str(tmp_path / "resaved"))
    pooling = json.loads((tmp_path / "resaved" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode"] == "mean", "sentence-transformers writes its older format again; test both"
    before, after = EmbeddingGemma(folder), EmbeddingGemma(tmp_path / "resaved")
    assert (before.max_seq_length, before.prompts) == (after.max_seq_length, after.prompts)
    for text in TEXTS:
        np.testing.assert_array_equal(before.encode_query(text), after.encode_query(text))


def test_whole_calls_agree(tmp_path: Path, hugging_face: Callable[[Path], Any]) -> None:
    folder = ZOO["defaults"].make(tmp_path / "ours")
    ours, theirs = EmbeddingGemma(folder), hugging_face(folder)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=FLOAT32)
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=FLOAT32)
    np.testing.assert_allclose(ours.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=FLOAT32)
    for one, other in zip(
        ours.encode(TEXTS, output_value="token_embeddings"),
        theirs.encode(TEXTS, output_value="token_embeddings"),
        strict=True,
    ):
        # Not normalised: a unit vector's rounding, times the length of a token's.
        atol = 2 * FLOAT32 * float(np.linalg.norm(one, axis=1).max())
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=atol)
    tokens = theirs.preprocess(TEXTS)
    for key, array in ours.tokenize(TEXTS).items():
        np.testing.assert_array_equal(array, tokens[key].numpy())
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    assert ours.max_seq_length == theirs.max_seq_length
    assert ours.prompts == theirs.prompts
    assert ours.similarity_fn_name == theirs.similarity_fn_name
    vectors = ours.encode(TEXTS)
    # 64 products with entries of about 1/8, whose errors are random: sqrt(64) / 8 of an entry's error
    np.testing.assert_allclose(ours.similarity(vectors, vectors), theirs.similarity(vectors, vectors), atol=FLOAT32)


def test_nano_on_a_thousand_sentences(hugging_face: Callable[[Path], Any], nano_float: Path, shared: Path) -> None:
    """The trained model, on sentences that people wrote, in English and fifty other languages: its values in float32,
    and as shipped, where activations are rounded too."""
    ours, shipped = EmbeddingGemma(nano_float), EmbeddingGemma("nano")
    theirs = hugging_face(nano_float)
    with lzma.open(shared / "data" / "train" / "parallel.tsv.xz", "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in itertools.islice(lines, 0, None, 660)][:500]
    sentences = [text for row in rows for text in row[3:5]]
    assert len(sentences) == 1000
    for prompt_name in ("STS", "document"):
        one = ours.encode(sentences, prompt_name=prompt_name)
        two = theirs.encode(sentences, prompt_name=prompt_name)
        cosines = (one * two).sum(1)
        assert cosines.min() >= SAME_COSINE, f"{sentences[cosines.argmin()]!r}: {cosines.min()}"
        np.testing.assert_allclose(one, two, atol=FLOAT32)
        rounded = (shipped.encode(sentences, prompt_name=prompt_name) * two).sum(1)
        assert rounded.min() >= ROUNDED_COSINE, f"{sentences[rounded.argmin()]!r}: {rounded.min()}"
