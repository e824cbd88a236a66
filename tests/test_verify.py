"""`gemma-np verify`: a stand-in for the real model says what was published, or something else."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemma_np import EmbeddingGemma
from gemma_np.arrays import Float32
from gemma_np.cli import main as cli
from gemma_np.cli import published, verify

Known = dict[tuple[str, str], Float32]  # (kind, text) -> vector


class Published:
    """A model of EmbeddingGemma's shape, which knows the published outputs by heart."""

    def __init__(self, known: Known | None = None) -> None:
        self.config = SimpleNamespace(V=262_144, D=768, F=1152, layers=[None] * 24)
        self.full_dim = 768
        self.row_0 = np.float32(published.ROW_0)
        self.source = SimpleNamespace(table=SimpleNamespace(rows=lambda ids: self.row_0[None]))
        self.known = known or {}
        self.answers = {"query": np.float32(published.HELLO_QUERY), "document": np.float32(published.HELLO_DOCUMENT)}
        self.scores = np.float32([published.CARD_SIMILARITIES])

    def encode(self, kind: str, texts: Any, dim: int | None) -> Any:
        if texts == "hello world" and dim is None:
            return self.answers[kind]
        if not isinstance(texts, str) or dim is None:
            return (kind, texts)  # for `similarity` alone
        return self.known[kind, texts][:dim]

    def encode_query(self, texts: Any, truncate_dim: int | None = None) -> Any:
        return self.encode("query", texts, truncate_dim)

    def encode_document(self, texts: Any, truncate_dim: int | None = None) -> Any:
        return self.encode("document", texts, truncate_dim)

    def similarity(self, query: Any, documents: Any) -> Float32:
        assert query == ("query", published.CARD_QUERY)
        assert documents == ("document", list(published.CARD_DOCUMENTS))
        return self.scores


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `gemma-np verify` with a stand-in: -> status, stdout, stderr."""

    def check(model: object, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(verify, "loaded", lambda _: model)
        status = cli.main(["verify", "copy", *map(str, arguments)])
        return status, *capsys.readouterr()

    return check


def test_the_published_outputs_are_reproduced(check: Any) -> None:
    status, out, err = check(Published())
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert sum(line.endswith("  ok") for line in lines) == 4 + 5 + 5
    assert lines[-1] == "copy: reproduced, all 14 checks agree"
    assert "longer than the attention window: not checked" in lines[-2]


def test_float32_rounding_is_no_difference(check: Any) -> None:
    model = Published()
    model.scores = model.scores + np.float32(5e-5)  # the card rounds to 4 digits
    model.answers = {kind: vector * np.float32(1 + 1e-5) for kind, vector in model.answers.items()}
    model.row_0 = ((model.row_0.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)  # a bfloat16 copy
    assert check(model)[0] == 0


@pytest.mark.parametrize("what", ["scores", "query", "document"])
def test_one_value_that_differs_is_a_failure(check: Any, what: str) -> None:
    model = Published()
    values = model.scores[0] if what == "scores" else model.answers[what]
    values[2] += np.float32(1e-3)
    status, out, err = check(model)
    assert status == 1
    assert [line for line in out.splitlines() if line.endswith("DIFFERS")]
    assert err.startswith("gemma-np: error: copy does not reproduce the published outputs: 1 of 14 checks differ")
    assert err.count("\n") == 1


def test_nan_is_a_difference(check: Any) -> None:
    model = Published()
    model.scores[0, 0] = np.nan
    assert check(model)[0] == 1


def test_a_model_of_another_shape_is_told(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = EmbeddingGemma(small).config
    assert cli.main(["verify", str(small)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gemma-np: error: {small} is not the published EmbeddingGemma-300m: vocabulary, width, ")
    assert f" are {config.V}, {config.D}, {config.F}, {len(config.layers)}, " in err
    assert "not 262144, 768, 1152, 24, 768" in err
    assert "nothing was verified" in err
    assert err.count("\n") == 1


def test_other_weights_of_the_same_shape_are_told(check: Any, small: Path) -> None:
    model = Published()
    table = next(tensor for name, tensor in load_file(small / "model.safetensors").items() if "embed_tokens" in name)
    for row in (table[0, : len(published.ROW_0)], model.row_0 * np.float32(1.02)):  # synthetic, and fine-tuned
        model.row_0 = row
        status, out, err = check(model)
        assert (status, out) == (1, "")
        assert "the same shape, but other weights" in err
        assert "nothing was verified" in err


def golden_file(path: Path, known: Known, dims: Iterable[int] = (768, 128)) -> Path:
    groups: dict[str, Any] = {"metadata": {"schema_version": 1}}
    for dim in dims:
        for (kind, text), vector in known.items():
            group = {"query": "queries", "document": "documents"}[kind]
            entry = {"name": f"about {text}", "text": text, "embedding": vector[:dim].tolist()}
            groups.setdefault(f"{group}_{dim}", []).append(entry)
    path.write_text(json.dumps(groups))
    return path


@pytest.fixture
def known() -> Known:
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(768, np.float32) for key in (("query", "a"), ("document", "b"), ("document", "c"))}


def test_goldens_are_checked_as_whole_vectors(check: Any, known: Known, tmp_path: Path) -> None:
    status, out, err = check(Published(known), "--goldens", golden_file(tmp_path / "goldens.json", known))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "copy: reproduced, all 20 checks agree"
    assert "documents_128: about c" in out
    assert "not checked" not in out


def test_a_golden_that_differs_is_a_failure(check: Any, known: Known, tmp_path: Path) -> None:
    goldens = golden_file(tmp_path / "goldens.json", known)
    known["document", "c"] = known["document", "c"] + np.float32(0.05)  # a cosine of 0.999
    status, out, err = check(Published(known), "--goldens", goldens)
    assert status == 1
    assert sum(line.endswith("DIFFERS") for line in out.splitlines()) == 2
    assert "2 of 20 checks differ" in err


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        "3",
        '{"metadata": {}}',
        '{"queries_768": 3}',
        '{"queries_768": [3]}',
        '{"queries_many": [{"name": "a", "text": "a", "embedding": [1]}]}',
        '{"queries_768": [{"name": "a", "text": "a"}]}',
        '{"queries_768": [{"name": "a", "text": "a", "embedding": [1, 2]}]}',
        '{"queries_768": [{"name": "a", "text": "a", "embedding": [[1], [1, 2]]}]}',
        '{"queries_768": [{"text": "a", "embedding": [1]}]}',
    ],
)
def test_a_file_that_holds_no_goldens_is_named(check: Any, known: Known, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "goldens.json"
    if content is not None:
        path.write_text(content)
    status, _, err = check(Published(known), "--goldens", path)
    assert status == 1
    assert err.startswith(f"gemma-np: error: {path} ")
    assert err.count("\n") == 1


def test_the_published_goldens_can_be_read(check: Any, shared: Path) -> None:
    path = shared / "data" / "published" / "embedding_gemma_goldens.json"
    groups = json.loads(path.read_text())
    known = {}
    for group, entries in groups.items():
        if group.endswith("_768"):
            kind = "query" if group.startswith("queries") else "document"
            known.update({(kind, entry["text"]): np.float32(entry["embedding"]) for entry in entries})
    status, out, err = check(Published(known), "--goldens", path)
    assert (status, err) == (0, "")
    assert "cosine 1" in out


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(tmp_path / "no" / "model")]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
