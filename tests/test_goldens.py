"""Parity without torch: nano and the zoo against sentence-transformers' committed vectors (tools/make_goldens.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import FLOAT32, SAME_COSINE
from layer_diff import our_steps
from make_goldens import weights_sha256
from zoo import TEXTS, ZOO

from gemma_np import EmbeddingGemma

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / "goldens.json").read_text())

# Two float32 engines. With the outliers of the real model the rounding of each is up to 6e-5: test_parity.py measures
# it against float64 on every text, here a fixed bound must do.
TOLERANCE = {"realistic_weights": 1e-4, "bfloat16": 1e-4}


@pytest.mark.parametrize("name", [*ZOO, "nano"])
def test_vectors_and_ids_are_those_of_sentence_transformers(name: str, nano_float: Path, tmp_path: Path) -> None:
    model = EmbeddingGemma(nano_float if name == "nano" else ZOO[name].make(tmp_path / "checkpoint"))
    rows = GOLDENS[name]
    assert {row["text"] for row in rows} >= set(TEXTS)
    for row in rows:
        ids, _ = model.prepare([row["text"]], model.resolve_prompt(row["prompt_name"]))
        assert ids[0].tolist() == row["ids"], row["text"][:40]
        expected = np.array(row["vector"], dtype=np.float32)
        ours = model.encode(row["text"], prompt_name=row["prompt_name"])
        size = np.linalg.norm(expected)
        error = np.abs(ours - expected) / size
        where = f"{row['text'][:40]!r}, entry {error.argmax()}: {error.max():.1e}"
        assert error.max() <= TOLERANCE.get(name, 2 * FLOAT32), where
        assert ours @ expected / np.linalg.norm(ours) / size >= SAME_COSINE, where


def test_the_zoo_and_the_goldens_have_the_same_animals() -> None:
    assert set(GOLDENS) - {"made_by", "versions", "weights"} == {*ZOO, "nano"}


STEPS: dict[str, Any] = json.loads((Path(__file__).parent / "goldens_steps.json").read_text())


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"made_by", "versions"}))
def test_every_step_is_hugging_faces(name: str, nano_float: Path, tmp_path: Path) -> None:
    """The first step that parts is named. A text three windows long, so that a wrong window shows."""
    folder = nano_float if name == "nano" else ZOO[name].make(tmp_path / "checkpoint")
    golden = STEPS[name]
    assert weights_sha256(folder) == golden["weights_sha256"], "other weights; run tools/make_goldens.py"
    seen = our_steps(EmbeddingGemma(folder), np.array(golden["ids"], np.int32))
    assert list(seen) == list(golden["steps"])
    for step, expected in golden["steps"].items():
        assert list(seen[step].shape) == expected["shape"], step
        error = np.abs(seen[step].reshape(-1)[expected["at"]] - np.float32(expected["is"])) / expected["largest"]
        # Two float32 engines: each of up to seven products in a row sums up to 384 terms, off by sqrt(384) * 2^-24
        # (1.2e-6) of the step's size where errors are random; the norms in between keep that share.
        assert error.max() <= 1e-5, f"{step}, entry {expected['at'][error.argmax()]}: {error.max():.1e}"
