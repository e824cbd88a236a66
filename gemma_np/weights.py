"""Tensor names -> weights. Every name and shape is checked against the configuration before anything is used."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.arrays import Float32, Int32
from gemma_np.checkpoint import Tensor, open_checkpoint, open_safetensors
from gemma_np.config import Config
from gemma_np.errors import WeightsError
from gemma_np.modules import Dense, Modules
from gemma_np.quantize import BLOCK, LANES, Packed, check_shape, format_of, pack

log = logging.getLogger("gemma_np")


Matrix = Float32 | Packed


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors, named as in the checkpoint: q_proj is `layers.{i}.self_attn.q_proj.weight`.

    Packed matrices that kernels multiply in one go lie in one array, of which q_proj and the others are parts.
    """

    input_layernorm: Float32  # [D]
    q_proj: Matrix  # [N*H, D]
    k_proj: Matrix  # [K*H, D]
    v_proj: Matrix  # [K*H, D]
    q_norm: Float32  # [H]
    k_norm: Float32  # [H]
    o_proj: Matrix  # [D, N*H]
    post_attention_layernorm: Float32  # [D]
    pre_feedforward_layernorm: Float32  # [D]
    gate_proj: Matrix  # [F, D]
    up_proj: Matrix  # [F, D]
    down_proj: Matrix  # [D, F]
    post_feedforward_layernorm: Float32  # [D]
    qkv: Packed | None = None  # [(N + 2K)*H, D]: q_proj, k_proj and v_proj below each other
    gate_up: Packed | None = None  # [2F, D]: 16 rows of gate_proj and 16 of up_proj in turn


@dataclass(frozen=True)
class DenseWeights:
    """`linear.weight` [O, I] and `linear.bias` [O] of a Dense module."""

    weight: Matrix
    bias: Float32 | None


@dataclass(frozen=True)
class Weights:
    """All weights of a model. The embedding table stays in its file: only the rows that a text needs are read."""

    embed_tokens: Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: Float32  # [D]
    dense: dict[str, DenseWeights]  # by module name: "2_Dense"
    embed_format: str = "f32"  # rows of the table are rounded to it as they are read


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


def load_weights(
    folder: Path, config: Config, modules: Modules, quantization: str | None = None, packed: bool = False
) -> Weights:
    """Open a checkpoint's tensors, check them all, and bring the layers into memory.

    quantization  None: float32; else the matrices' formats, see quantize.format_of
    packed        lay float32 matrices out for the kernels, too (quantised ones always are)

    Plain float32 tensors are mapped, not copied; bfloat16 and float16 ones are converted, exactly, one by one.
    """
    trunk = folder / modules.trunk
    tensors = without_prefix(open_checkpoint(trunk))
    check_tensors(tensors, trunk_shapes(config), trunk / "config.json")
    packed = packed or quantization is not None
    dense = {}
    for head in modules.heads:
        if isinstance(head, Dense):
            parts = open_safetensors(folder / head.name / "model.safetensors")
            check_tensors(parts, dense_shapes(head), folder / head.name / "config.json")
            bias = parts["linear.bias"].float32() if head.has_bias else None
            name = f"{head.name}/linear.weight"
            pack_it = quantization is not None or (packed and head.outputs % LANES == 0)
            weight = matrices([parts["linear.weight"]], format_of(quantization, name))[0] if pack_it else None
            dense[head.name] = DenseWeights(parts["linear.weight"].float32() if weight is None else weight, bias)
    layers = tuple(load_layer(tensors, config, i, quantization, packed) for i in range(len(config.layers)))
    embed_format = format_of(quantization, "embed_tokens.weight")
    if config.D % BLOCK and embed_format != "f32":
        check_shape(tensors["embed_tokens.weight"].shape, embed_format, "embed_tokens.weight")
    return Weights(tensors["embed_tokens.weight"], layers, tensors["norm.weight"].float32(), dense, embed_format)


