"""Tensor names -> weights. Every name and shape is checked against the configuration before anything is used."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gemma_np.arrays import AnyArray, Float32, Int32
from gemma_np.config import Config
from gemma_np.errors import WeightsError
from gemma_np.files.safetensors import Tensor, open_checkpoint, open_safetensors
from gemma_np.modules import Dense, Modules
from gemma_np.weights.blocks import BlockTensor, PackedTensor
from gemma_np.weights.quantize import BLOCK, LANES, Packed, check_shape, format_of, pack, pack_codes

log = logging.getLogger("gemma_np")


Matrix = Float32 | Packed
Stored = Tensor | BlockTensor | PackedTensor

# Matrices that kernels multiply in one go, and what they are made of: below each other, or 16 rows of each in turn.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
IN_TURN = {"gate_up_proj"}


class Table(Protocol):
    """The embedding table: rows are read as they are needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def rows(self, ids: AnyArray) -> Float32: ...  # [T] -> [T, D]


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

    embed_tokens: Table  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: Float32  # [D]
    dense: dict[str, DenseWeights]  # by module name: "2_Dense"
    embed_format: str = "f32"  # rows of the table are rounded to it as they are read


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
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.V, config.D)}
    for i in range(len(config.layers)):
        shapes.update(layer_tensors(config, i).values())
    shapes["norm.weight"] = (config.D,)
    return shapes


def dense_shapes(head: Dense) -> dict[str, tuple[int, ...]]:
    """The tensors of a Dense module with their shapes."""
    bias: dict[str, tuple[int, ...]] = {"linear.bias": (head.outputs,)} if head.has_bias else {}
    return {"linear.weight": (head.outputs, head.inputs), **bias}


def checkpoint_tensors(folder: Path, config: Config, modules: Modules) -> dict[str, Tensor]:
    """All tensors of a checkpoint, checked: the trunk's by their names, a Dense module's as `2_Dense/linear.weight`."""
    trunk = folder / modules.trunk
    tensors = without_prefix(open_checkpoint(trunk))
    check_tensors(tensors, trunk_shapes(config), trunk / "config.json")
    check_floats(tensors, trunk_shapes(config))
    found = {name: tensors[name] for name in trunk_shapes(config)}  # others may have any name and shape
    return found | dense_tensors(folder, modules)


def dense_tensors(folder: Path, modules: Modules) -> dict[str, Tensor]:
    """The Dense modules' tensors of a checkpoint, checked."""
    found: dict[str, Tensor] = {}
    for head in modules.heads:
        if isinstance(head, Dense):
            parts = open_safetensors(folder / head.name / "model.safetensors")
            check_tensors(parts, dense_shapes(head), folder / head.name / "config.json")
            check_floats(parts, dense_shapes(head))
            found |= {f"{head.name}/{name}": parts[name] for name in dense_shapes(head)}
    return found


def load_weights(
    tensors: Mapping[str, Stored],
    config: Config,
    modules: Modules,
    quantization: str | None = None,
    packed: bool = False,
) -> Weights:
    """Bring a model's layers into memory.

    tensors       by the checkpoint's names, as from `checkpoint_tensors`; packed ones may be fused, see FUSED
    quantization  None: as they are stored; else the matrices' formats, see quantize.format_of
    packed        lay float32 matrices out for the kernels, too (quantised ones always are)

    Plain float32 tensors are mapped, not copied; bfloat16 and float16 ones are converted, exactly, one by one. Packed
    ones are mapped. Rounded ones in blocks are laid out as they are, unless `quantization` asks for another format.
    """
    formats = formats_held(tensors, quantization)
    loader = Loader(tensors, formats, packed or any(format != "f32" for format in formats.values()))
    layers = tuple(loader.layer(config, i) for i in range(len(config.layers)))
    table = tensors["embed_tokens.weight"]
    assert not isinstance(table, PackedTensor)
    format = formats["embed_tokens.weight"]
    if config.D % BLOCK and format != "f32":
        check_shape(table.shape, format, "embed_tokens.weight")
    return Weights(
        table, layers, loader.norm("norm.weight"), loader.heads(modules), "f32" if table.format == format else format
    )


def formats_held(tensors: Mapping[str, Stored], quantization: str | None) -> dict[str, str]:
    """Each matrix's format in memory. Kernels take float32 everywhere or nowhere, and one format in what is fused:
    stored matrices of which that is not true are brought to float32, exactly."""
    matrices = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 2}
    if quantization is not None:
        return {name: format_of(quantization, name) for name in matrices}
    stored = {name: tensor.format for name, tensor in matrices.items()}
    inner = {name: format for name, format in stored.items() if name != "embed_tokens.weight"}
    together = [
        {stored[other] for part in parts if (other := name.replace(parts[0], part)) in stored}  # a file may have others
        for parts in FUSED.values()
        for name in inner
        if f".{parts[0]}." in name
    ]
    mixed = "f32" in inner.values() and len(set(inner.values())) > 1
    if mixed or any(len(formats) > 1 for formats in together):
        inner = dict.fromkeys(inner, "f32")
    return stored | inner


