"""Checkpoints that other tools have quantised are refused by the tool's name, with what to do."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gemma_np import CheckpointError, EmbeddingGemma
from gemma_np.arrays import AnyArray
from gemma_np.files.safetensors import open_safetensors

U8, I8, I32, U32 = (np.zeros((4, 4), kind) for kind in ("u1", "i1", "i4", "u4"))
F16 = np.ones((4, 4), np.float16)
# What each tool writes for a matrix, as its own loaders read it; `weight` alone if it keeps that name.
WRITTEN: dict[str, dict[str, AnyArray]] = {
    "bitsandbytes": {
        "weight": U8,
        "weight.absmax": F16,
        "weight.quant_map": F16,
        "weight.quant_state.bitsandbytes__nf4": U8,
    },
    "bitsandbytes;": {"weight": I8, "SCB": F16, "weight_format": U8},  # its int8
    "GPTQ": {"qweight": I32, "qzeros": I32, "scales": F16, "g_idx": I32},
    "AWQ or GPTQ": {"qweight": I32, "qzeros": I32, "scales": F16},
    "compressed-tensors;": {"weight_packed": I32, "weight_scale": F16, "weight_shape": I32},
    "compressed-tensors, or FP8": {"weight": I8, "weight_scale": F16},
    "ModelOpt": {"weight": U8, "weight_scale": U8, "weight_scale_2": F16, "input_scale": F16},
    "FP8 with": {"weight": U8, "weight_scale_inv": F16},
    "torchao": {"_weight_qdata": I8, "_weight_scale": F16},
    "quanto": {"weight._data": I8, "weight._scale": F16},
    "HQQ": {"W_q": U8, "scale": F16, "zero": F16},
    "MLX": {"weight": U32, "scales": F16, "biases": F16},
}


def quantized(path: Path, stems: tuple[str, ...], written: dict[str, AnyArray]) -> None:
    """What a tool makes of the file: other tensors for those matrices."""
    tensors = load_file(path)
    for stem in stems:
        del tensors[f"{stem}.weight"]
        tensors |= {f"{stem}.{name}": array.copy() for name, array in written.items()}
    save_file(tensors, path)


@pytest.mark.parametrize("tool", WRITTEN)
def test_a_trunk_is_refused_by_the_tool_s_name(tool: str, writable: Path) -> None:
    stems = ("layers.0.self_attn.q_proj", "layers.3.mlp.down_proj")
    quantized(writable / "model.safetensors", stems, WRITTEN[tool])
    with pytest.raises(
        CheckpointError, match=rf"layers\.0\.self_attn\.q_proj\..* with {tool}.*Take the float checkpoint"
    ):
        EmbeddingGemma(writable)


def test_a_head_is_refused_too(writable: Path) -> None:
    quantized(writable / "3_Dense/model.safetensors", ("linear",), WRITTEN["bitsandbytes"])
    with pytest.raises(CheckpointError, match=r"3_Dense.*linear\.weight\..*with bitsandbytes"):
        EmbeddingGemma(writable)


def test_fp8_without_scales_is_refused(writable: Path) -> None:
    path = writable / "model.safetensors"
    quantized(path, ("layers.0.self_attn.q_proj",), {"weight": U8})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["layers.0.self_attn.q_proj.weight"]["dtype"] = "F8_E4M3"
    begin = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(begin)) + begin + data[8 + size :])
    assert open_safetensors(path)["layers.0.self_attn.q_proj.weight"].dtype == "F8_E4M3"
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is FP8 \(F8_E4M3\)\. Take the float checkpoint"):
        EmbeddingGemma(writable)


def test_a_float_checkpoint_with_such_names_beside_its_matrices_is_none(writable: Path) -> None:
    path = writable / "model.safetensors"
    others = {f"{stem}.input_scale": F16.copy() for stem in ("embed_tokens", "layers.0.self_attn.q_proj")}
    save_file({**load_file(path), **others}, path)
    assert EmbeddingGemma(writable).encode("a text").shape == (64,)
