"""Stored tensors -> weights in memory, as the files have them or rounded, plain or packed for the kernels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gemma_np.arrays import AnyArray, Float32
from gemma_np.config import Config
from gemma_np.errors import WeightsError
from gemma_np.files.safetensors import Tensor
from gemma_np.modules import Modules
from gemma_np.weights.blocks import BlockTensor, PackedTensor
from gemma_np.weights.derived import Derived
from gemma_np.weights.names import EMBED, FUSED, IN_TURN, layer_tensors, tensor_name
from gemma_np.weights.packed import LANES, Packed, pack, pack_codes, parts_of
from gemma_np.weights.quantize import check_shape, format_of, quantized_rows

Matrix = Float32 | Packed
Stored = Tensor | BlockTensor | PackedTensor | Derived


class Table(Protocol):
    """The embedding table: rows are read as they are needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def format(self) -> str: ...
    def rows(self, ids: AnyArray) -> Float32: ...  # [T] -> [T, D]


@dataclass(frozen=True)
class RoundedTable:
    """An embedding table whose rows are rounded to a format as they are read, to the values that a file would hold."""

    stored: Table
    format: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def rows(self, ids: AnyArray) -> Float32:  # [T] -> [T, D]
        return quantized_rows(self.stored.rows(ids), self.format, EMBED)


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors, named as in the checkpoint: q_proj is `layers.{i}.self_attn.q_proj.weight`.

    Matrices that a kernel multiplies together share one packed array; q_proj and the others are views of it.
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
    return Weights(loader.table(), layers, loader.norm("norm.weight"), loader.heads(modules))


def table_of(tensors: Mapping[str, Stored]) -> Tensor | BlockTensor:
    """The embedding table. Files have its rows one after the other, never packed, and no adapter changes it."""
    table = tensors[EMBED]
    assert isinstance(table, Tensor | BlockTensor)
    return table


def formats_held(tensors: Mapping[str, Stored], quantization: str | None) -> dict[str, str]:
    """Each matrix's format in memory. Kernels take float32 everywhere or nowhere, and one format in what is fused:
    stored matrices of which that is not true are brought to float32, exactly."""
    matrices = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 2}
    if quantization is not None:
        return {name: format_of(quantization, name) for name in matrices}
    stored = {name: tensor.format for name, tensor in matrices.items()}
    inner = {name: format for name, format in stored.items() if name != EMBED}
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

    @classmethod
    def as_stored(cls, tensors: Mapping[str, Stored]) -> "Loader":
        """Loads matrices in the formats in which they are stored."""
        formats = formats_held(tensors, None)
        return cls(tensors, formats, any(format != "f32" for name, format in formats.items() if name != EMBED))

    def table(self) -> Table:
        """The embedding table, in its format. InputError for rows that have no whole groups."""
        stored, format = table_of(self.tensors), self.formats[EMBED]
        if format in (stored.format, "f32"):
            return stored
        check_shape(stored.shape, format, EMBED)
        return RoundedTable(stored, format)

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
        for head in modules.dense:
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


def formats_of(weights: Weights) -> tuple[str, ...]:
    """The formats of all packed matrices."""
    arrays = [array for layer in weights.layers for array in vars(layer).values()]
    arrays += [head.weight for head in weights.dense.values()]
    return tuple(sorted({array.format for array in arrays if isinstance(array, Packed)}))
