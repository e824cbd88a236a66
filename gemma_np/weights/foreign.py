"""Checkpoints that other tools have quantised: told by the tensors beside the one that is wanted."""

import re
from collections.abc import Collection, Mapping

from gemma_np.errors import FLOAT_ORIGINAL, CheckpointError
from gemma_np.files.safetensors import FLOATS, Tensor

# What a matrix's tensors are called by whom, instead of or beside `weight`; the first that is found counts.
TOOLS = {
    r"weight\.(quant_state\..*|(nested_)?absmax|(nested_)?quant_map)|SCB": "bitsandbytes",
    r"g_idx": "GPTQ",
    r"qweight|qzeros": "AWQ or GPTQ",
    r"weight_(packed|shape|zero_point)": "compressed-tensors",
    r"weight_scale_inv": "FP8 with a scale for each block",
    r"weight_scale_2": "ModelOpt",
    r"weight_scale|input_scale": "compressed-tensors, or FP8",
    r"_?weight[_:]_?(qdata|data|scale)": "torchao",
    r"weight\._(data|scale)": "quanto",
    r"W_q": "HQQ",
    r"biases": "MLX",
}


def refuse_quantized(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> None:
    """CheckpointError where a matrix is missing, or is no float, because a tool of others has quantised it.

    wanted   the names of the model's tensors
    """
    bad = next((name for name in wanted if name not in tensors or tensors[name].dtype not in FLOATS), None)
    if bad is None or not tensors:
        return
    stem = bad.removesuffix("weight")
    beside = [name for name in tensors if name.startswith(stem)]
    for pattern, tool in TOOLS.items():
        for name in beside:
            if re.fullmatch(pattern, name.removeprefix(stem)):
                raise CheckpointError(
                    f"{tensors[name].path}: {name} is there, as in checkpoints that were quantised with {tool}; these "
                    f"are not served. {FLOAT_ORIGINAL}"
                )
    if bad in tensors and tensors[bad].dtype.startswith("F8_"):
        raise CheckpointError(f"{tensors[bad].path}: {bad} is FP8 ({tensors[bad].dtype}). {FLOAT_ORIGINAL}")