def load_layer(
    tensors: dict[str, Tensor], config: Config, i: int, quantization: str | None, packed: bool
) -> LayerWeights:
    """One layer's weights; packed ones are written straight to where kernels want them."""
    names = {field: name for field, (name, _) in layer_tensors(config, i).items()}
    norms: dict[str, Any] = {field: tensors[name].float32() for field, name in names.items() if field.endswith("norm")}
    if quantization and (damaged := [names[field] for field, norm in norms.items() if not np.isfinite(norm).all()]):
        raise WeightsError(  # rounding to int8 would hide it
            f"{damaged[0]} holds NaN or infinity; the checkpoint is damaged, download or convert it again"
        )
    if not packed:
        arrays: dict[str, Any] = {field: tensors[name].float32() for field, name in names.items()}
        return LayerWeights(**arrays)
    formats = {field: format_of(quantization, name) for field, name in names.items()}

    def read(*fields: str, in_turn: bool = False) -> list[Packed]:
        return matrices([tensors[names[field]] for field in fields], formats[fields[0]], in_turn)

    qkv, q_proj, k_proj, v_proj = read("q_proj", "k_proj", "v_proj")
    gate_up, gate_proj, up_proj = read("gate_proj", "up_proj", in_turn=True)
    (o_proj,), (down_proj,) = read("o_proj"), read("down_proj")
    return LayerWeights(
        **norms,
        q_proj=q_proj,
        k_proj=k_proj,
        v_proj=v_proj,
        o_proj=o_proj,
        gate_proj=gate_proj,
        up_proj=up_proj,
        down_proj=down_proj,
        qkv=qkv,
        gate_up=gate_up,
    )


def matrices(tensors: Sequence[Tensor], format: str, in_turn: bool = False) -> list[Packed]:
    """Tensors [O, I] of one width, packed into one array: that array, and its part for each if there are several.

    in_turn   16 rows of each in turn (all have as many), instead of one below the other
    """
    for tensor in tensors:
        check_shape(tensor.shape, format, tensor.name, LANES)
    rows = [tensor.shape[0] for tensor in tensors]
    whole = Packed.empty((sum(rows), tensors[0].shape[1]), format, tensors[0].name)
    parts = []
    for i, tensor in enumerate(tensors):
        first = sum(rows[:i]) // LANES
        panels = slice(i, None, len(tensors)) if in_turn else slice(first, first + rows[i] // LANES)
        scales = None if whole.scales is None else whole.scales[panels]
        part = Packed(format, (rows[i], whole.shape[1]), whole.codes[panels], scales)
        parts.append(pack(tensor.float32(), format, part, tensor.name))
        tensor.let_go()
    return [whole, *parts] if len(parts) > 1 else parts


def formats_of(weights: Weights) -> tuple[str, ...]:
    """The formats of all packed matrices."""
    arrays = [array for layer in weights.layers for array in vars(layer).values()]
    arrays += [head.weight for head in weights.dense.values()]
    return tuple(sorted({array.format for array in arrays if isinstance(array, Packed)}))


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
            if not finite(values):
                return tensor_name(i, field)
    if not np.isfinite(weights.norm).all():
        return "norm.weight"
    for name, parts in weights.dense.items():
        if not finite(parts.weight):
            return f"{name}/linear.weight"
        if parts.bias is not None and not np.isfinite(parts.bias).all():
            return f"{name}/linear.bias"
    for tokens in ids:
        for token in np.unique(tokens):
            if not np.isfinite(weights.embed_tokens.rows(token[None])).all():
                return f"embed_tokens.weight (row {token})"
    return None


def finite(matrix: Matrix | None) -> bool:
    """Whether all values are finite; of quantised ones the scales decide."""
    if matrix is None:
        return True
    if not isinstance(matrix, Packed):
        return bool(np.isfinite(matrix).all())
    return bool(np.isfinite(matrix.codes if matrix.scales is None else matrix.scales).all())
