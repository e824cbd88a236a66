"""Training of nano, on a few hundred texts and a teacher with random weights: all stages, stopped and gone on."""

import csv
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bounds import SAME_COSINE

from gemma_np import EmbeddingGemma

ROOT = Path(__file__).parents[1]
WORDS = ("red", "blue", "old", "small", "planet", "house", "cat", "dog", "tree", "song", "runs", "sees", "near", "the")


@pytest.fixture(scope="module")
def data(sentence_transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with four little files, teacher/ with a BERT of one layer and width 64."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "train").mkdir()
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(1500)]

    def write(name: str, lines: list[str]) -> None:
        (folder / "train" / name).write_bytes(lzma.compress("".join(f"{line}\n" for line in lines).encode()))

    write("en_sentences.tsv.xz", [f"books\t{text}" for text in sentences[:800]])
    write("parallel.tsv.xz", [f"books\teng\tdeu\t{text}\t{text[::-1]}" for text in sentences[600:1300]])
    write("multi_sentences.tsv.xz", ["voice\tes\tuna casa pequeña", "voice\tzh\t一只猫"])
    pairs = zip(sentences[1000:1200], sentences[1200:1400], strict=True)
    write("en_pairs.jsonl.xz", [json.dumps({"src": "glossary", "a": a, "b": b}) for a, b in pairs])
    make_teacher(folder / "teacher", sentences)
    return folder


def make_teacher(folder: Path, texts: list[str]) -> None:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = BertConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real configuration, made small."""
    small: dict[str, Any] = json.loads((ROOT / "tools" / "train_nano" / "nano.json").read_text())
    small["tokenizer"].update(pieces=384, alphabet=100)
    small["model"].update(hidden_size=64, intermediate_size=64, layers="sliding full", heads=[128, 64])
    small["model"]["sliding_window"] = 8
    small["round"].update(texts=2000, tokens_per_batch=512)
    for stage, rounds in zip(small["stages"], (1, 1, 1), strict=True):
        stage["rounds"] = rounds
    small["stages"][-1]["own"]["round"]["texts"] = 2000
    small["warmup_steps"] = 5
    small["loss"]["dimensions"] = [64, 32]
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(small))
    return path


def command(data: Path, config: Path, out: Path, work: Path, *more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PATH": "", "HF_HUB_OFFLINE": "1"}  # without a compiler: compiling takes half a minute
    tool = ROOT / "tools" / "train_nano"
    arguments = [tool, data, out, "--work", work, "--config", config, *more]
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


@pytest.fixture(scope="module")
def trained(data: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    finish(command(data, config, folder / "out", folder / "work"))
    return folder


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "work" / "log.jsonl").read_text().splitlines()]


def test_it_learns(trained: Path) -> None:
    """The loss falls while the blocks are skipped, and falls on when they are not."""
    losses = [(row["at"], row["loss"]) for row in log(trained) if "loss" in row]
    static, full = ([loss for at, loss in losses if (at <= 1) == stage] for stage in (True, False))
    assert static[-1] < static[0]
    assert full[-1] < min(full[0], static[-1])
    assert sum("validation" in row for row in log(trained)) == 3
    assert (trained / "work" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_is_a_checkpoint_that_both_engines_load(trained: Path, sentence_transformers: ModuleType) -> None:
    import torch

    theirs = sentence_transformers.SentenceTransformer(
        str(trained / "out"), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    texts = ["", "the red planet", "a cat sleeps under the old tree near the river and sees a dog", "猫 🐈 ñandú"]
    ours = EmbeddingGemma(trained / "out").encode(texts, prompt_name="STS")
    cosines = (ours * theirs.encode(texts, prompt_name="STS")).sum(1)
    assert cosines.min() >= SAME_COSINE


def test_stopped_and_gone_on_it_learns_the_same(trained: Path, data: Path, config: Path, tmp_path: Path) -> None:
    first = command(data, config, tmp_path / "out", tmp_path / "work")
    deadline = time.monotonic() + 120
    while not (tmp_path / "work" / "checkpoint.pt").exists():
        assert first.poll() is None, "it ended without a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out").exists()
    finish(command(data, config, tmp_path / "out", tmp_path / "work"))
    starts = [row["round"] for row in log(tmp_path) if "versions" in row]
    assert starts[0] == 0
    assert 1 <= starts[1] < 3, "it was to go on in the middle"
    whole, parts = ({row["at"]: row["loss"] for row in log(folder) if "loss" in row} for folder in (trained, tmp_path))
    assert whole.keys() == parts.keys()
    for at, loss in whole.items():  # sums in bfloat16, off by 2^-8 each, come in another order each time, and add up
        assert parts[at] == pytest.approx(loss, rel=0.05), at


def test_a_folder_that_exists_is_left_alone(data: Path, config: Path, trained: Path, tmp_path: Path) -> None:
    process = command(data, config, trained / "out", tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "exists; remove it" in errors


def test_an_exported_model_goes_through_the_last_stage(data: Path, config: Path, trained: Path, tmp_path: Path) -> None:
    """It finds the rotation that the model was trained with, so it begins where the model stood."""
    finish(command(data, config, tmp_path / "out", tmp_path / "work", "--start", str(trained / "out")))
    assert [row["round"] for row in log(tmp_path) if "versions" in row] == [2]
    assert sum("validation" in row for row in log(tmp_path)) == 1
    losses = [[row["loss"] for row in log(folder) if "loss" in row and row["at"] > 2] for folder in (trained, tmp_path)]
    assert losses[1][0] < losses[0][0], "it began as the last stage did the first time, or worse"
    assert EmbeddingGemma(tmp_path / "out").encode("red").shape == (64,)


def test_no_made_scene_is_in_the_evaluation_sets(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "train_nano"))
    from data import SCENES
    from scenes import scenes

    def plain(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    made = {plain(text) for text in scenes(SCENES)}
    with (shared / "data" / "eval" / "stsb" / "stsb-en-dev.csv").open(newline="", encoding="utf-8") as file:
        sentences = {plain(text) for row in csv.reader(file) for text in row[:2]}
    assert len(sentences) > 2500
    assert not made & sentences
