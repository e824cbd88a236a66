"""Tensor names -> weights. Every name and shape is checked against the configuration before anything is used."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma_np.arrays import Float32, Int32
from gemma_np.checkpoint import Tensor, open_checkpoint, open_safetensors
from gemma_np.config import Config
from gemma_np.errors import WeightsError
from gemma_np.modules import Dense, Modules

log = logging.getLogger("gemma_np")


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors, named as in the checkpoint: q_proj is `layers.{i}.self_attn.q_proj.weight`."""

    input_layernorm: Float32  # [D]
    q_proj: Float32  # [N*H, D]
    k_proj: Float32  # [K*H, D]
    v_proj: Float32  # [K*H, D]
    q_norm: Float32  # [H]
    k_norm: Float32  # [H]
    o_proj: Float32  # [D, N*H]
    post_attention_layernorm: Float32  # [D]
    pre_feedforward_layernorm: Float32  # [D]
    gate_proj: Float32  # [F, D]
    up_proj: Float32  # [F, D]
    down_proj: Float32  # [D, F]
    post_feedforward_layernorm: Float32  # [D]


@dataclass(frozen=True)
class DenseWeights:
    """`linear.weight` [O, I] and `linear.bias` [O] of a Dense module."""

    weight: Float32
    bias: Float32 | None


@dataclass(frozen=True)
class Weights:
    """All weights of a model. The embedding table stays in its file: only the rows that a text needs are read."""

    embed_tokens: Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: Float32  # [D]
    dense: dict[str, DenseWeights]  # by module name: "2_Dense"


def tensor_name(i: int, field: str) -> str:
    """LayerWeights' field -> the tensor's name in layer i."""
    if field in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "o_proj"):
        return f"layers.{i}.self_attn.{field}.weight"
    if field in ("gate_proj", "up_proj", "down_proj"):
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
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.V, config.D)}
    for i in range(len(config.layers)):
        shapes.update(layer_tensors(config, i).values())
    shapes["norm.weight"] = (config.D,)
    return shapes


def dense_shapes(head: Dense) -> dict[str, tuple[int, ...]]:
    """The tensors of a Dense module with their shapes."""
    bias: dict[str, tuple[int, ...]] = {"linear.bias": (head.outputs,)} if head.has_bias else {}
    return {"linear.weight": (head.outputs, head.inputs), **bias}


def load_weights(folder: Path, config: Config, modules: Modules) -> Weights:
    """Open a checkpoint's tensors, check them all, and bring the layers into memory as float32.

    float32 tensors are mapped, not copied; bfloat16 and float16 ones are converted, exactly, one by one.
    """
    trunk = folder / modules.trunk
    tensors = without_prefix(open_checkpoint(trunk))
    check_tensors(tensors, trunk_shapes(config), trunk / "config.json")
    dense = {}
    for head in modules.heads:
        if isinstance(head, Dense):
            parts = open_safetensors(folder / head.name / "model.safetensors")
            check_tensors(parts, dense_shapes(head), folder / head.name / "config.json")
            bias = parts["linear.bias"].float32() if head.has_bias else None
            dense[head.name] = DenseWeights(parts["linear.weight"].float32(), bias)
    layers = tuple(
        LayerWeights(**{field: tensors[name].float32() for field, (name, _) in layer_tensors(config, i).items()})
        for i in range(len(config.layers))
    )
    return Weights(tensors["embed_tokens.weight"], layers, tensors["norm.weight"].float32(), dense)


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
    """WeightsError for tensors that are missing or misshapen, CheckpointError for those of a type that we do not serve;
    a warning for those that nobody uses."""
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
        tensor.stored_dtype()
    if unknown := sorted(tensors.keys() - shapes.keys()):
        log.warning("%s: %d tensors are not used: %s", where, len(unknown), ", ".join(unknown[:5]))


def find_nonfinite(weights: Weights, ids: Sequence[Int32]) -> str | None:
    """The name of a tensor that holds NaN or infinity, or None. For telling why a vector is not finite."""
    for i, layer in enumerate(weights.layers):
        for field, values in vars(layer).items():
            if not np.isfinite(values).all():
                return tensor_name(i, field)
    if not np.isfinite(weights.norm).all():
        return "norm.weight"
    for name, parts in weights.dense.items():
        if not np.isfinite(parts.weight).all():
            return f"{name}/linear.weight"
        if parts.bias is not None and not np.isfinite(parts.bias).all():
            return f"{name}/linear.bias"
    for tokens in ids:
        for token in np.unique(tokens):
            if not np.isfinite(weights.embed_tokens.rows(token[None])).all():
                return f"embed_tokens.weight (row {token})"
    return None
