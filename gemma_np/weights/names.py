"""The tensors of a model: their names in the checkpoint and their shapes, and the check that all are there."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from gemma_np.config import Config
from gemma_np.errors import WeightsError
from gemma_np.files.safetensors import Tensor
from gemma_np.modules import Dense

log = logging.getLogger("gemma_np")


EMBED = "embed_tokens.weight"
# Matrices that kernels multiply in one go, and what they are made of: below each other, or 16 rows of each in turn.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


IN_TURN = {"gate_up_proj"}


def tensor_name(i: int, field: str) -> str:
    """LayerWeights' field -> the tensor's name in layer i."""
    if field in ("q_proj", "k_proj", "v_proj", "qkv_proj", "q_norm", "k_norm", "o_proj"):
        return f"layers.{i}.self_attn.{field}.weight"
    if field in ("gate_proj", "up_proj", "gate_up_proj", "down_proj"):
        return f"layers.{i}.mlp.{field}.weight"
    return f"layers.{i}.{field}.weight"


def layer_tensors(config: Config, i: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """LayerWeights' fields -> the tensor's name and shape in layer i."""
    D, F, layer = config.D, config.F, config.layers[i]
    queries, keys = layer.N * layer.H, layer.K * layer.H
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (D,),
        "q_proj": (queries, D),
        "k_proj": (keys, D),
        "v_proj": (keys, D),
        "q_norm": (layer.H,),
        "k_norm": (layer.H,),
        "o_proj": (D, queries),
        "post_attention_layernorm": (D,),
        "pre_feedforward_layernorm": (D,),
        "gate_proj": (F, D),
        "up_proj": (F, D),
        "down_proj": (D, F),
        "post_feedforward_layernorm": (D,),
    }
    return {field: (tensor_name(i, field), shape) for field, shape in shapes.items()}


def trunk_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of the trunk with its shape."""
    shapes: dict[str, tuple[int, ...]] = {EMBED: (config.V, config.D)}
    for i in range(len(config.layers)):
        shapes.update(layer_tensors(config, i).values())
    shapes["norm.weight"] = (config.D,)
    return shapes


def dense_shapes(head: Dense) -> dict[str, tuple[int, ...]]:
    """The tensors of a Dense module with their shapes."""
    bias: dict[str, tuple[int, ...]] = {"linear.bias": (head.outputs,)} if head.has_bias else {}
    return {"linear.weight": (head.outputs, head.inputs), **bias}


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names without the `model.` that some files put in front; WeightsError if two become one."""
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    for name in tensors.keys() - bare.keys():
        if name.removeprefix("model.") in tensors:
            raise WeightsError(
                f"{tensors[name].path}: {name} and {name.removeprefix('model.')} are both there; expected one"
            )
    return bare


def check_tensors(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], config_path: Path) -> None:
    """WeightsError for tensors that are missing or misshapen; a warning for those that nobody uses."""
    where = next(iter(tensors.values())).path.name if tensors else f"{config_path.parent}/model.safetensors"
    if missing := [name for name in shapes if name not in tensors]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WeightsError(
            f"{where}: {', '.join(missing[:3])}{more} missing; {config_path} asks for {len(shapes)} tensors, the file "
            f"has {len(tensors)}. `gemma-np info {config_path.parent}` lists them"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise WeightsError(
                f"{tensor.path.name}: {name} has shape {tensor.shape}, expected {shape} from {config_path}. "
                f"`gemma-np info {config_path.parent}` lists the tensors"
            )
    if unknown := sorted(tensors.keys() - shapes.keys()):
        log.warning("%s: %d tensors are not used: %s", where, len(unknown), ", ".join(unknown[:5]))


def check_floats(tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """CheckpointError for a tensor of a type that we do not serve."""
    for name in names:
        tensors[name].stored_dtype()
