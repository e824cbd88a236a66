"""What is exported is what gguf reads, is as llama.cpp's converter names it, and comes back as it was."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gguf_source import exported

from gemma_np import GemmaWarning, InputError, WeightsError
from gemma_np.checkpoint.source import Source
from gemma_np.cli.main import main
from gemma_np.files.safetensors import to_bfloat16
from gemma_np.gguf.export import MATRIX_TYPES, as_stored, export, value
from gemma_np.gguf.file import open_gguf
from gemma_np.modules import Dense, Normalize
from gemma_np.opening import open_source

# As llama.cpp's conversion/gemma.py writes them for EmbeddingGemma with --sentence-transformers-dense-modules.
SETTINGS = {
    "general.architecture": "gemma-embedding",
    "gemma-embedding.context_length": 2048,
    "gemma-embedding.embedding_length": 64,
    "gemma-embedding.block_count": 6,
    "gemma-embedding.feed_forward_length": 96,
    "gemma-embedding.attention.head_count": 2,
    "gemma-embedding.attention.head_count_kv": 1,
    "gemma-embedding.attention.key_length": 32,
    "gemma-embedding.attention.value_length": 32,
    "gemma-embedding.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
    "gemma-embedding.attention.sliding_window": 32,
    "gemma-embedding.rope.freq_base": 1e6,
    "gemma-embedding.pooling_type": 1,
    "gemma-embedding.dense_2_feat_in": 64,
    "gemma-embedding.dense_2_feat_out": 256,
    "gemma-embedding.dense_3_feat_in": 256,
    "gemma-embedding.dense_3_feat_out": 64,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 3,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": True,
    "tokenizer.ggml.add_space_prefix": False,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def name_there(name: str) -> str:
    """The checkpoint's name of a tensor -> llama.cpp's."""
    whole = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    heads = {"2_Dense/linear.weight": "dense_2.weight", "3_Dense/linear.weight": "dense_3.weight"}
    if name in whole | heads:
        return (whole | heads)[name]
    _, layer, field = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{NAMES[field]}.weight"


@pytest.mark.parity
@pytest.mark.parametrize("format", MATRIX_TYPES)
def test_gguf_reads_what_is_exported(format: str, small: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `parity`")
    reader = gguf.GGUFReader(exported(small, tmp_path / "model.gguf", format))
    assert {key: reader.fields[key].contents() for key in SETTINGS} == SETTINGS
    found = {tensor.name: tensor for tensor in reader.tensors}
    tensors = open_source(small).tensors
    assert found.keys() == {name_there(name) for name in tensors}
    for name, tensor in tensors.items():
        there, w = found[name_there(name)], tensor.float32()
        if w.ndim == 1:
            np.testing.assert_array_equal(there.data, w + np.float32(1), err_msg=name)
            continue
        assert there.tensor_type.name == format.upper()
        kind = there.tensor_type
        theirs = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
        np.testing.assert_array_equal(gguf.quants.dequantize(there.data, kind), theirs, err_msg=name)


@pytest.mark.parity
def test_bfloat16_is_rounded_as_gguf_rounds_it() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `parity`")
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    bits[:64] = (bits[:64] & 0xFFFF0000) | 0x8000  # ties
    w = bits.view(np.float32)
    w = w[np.isfinite(w)]
    theirs = gguf.quants.quantize(w, gguf.GGMLQuantizationType.BF16).view(np.uint16)
    np.testing.assert_array_equal(to_bfloat16(w), theirs)


def test_bfloat16_keeps_infinities_and_nan() -> None:
    w = np.array([np.inf, -np.inf, np.nan, 3.3895314e38], np.float32)
    wide = (to_bfloat16(w).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(wide[:3], w[:3])


def test_float16_ends_where_it_ends() -> None:
    w = np.array([[65504, -65504]], np.float32)
    np.testing.assert_array_equal(as_stored(w, "F16", "w"), w)
    with pytest.raises(WeightsError, match=r"w holds 65536, and float16 ends at 65504; take bf16 or f32"):
        as_stored(np.array([[1, 65536]], np.float32), "F16", "w")


@pytest.mark.parametrize("format", [None, "bf16"])
def test_bfloat16_checkpoints_stay_as_they_are(format: str | None, tmp_path: Path) -> None:
    from make_checkpoint import make_checkpoint

    folder = make_checkpoint(tmp_path / "model", dtype="bfloat16")
    ours, theirs = open_source(exported(folder, tmp_path / "model.gguf", format)).tensors, open_source(folder).tensors
    for name, tensor in theirs.items():
        if len(tensor.shape) == 2:
            assert ours[name].dtype == "BF16"
            np.testing.assert_array_equal(ours[name].float32(), tensor.float32(), err_msg=name)


@pytest.mark.parametrize("format", ["q8_0", "q4_0", "mixed"])
def test_quantised_folders_become_the_same_file(format: str, small: Path, tmp_path: Path) -> None:
    assert main(["quantize", str(small), "--format", format, "-o", str(tmp_path / "folder")]) == 0
    path = exported(tmp_path / "folder", tmp_path / "folder.gguf")
    folder, file = open_source(tmp_path / "folder"), open_source(path)
    assert file.quantization == format
    if format != "mixed":
        straight = exported(small, tmp_path / "small.gguf", format)
        assert path.read_bytes() == straight.read_bytes()
    from gemma_np.pipeline import Pipeline

    ids, _ = Pipeline(small).prepare(["a text", "another text, and a longer one"])
    np.testing.assert_array_equal(Pipeline(path).embed_ids(ids), Pipeline(folder.path).embed_ids(ids))


@pytest.mark.parametrize("format", ["f32", "q4_0"])
def test_an_exported_file_is_exported_again_as_it_is(format: str, small: Path, tmp_path: Path) -> None:
    one = exported(small, tmp_path / "one.gguf", format)
    two = exported(one, tmp_path / "two.gguf")
    assert two.read_bytes() == one.read_bytes()


def test_rounded_models_are_not_rounded_again(small: Path, tmp_path: Path) -> None:
    path = exported(small, tmp_path / "model.gguf", "q8_0")
    with pytest.raises(InputError, match="is Q8_0 already; export it as f32, or without a format"):
        exported(path, tmp_path / "again.gguf", "q4_0")
    floats = open_source(exported(path, tmp_path / "again.gguf", "f32"))
    for name, tensor in open_source(path).tensors.items():
        np.testing.assert_array_equal(floats.tensors[name].float32(), tensor.float32(), err_msg=name)


def changed(source: Source, **heads: Any) -> Source:
    """A model with other settings of its first Dense head."""
    dense, *rest = source.modules.heads
    assert isinstance(dense, Dense)
    return replace(source, modules=replace(source.modules, heads=(replace(dense, **heads), *rest)))


def test_what_llama_cpp_cannot_run_is_refused(small: Path) -> None:
    source = open_source(small)
    layers = tuple(replace(layer, scale=0.1) for layer in source.config.layers)
    wrong = {
        r"scale is not 1 / sqrt\(head size\)": replace(source, config=replace(source.config, layers=layers)),
        "leaves the prompt out": replace(source, modules=replace(source.modules, include_prompt=False)),
        "a bias or an activation": changed(source, has_bias=True),
        "an activation": changed(source, activation="Tanh"),
        "heads lead from 32 to 64 dimensions": changed(source, inputs=32),
        "heads are not Dense, Dense, Normalize": replace(
            source, modules=replace(source.modules, heads=(Normalize("a"), *source.modules.heads))
        ),
    }
    for message, model in wrong.items():
        with pytest.raises(InputError, match=message):
            export(model, io.BytesIO(), None)
    with pytest.raises(InputError, match="format = 'q5_1' is not known"):
        export(source, io.BytesIO(), "q5_1")


def test_what_is_not_kept_is_said(small: Path) -> None:
    source = open_source(small)
    defaults = replace(source.defaults, prompts={"query": "q: "}, truncate_dim=32)
    with pytest.warns(GemmaWarning) as caught:
        export(replace(source, defaults=defaults), io.BytesIO(), None)
    settings, tokenizer = (str(warning.message) for warning in caught)
    assert settings.endswith("not kept in a GGUF file: its prompts, its default of 32 dimensions")
    assert "pieces merge in one way only" in tokenizer


@pytest.mark.filterwarnings("ignore::gemma_np.errors.GemmaWarning")
def test_layers_of_another_pattern_are_listed(small: Path, tmp_path: Path) -> None:
    source = open_source(small)
    layers = tuple(replace(layer, radius=None if i % 2 else 16) for i, layer in enumerate(source.config.layers))
    with (tmp_path / "model.gguf").open("wb") as file:
        export(replace(source, config=replace(source.config, layers=layers)), file, None)
    pattern = open_gguf(tmp_path / "model.gguf").metadata["gemma-embedding.attention.sliding_window_pattern"]
    assert pattern.tolist() == [True, False] * 3
    assert pattern.dtype == bool


def test_every_kind_of_metadata_has_its_type() -> None:
    assert value(True)[:4] == b"\7\0\0\0"
    assert value([True, False]) == b"\x09\0\0\0\7\0\0\0\2\0\0\0\0\0\0\0\1\0"
    assert value(7) == b"\4\0\0\0\7\0\0\0"


def test_the_command_writes_a_file_that_opens(small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main(["export-gguf", str(small), "--format", "q8_0", "-o", str(out)]) == 0
    assert capfd.readouterr().out == f"{out}: {out.stat().st_size / 1e6:.1f} MB, q8_0\n"
    assert main(["info", str(out)]) == 0
    shown = capfd.readouterr().out
    assert "blk.*.attn_q.weight                            Q8_0  [64, 64]         layers 0-5" in shown
    assert "of weights in q8_0" in shown
    assert shown.endswith("can run      yes\n")
    assert main(["embed", "-m", str(out), "--dim", "4", "hello"]) == 0
    ours = capfd.readouterr().out
    assert main(["embed", "-m", str(small), "--quantization", "q8_0", "--dim", "4", "hello"]) == 0
    assert capfd.readouterr().out == ours


def test_the_command_writes_the_trunk_alone(small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main(["export-gguf", str(small), "--no-dense", "-o", str(out)]) == 0
    assert main(["info", str(out)]) == 1
    captured = capfd.readouterr()
    assert captured.out.endswith("can run      no\n")
    assert "has no Dense heads" in captured.err
    assert main(["info", str(out), "--no-dense"]) == 0
    assert "mean -> Normalize: 64 dimensions" in capfd.readouterr().out
    assert main(["embed", "-m", str(out), "--dense", str(small), "hello"]) == 0
    heads = capfd.readouterr().out
    assert main(["embed", "-m", str(small), "hello"]) == 0
    assert capfd.readouterr().out == heads


def test_a_model_is_not_written_over_itself(small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = shutil.copy(exported(small, tmp_path / "model.gguf"), tmp_path / "same.gguf")
    before = path.read_bytes()
    assert main(["export-gguf", str(path), "-o", str(path)]) == 2
    assert "is the model itself" in capfd.readouterr().err
    assert path.read_bytes() == before
