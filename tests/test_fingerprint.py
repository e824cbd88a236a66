"""The fingerprint: one for a model wherever it lies, another for each model that gives other vectors."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_gguf_source import exported
from zoo import ZOO

from gemma_np import EmbeddingGemma
from gemma_np.checkpoint.fingerprint import CHUNK_BYTES, fingerprint, stored_bytes
from gemma_np.files.mapped import MappedFile
from gemma_np.opening import open_source


def test_a_fingerprint_is_of_the_model_not_of_its_place(small: Path, writable: Path, tmp_path: Path) -> None:
    first = EmbeddingGemma(small).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert EmbeddingGemma(writable).fingerprint() == first
    others = [
        EmbeddingGemma(small, quantization="q8_0").fingerprint(),
        EmbeddingGemma(small, prompts={"query": "q: "}).fingerprint(),
    ]
    EmbeddingGemma(small).save_pretrained(tmp_path / "q8_0", format="q8_0")
    others.append(EmbeddingGemma(tmp_path / "q8_0").fingerprint())
    assert EmbeddingGemma(tmp_path / "q8_0").fingerprint() == others[-1]
    for name, change in (
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("3_Dense/model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("tokenizer.json", lambda data: data + b"\n"),
    ):
        path = writable / name
        before = path.read_bytes()
        path.write_bytes(change(before))
        others.append(EmbeddingGemma(writable).fingerprint())
        path.write_bytes(before)
    assert len({first, *others}) == 1 + len(others)
    assert EmbeddingGemma(writable).fingerprint() == first


def test_how_a_checkpoint_is_cut_into_files_does_not_matter_and_its_dtype_does(tmp_path: Path) -> None:
    """In bfloat16 the weights are others; in one file or in three they are the same bytes."""
    found = {name: of(ZOO[name].make(tmp_path / name)) for name in ("defaults", "sharded", "prefixed", "bfloat16")}
    assert found["defaults"] == found["sharded"] == found["prefixed"] != found["bfloat16"]


def test_tensors_that_the_model_does_not_use_do_not_matter(writable: Path) -> None:
    before = of(writable)
    tensors = load_file(writable / "model.safetensors")
    save_file({**tensors, "optimizer.state": np.ones(3, np.float32)}, writable / "model.safetensors")
    assert of(writable) == before


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"sliding_window": 16}),
        ("config.json", {"rms_norm_eps": 1e-5}),
        ("config.json", {"query_pre_attn_scalar": 24}),
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("3_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}),
        ("config_sentence_transformers.json", {"prompts": {"query": "Q: "}}),
    ],
)
def test_settings_that_change_vectors_change_it(file: str, settings: dict[str, object], writable: Path) -> None:
    before, path = of(writable), writable / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    assert of(writable) != before


def test_the_order_of_prompts_and_defaults_of_calls_do_not_matter(small: Path, writable: Path) -> None:
    path = writable / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    prompts = dict(reversed(settings["prompts"].items()))
    assert list(prompts) != list(settings["prompts"])
    path.write_text(json.dumps({**settings, "prompts": prompts, "truncate_dim": 16, "similarity_fn_name": "dot"}))
    assert of(writable) == of(small)


def test_a_gguf_file_has_one_of_its_own(small: Path, tmp_path: Path) -> None:
    """By its bytes, not its place: one byte of a tensor is another model, the checkpoint is another form."""
    path = exported(small, tmp_path / "one.gguf")
    found = of(path)
    assert of(Path(shutil.copy(path, tmp_path / "two.gguf"))) == found != of(small)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert of(path) != found


def test_of_a_quantised_folder_checksums_are_taken_and_no_weights_are_read(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EmbeddingGemma(small).save_pretrained(tmp_path / "q4_0", format="q4_0")
    source = open_source(tmp_path / "q4_0")
    found = fingerprint(source, "q4_0", {})
    monkeypatch.setattr(MappedFile, "read", lambda *_: pytest.fail("weights are read"))
    assert fingerprint(source, "q4_0", {}) == found
    monkeypatch.undo()
    path = tmp_path / "q4_0/bundle.json"
    path.write_text(re.sub(r'("sha256": ")[0-9a-f]{64}', r"\g<1>" + "0" * 64, path.read_text()))
    assert fingerprint(open_source(tmp_path / "q4_0"), "q4_0", {}) != found


def test_a_tensor_is_read_in_pieces_and_whole(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(small)
    before = fingerprint(source, None, {})
    table = source.tensors["embed_tokens.weight"]
    assert b"".join(stored_bytes(table)) == table.float32().tobytes()
    monkeypatch.setattr("gemma_np.checkpoint.fingerprint.CHUNK_BYTES", 1000)
    pieces = list(stored_bytes(table))
    assert {len(piece) for piece in pieces[:-1]} == {1000}
    assert b"".join(pieces) == table.float32().tobytes()
    assert fingerprint(source, None, {}) == before
    assert CHUNK_BYTES > 1000


def of(path: Path) -> str:
    """The fingerprint of a model as it is."""
    source = open_source(path)
    return fingerprint(source, source.quantization, source.defaults.all_prompts)
