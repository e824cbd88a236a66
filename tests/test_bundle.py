"""Quantised folders: what is in them, that they are mapped and not copied, and what is said of damaged ones."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_quantize import error_bound

from gemma_np import CheckpointError, EmbeddingGemma, GemmaError, InputError, WeightsError
from gemma_np.checkpoint.bundle import bundle_tensors, damaged_files, file_layout, matrix_shapes, vector_shapes
from gemma_np.checkpoint.saving import save
from gemma_np.cli.main import main
from gemma_np.files.mapped import read_json_object
from gemma_np.modules import Dense
from gemma_np.opening import open_source
from gemma_np.weights.blocks import from_blocks
from gemma_np.weights.names import trunk_shapes
from gemma_np.weights.packed import Packed
from gemma_np.weights.quantize import decode, format_of

QUANTIZATIONS = ("q8_0", "q4_0", "mixed")
TEXTS = ["", "a", "The red planet", "Ünïcode 猫が寝ている \t\n", "a much longer text about seven birds " * 30]


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def quantization(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(quantization: str, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small`, quantised. Not to be changed."""
    out = tmp_path_factory.mktemp("bundle") / quantization
    save(open_source(small), out, quantization)
    return out


@pytest.fixture
def broken(small: Path, tmp_path: Path) -> Path:
    """A bundle that a test may break."""
    save(open_source(small), tmp_path / "bundle", "q4_0")
    return tmp_path / "bundle"


