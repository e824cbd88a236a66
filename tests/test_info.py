"""`gemma-np info`: all that is known of a checkpoint, also of one that cannot be run; and it agrees with the engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma_np.kernels.choice import choose
from gemma_np.kernels.cores import usable_cores
from safetensors.numpy import load_file, save_file

from gemma_np import EmbeddingGemma, GemmaError
from gemma_np.cli import main as cli
from gemma_np.cli.description import spans
from gemma_np.files.mapped import read_json_object
from gemma_np.prompts import known_prompts


def info(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["info", str(folder)])
    return status, *capsys.readouterr()


def test_it_says_what_the_model_is(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = info(small, capsys)
    model = EmbeddingGemma(small)
    config = model.config
    assert (status, err) == (0, "")
    assert f"{len(config.layers)} of width {config.D}, feed-forward {config.F}" in out
    radius = next(layer.radius for layer in config.layers if layer.radius is not None)
    assert f"see {radius} tokens to each side" in out
    assert f"{config.layers[0].N} query heads, {config.layers[0].K} key/value heads of size {config.layers[0].H}" in out
    assert f"Normalize: {model.get_embedding_dimension()} dimensions" in out
    assert f"up to {model.max_seq_length:,} tokens of {config.V:,}" in out
    assert ", ".join(known_prompts(model.prompts)) in out
    assert out.splitlines()[-1] == "can run      yes"


def test_it_says_which_kernels_run_and_why(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = info(small, capsys)
    assert f"kernels      {choose().name}: {choose().reason}" in out
    assert f"threads      {usable_cores()}, the cores that this process may use\n" in out
    assert cli.main(["info", str(small), "--threads", "1"]) == 0
    assert "threads      1\n" in capsys.readouterr().out
    assert cli.main(["info", str(small), "--threads", "10000"]) == 0
    assert f"threads      {usable_cores()}, the cores" in capsys.readouterr().out


def test_forced_kernels_are_told_with_the_reason(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMA_NP_KERNELS", "plain")
    assert "kernels      plain: GEMMA_NP_KERNELS asks for it\n" in info(small, capsys)[1]
    monkeypatch.setenv("GEMMA_NP_KERNELS", "bogus")
    _, out, err = info(small, capsys)
    assert f"kernels      {choose().name}: the first column" in out
    assert err.count("\n") == 1
    assert "expected one of" in err


def test_it_counts_parameters_and_memory(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = info(small, capsys)
    tensors = load_file(small / "model.safetensors")
    for head in ("2_Dense", "3_Dense"):
        tensors[head] = load_file(small / head / "model.safetensors")["linear.weight"]
    assert f"parameters   {sum(tensor.size for tensor in tensors.values()):,} in F32" in out
    kept = sum(tensor.nbytes for name, tensor in tensors.items() if "embed_tokens" not in name)
    assert f"memory       {kept / 1e6:,.0f} MB of weights in float32" in out


def test_every_tensor_is_listed_once_for_all_layers(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = info(small, capsys)
    lines = [line.split() for line in out.splitlines() if line.startswith("tensor ")]
    last = len(EmbeddingGemma(small).config.layers) - 1
    for name, tensor in load_file(small / "model.safetensors").items():
        kind = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        (line,) = (line for line in lines if line[1] == kind)
        assert line[2] == "F32"
        assert json.loads(" ".join(line[3:]).partition("]")[0] + "]") == list(tensor.shape)
        if "*" in kind:
            assert " ".join(line).endswith(f"layers 0-{last}")
    assert any(line[1] == "2_Dense/linear.weight" for line in lines)


def test_layers_are_counted_in_runs() -> None:
    assert spans([0, 1, 2, 5]) == ["0-2", "5"]
    assert spans([3]) == ["3"]
    assert spans([1, 0]) == ["0-1"]
    assert spans([]) == []


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**read_json_object(path), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def misshape(tensors: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.endswith("layers.3.mlp.up_proj.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])


def widen(tensors: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.endswith("norm.weight"))
    tensors[name] = tensors[name].astype(np.float64)


# What is done to a checkpoint, and what `info` says then; a lost or damaged tensor file cannot be listed.
BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another width": (lambda folder: edit_json(folder / "config.json", hidden_size=768), "in_features"),
    "another vocabulary": (lambda folder: edit_json(folder / "config.json", vocab_size=7), "expected"),
    "another architecture": (lambda folder: edit_json(folder / "config.json", model_type="bert"), "model_type"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "bad config": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "no modules": (lambda folder: (folder / "modules.json").unlink(), "modules.json"),
    "an unknown module": (
        lambda folder: (folder / "modules.json").write_text(
            (folder / "modules.json").read_text().replace("Normalize", "LayerNorm")
        ),
        "LayerNorm",
    ),
    "another pooling": (
        lambda folder: (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}'),
        "pooling mode",
    ),
    "a misshapen tensor": (lambda folder: edit_tensors(folder, misshape), "layers.3.mlp.up_proj.weight has shape"),
    "a missing tensor": (lambda folder: edit_tensors(folder, lambda tensors: tensors.popitem()), "missing"),
    "float64": (lambda folder: edit_tensors(folder, widen), "F64"),
    "no Dense weights": (lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(), "is missing"),
    "a narrower Dense": (
        lambda folder: edit_json(folder / "2_Dense" / "config.json", out_features=2),
        "in_features|has shape",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "a bad tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
    "bad defaults": (
        lambda folder: edit_json(folder / "config_sentence_transformers.json", similarity_fn_name="best"),
        "similarity_fn_name",
    ),
    "a bad length": (
        lambda folder: (folder / "sentence_bert_config.json").write_text('{"max_seq_length": -1}'),
        "max_seq_length",
    ),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_checkpoint_is_still_listed_with_the_reason(
    kind: str, writable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, why = BREAKAGES[kind]
    damage(writable)
    with pytest.raises(GemmaError, match=why):
        EmbeddingGemma(writable)
    status, out, err = info(writable, capsys)
    assert status == 1
    assert out.splitlines()[-1] == "can run      no"
    assert err.startswith("gemma-np: error: ")
    assert err.count("\n") == 1
    assert any(part in err for part in why.split("|"))
    assert "tensor       " in out
    assert "embed_tokens.weight" in out


@pytest.mark.parametrize("what", ["truncated", "missing", "empty"])
def test_lost_weights_are_said(what: str, writable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = writable / "model.safetensors"
    content = path.read_bytes()
    layers = len(EmbeddingGemma(writable).config.layers)
    path.unlink()
    if what != "missing":
        path.write_bytes(content[:5000] if what == "truncated" else b"")
    status, out, err = info(writable, capsys)
    assert status == 1
    assert f"layers       {layers} of width" in out  # config.json is told all the same
    assert out.splitlines()[-1] == "can run      no"
    assert "model.safetensors" in err
    assert err.count("\n") == 1


def test_a_trunk_in_a_folder_of_its_own_is_described(
    small: Path, writable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (writable / "0_Transformer").mkdir()
    trunk = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json")
    for name in trunk:
        if (writable / name).exists():
            (writable / name).rename(writable / "0_Transformer" / name)
    modules = json.loads((writable / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (writable / "modules.json").write_text(json.dumps(modules))
    status, out, _ = info(writable, capsys)
    assert status == 0
    expected = info(small, capsys)[1]
    assert out.splitlines()[1:] == expected.splitlines()[1:]


def test_a_default_prompt_that_is_none_is_told_before_it_is_used(
    writable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(writable / "config_sentence_transformers.json", default_prompt_name="nope")
    status, out, err = info(writable, capsys)
    assert status == 1
    assert out.endswith("can run      no\n")
    assert "default_prompt_name = 'nope' is none of its prompts" in err
    assert cli.main(["quantize", str(writable), "-o", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