@dataclass(frozen=True)
class Loader:
    """Stored tensors -> matrices in memory.

    formats   of the matrices, by name
    packed    lay matrices out for the kernels
    """

    tensors: Mapping[str, Stored]
    formats: Mapping[str, str]
    packed: bool

    def layer(self, config: Config, i: int) -> LayerWeights:
        """One layer's weights; packed ones are written straight to where kernels want them."""
        fields = layer_tensors(config, i)
        arrays: dict[str, Any] = {}
        for field, (name, _) in fields.items():
            if field.endswith("norm"):
                arrays[field] = self.norm(name)
        if not self.packed:
            arrays |= {field: self.tensors[name].float32() for field, (name, _) in fields.items()}
            return LayerWeights(**arrays)
        for fused, parts in FUSED.items():
            arrays[fused.removesuffix("_proj")], *found = self.matrices(
                [fields[part] for part in parts], fused in IN_TURN, tensor_name(i, fused)
            )
            arrays |= zip(parts, found, strict=True)
        for field in ("o_proj", "down_proj"):
            arrays[field] = self.matrices([fields[field]])[0]
        return LayerWeights(**arrays)

    def norm(self, name: str) -> Float32:
        """A norm's weights; WeightsError where the rounding of activations would hide that they are not finite."""
        w = self.tensors[name].float32()
        if any(format != "f32" for format in self.formats.values()) and not np.isfinite(w).all():
            raise WeightsError(f"{name} holds NaN or infinity; the model is damaged, download or convert it again")
        return w

    def heads(self, modules: Modules) -> dict[str, DenseWeights]:
        """The Dense modules' weights by their names."""
        found = {}
        for head in modules.heads:
            if isinstance(head, Dense):
                bias = self.tensors[f"{head.name}/linear.bias"].float32() if head.has_bias else None
                found[head.name] = DenseWeights(self.head(f"{head.name}/linear.weight"), bias)
        return found

    def head(self, name: str) -> Matrix:
        """A Dense module's matrix. Kernels run float32 ones only where their panels fit."""
        tensor = self.tensors[name]
        if self.packed and (self.formats[name] != "f32" or tensor.shape[0] % LANES == 0):
            return self.matrices([(name, tensor.shape)])[0]
        return tensor.float32()

    def matrices(
        self, wanted: Sequence[tuple[str, tuple[int, ...]]], in_turn: bool = False, fused: str = ""
    ) -> list[Packed]:
        """Matrices [O, I] of one width, packed into one: that one, and its part for each if there are several.

        wanted    names and shapes
        in_turn   16 rows of each in turn (all have as many), instead of one below the other
        fused     the name of them all as one, if they are stored so
        """
        rows = [shape[0] for _, shape in wanted]
        name = wanted[0][0]
        stored = self.tensors.get(fused if len(wanted) > 1 else name)
        if isinstance(stored, PackedTensor):
            whole = stored.packed()
            return [whole, *parts_of(whole, rows, in_turn)] if len(wanted) > 1 else [whole]
        for part_name, shape in wanted:
            check_shape(shape, self.formats[part_name], part_name, LANES)
        whole = Packed.empty((sum(rows), wanted[0][1][1]), self.formats[name], name)
        parts = parts_of(whole, rows, in_turn)
        for (part_name, _), part in zip(wanted, parts, strict=True):
            tensor = self.tensors[part_name]
            if isinstance(tensor, BlockTensor) and tensor.format == part.format:
                pack_codes(*tensor.encoded(), part)
            else:
                pack(tensor.float32(), part.format, part, part_name)
            tensor.let_go()
        return [whole, *parts] if len(parts) > 1 else parts


def parts_of(whole: Packed, rows: Sequence[int], in_turn: bool) -> list[Packed]:
    """The matrices, of so many rows each, that a fused one is made of."""
    parts = []
    for i, count in enumerate(rows):
        first = sum(rows[:i]) // LANES
        panels = slice(i, None, len(rows)) if in_turn else slice(first, first + count // LANES)
        scales = None if whole.scales is None else whole.scales[panels]
        parts.append(Packed(whole.format, (count, whole.shape[1]), whole.codes[panels], scales))
    return parts


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