@pytest.mark.parametrize("kernels", [None, "numpy"])
def test_its_vectors_are_those_of_quantising_on_loading_bit_for_bit(
    kernels: str | None, bundle: Path, quantization: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels:
        monkeypatch.setenv("GEMMA_NP_KERNELS", kernels)
    ours, theirs = EmbeddingGemma(bundle), EmbeddingGemma(small, quantization=quantization)
    assert ours.quantization == quantization
    assert (ours.fast is None) == (theirs.fast is None)
    np.testing.assert_array_equal(ours.encode(TEXTS), theirs.encode(TEXTS))
    tokens = ours.encode(TEXTS, output_value="token_embeddings")
    for own, other in zip(tokens, theirs.encode(TEXTS, output_value="token_embeddings"), strict=True):
        np.testing.assert_array_equal(own, other)


def test_every_value_is_the_checkpoint_s_rounded(bundle: Path, quantization: str, small: Path) -> None:
    """The layout that bundle.py and quantize.py describe, within the formats' bounds."""
    stored, config = load_file(bundle / "model.safetensors"), open_source(small).config
    original = {name.removeprefix("model."): w for name, w in load_file(small / "model.safetensors").items()}
    for head in ("2_Dense", "3_Dense"):
        original[f"{head}/linear.weight"] = load_file(small / head / "model.safetensors")["linear.weight"]
    for i in range(len(config.layers)):
        at, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        parts = [original.pop(f"{at}.{part}_proj.weight") for part in "qkv"]
        original[f"{at}.qkv_proj.weight"] = np.concatenate(parts)
        gate, up = (original.pop(f"{mlp}.{part}_proj.weight").reshape(-1, 16, config.D) for part in ("gate", "up"))
        original[f"{mlp}.gate_up_proj.weight"] = np.stack([gate, up], axis=1).reshape(-1, config.D)
    blocks = stored.pop("embed_tokens.weight.blocks")
    format = format_of(quantization, "embed_tokens.weight")
    close(decode(*from_blocks(blocks, format), format), original.pop("embed_tokens.weight"), format)
    for name, w in original.items():
        if w.ndim == 1:
            np.testing.assert_array_equal(stored.pop(name), w)
            continue
        format = format_of(quantization, name)
        codes, scales = stored.pop(f"{name}.codes"), stored.pop(f"{name}.scales")
        close(Packed(format, w.shape, codes, scales).dequantize(), w, format)
    assert not stored


def close(found: Any, w: Any, format: str) -> None:
    """Within the formats' bounds."""
    groups = w.reshape(-1, 32)
    bound = np.apply_along_axis(error_bound, -1, groups, format)
    assert (np.abs(found.reshape(-1, 32).astype(np.float64) - groups) <= bound).all()


def test_matrices_are_mapped_and_start_where_vectors_want_them(bundle: Path) -> None:
    model = EmbeddingGemma(bundle)
    tensors = bundle_tensors(bundle, model.config, model.modules)
    mapped = np.frombuffer(tensors["norm.weight"].source.map, np.uint8)
    source = np.frombuffer(model.source.tensors["norm.weight"].source.map, np.uint8)
    for layer in model.weights.layers:
        for matrix in (layer.qkv, layer.gate_up, layer.o_proj, layer.down_proj):
            assert isinstance(matrix, Packed)
            assert matrix.scales is not None
            assert np.shares_memory(matrix.codes, source)
            assert np.shares_memory(matrix.scales, source)
            assert matrix.codes.ctypes.data % 64 == matrix.scales.ctypes.data % 64 == 0
    assert not np.shares_memory(mapped, source)  # each opening has its own map


def test_sizes_are_those_of_the_formats(bundle: Path, quantization: str) -> None:
    model = EmbeddingGemma(bundle)
    layout = file_layout(model.config, model.modules, quantization)
    size = {"U8": 1, "F16": 2, "F32": 4}
    expected = sum(4 * math.prod(shape) for shape in vector_shapes(model.config, model.modules).values())
    matrices = matrix_shapes(model.config, model.modules) | {"embed_tokens.weight": (model.config.V, model.config.D)}
    for name, shape in matrices.items():
        expected += math.prod(shape) * (34 if format_of(quantization, name) == "q8_0" else 18) // 32
    assert sum(size[dtype] * math.prod(shape) for dtype, shape in layout.values()) == expected
    parameters = sum(math.prod(shape) for shape in trunk_shapes(model.config).values() if len(shape) == 2)
    heads = sum(head.inputs * head.outputs for head in model.modules.heads if isinstance(head, Dense))
    assert sum(map(math.prod, matrices.values())) == parameters + heads


def test_it_says_what_it_is(bundle: Path, quantization: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantization in repr(EmbeddingGemma(bundle))
    assert main(["info", str(bundle), "--check"]) == 0
    out = capsys.readouterr().out
    assert "checksums    all files are as they were written" in out
    assert "qkv_proj.weight" in out
    assert f"of weights in {quantization}" in out
    assert out.splitlines()[-1] == "can run      yes"


def test_another_format_needs_the_float_checkpoint(bundle: Path, quantization: str) -> None:
    EmbeddingGemma(bundle, quantization=quantization)
    other = next(name for name in QUANTIZATIONS if name != quantization)
    with pytest.raises(InputError, match=f"is {quantization} already; quantization = '{other}' needs the float"):
        EmbeddingGemma(bundle, quantization=other)


def test_damaged_files_are_named(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert damaged_files(broken) == []
    with open(broken / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    (broken / "1_Pooling/config.json").unlink()
    with open(broken / "modules.json", "a") as file:
        file.write("\n")
    wrong = damaged_files(broken)
    assert [line.partition(" ")[0] for line in wrong] == ["1_Pooling/config.json", "model.safetensors", "modules.json"]
    assert all(word in line for word, line in zip(["missing", "other bytes", "bytes, expected"], wrong, strict=True))
    assert main(["info", str(broken), "--check"]) == 1
    captured = capsys.readouterr()
    assert "model.safetensors has other bytes than were written" in captured.err
    assert captured.out.splitlines()[-1] == "can run      no"


def test_a_checkpoint_has_no_checksums(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(small), "--check"]) == 2
    assert "has no checksums to check" in capsys.readouterr().err


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**read_json_object(path), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def other_dtype(tensors: dict[str, Any]) -> None:
    tensors["layers.0.mlp.down_proj.weight.codes"] = tensors["layers.0.mlp.down_proj.weight.codes"].view(np.int8)


def other_shape(tensors: dict[str, Any]) -> None:
    tensors["norm.weight"] = tensors["norm.weight"][:-1]


# What is done to a bundle, the error, and what its message has in it.
BREAKAGES: dict[str, tuple[Callable[[Path], object], type[GemmaError], str]] = {
    "a later version": (lambda b: edit_manifest(b, format_version=2), CheckpointError, "reads up to 1; update it"),
    "no version": (lambda b: edit_manifest(b, format_version=None), CheckpointError, "format_version = None"),
    "version true": (lambda b: edit_manifest(b, format_version=True), CheckpointError, "format_version = True"),
    "another format": (lambda b: edit_manifest(b, quantization="q2_k"), CheckpointError, "expected one of q8_0"),
    "no format": (lambda b: edit_manifest(b, quantization=["q8_0"]), CheckpointError, "expected one of q8_0"),
    "another format's size": (lambda b: edit_manifest(b, quantization="q8_0"), WeightsError, "has shape"),
    "no files": (lambda b: edit_manifest(b, files=[]), CheckpointError, "files is no object"),
    "a file without a sum": (lambda b: edit_manifest(b, files={"a": 1}), CheckpointError, "files is no object"),
    "no JSON": (lambda b: (b / "bundle.json").write_text("{"), CheckpointError, "not valid JSON"),
    "a list": (lambda b: (b / "bundle.json").write_text("[]"), CheckpointError, "expected an object"),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), CheckpointError, "model.safetensors is missing"),
    "a cut file": (lambda b: os.truncate(b / "model.safetensors", 5000), CheckpointError, "damaged"),
    "a lost tensor": (
        lambda b: edit_tensors(b, lambda t: t.pop("layers.1.self_attn.qkv_proj.weight.scales")),
        WeightsError,
        "qkv_proj.weight.scales missing",
    ),
    "another type": (lambda b: edit_tensors(b, other_dtype), WeightsError, "has dtype I8, expected U8"),
    "another shape": (lambda b: edit_tensors(b, other_shape), WeightsError, "norm.weight has shape"),
    "no tokenizer": (
        lambda b: [path.unlink() for path in b.glob("tokenizer.*")],
        CheckpointError,
        "tokenizer",
    ),
}


@pytest.mark.parametrize("case", BREAKAGES)
def test_a_broken_bundle_is_refused_by_name(case: str, broken: Path) -> None:
    breakage, error, message = BREAKAGES[case]
    breakage(broken)
    with pytest.raises(error, match=message):
        EmbeddingGemma(broken)


@pytest.mark.parametrize("name", ["layers.2.mlp.gate_up_proj.weight.scales", "2_Dense/linear.weight.scales"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_damaged_scale_is_named(name: str, value: float, broken: Path) -> None:
    """The kernels would not see it: they round what comes out to whole numbers."""

    def damage(tensors: dict[str, Any]) -> None:
        tensors[name][0, 0, 0] = value

    edit_tensors(broken, damage)
    with pytest.raises(WeightsError, match=f"{name.removesuffix('.scales')} holds NaN or infinity"):
        EmbeddingGemma(broken)


@pytest.mark.parametrize("name", ["layers.2.self_attn.q_norm.weight", "norm.weight"])
def test_a_damaged_norm_is_named(name: str, broken: Path) -> None:
    edit_tensors(broken, lambda tensors: tensors[name].fill(np.inf))
    with pytest.raises(WeightsError, match=f"^{name} holds NaN or infinity"):
        EmbeddingGemma(broken)


def test_a_damaged_row_of_the_table_is_told_when_it_is_read(broken: Path) -> None:
    def damage(tensors: dict[str, Any]) -> None:
        tensors["embed_tokens.weight.blocks"][7, :2] = np.array([np.nan], np.float16).view(np.uint8)

    edit_tensors(broken, damage)
    model = EmbeddingGemma(broken)
    model.embed_ids([np.array([6, 8])])
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight holds NaN or infinity"):
        model.embed_ids([np.array([6, 7])])


def test_files_that_lead_out_of_the_folder_are_not_read(broken: Path) -> None:
    edit_manifest(broken, files={"../secret": {"bytes": 1, "sha256": ""}, "/etc/passwd": {"bytes": 1, "sha256": ""}})
    assert damaged_files(broken) == ["../secret leads out of the folder", "/etc/passwd leads out of the folder"]
