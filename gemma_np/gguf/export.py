"""A model to one GGUF file, with Dense heads and tokenizer, as llama.cpp's converter writes it and llama.cpp reads it.

Written by hand, so that nothing more need be installed, and so that a layer is in memory at a time, and some rows of
the embedding table: the package gguf wants each tensor as a whole, which that table is too large for.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from gemma_np.arrays import AnyArray, Float32
from gemma_np.checkpoint.source import Source
from gemma_np.errors import InputError, WeightsError, warn
from gemma_np.files.safetensors import BYTES, FLOATS, to_bfloat16
from gemma_np.gguf.file import ALIGNMENT, ARRAY, BOOL, MAGIC, NUMBERS, SCALARS, STRING
from gemma_np.gguf.names import ARCHITECTURE, FIELDS, HEADS, MEAN, PATTERN, TRUNK_ALONE
from gemma_np.gguf.tensors import BLOCKS
from gemma_np.gguf.vocabulary import tokenizer_metadata
from gemma_np.modules import Normalize
from gemma_np.prompts import PUBLISHED
from gemma_np.weights.blocks import BlockTensor, row_bytes, to_blocks
from gemma_np.weights.loading import Loader, Matrix, formats_held
from gemma_np.weights.names import EMBED, FUSED, layer_tensors, tensor_name
from gemma_np.weights.packed import Packed
from gemma_np.weights.quantize import check_shape, encode

MATRIX_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # llama.cpp's numbers for a file's matrices
GUESSED = 1024  # of several types
LARGEST_F16 = 65504
UINT32, INT32, FLOAT32 = 4, 5, 6


@dataclass(frozen=True)
class Written:
    """A tensor to come: its type by name, its shape row-major."""

    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        if self.type in FLOATS:
            return math.prod(self.shape) * BYTES[self.type]
        return self.shape[0] * row_bytes(self.shape[1], BLOCKS[self.type])


def export(
    source: Source, file: IO[bytes], format: str | None, heads: bool = True, show_progress: bool | None = None
) -> None:
    """Write a model.

    source          of a model that llama.cpp can run
    file            open for writing, at its start
    format          of the matrices, one of MATRIX_TYPES; None: as they are stored
    heads           False: the trunk alone, without Dense heads
    show_progress   True, False, or None: on a terminal

    InputError: llama.cpp cannot run it, or it is rounded already and another format is asked for.
    """
    if not heads:
        source = replace(source, modules=replace(source.modules, heads=TRUNK_ALONE.heads))
    check_expressible(source)
    warn_of_settings(source)
    tensors = tensor_layout(source, format)
    metadata = model_metadata(source) | tokenizer_metadata(source)
    types = {tensor.type for tensor in tensors.values() if len(tensor.shape) == 2}
    metadata["general.file_type"] = FILE_TYPES[min(types)] if len(types) == 1 else GUESSED
    if types & BLOCKS.keys():
        metadata["general.quantization_version"] = 2
    begin = header(metadata, tensors)
    file.write(begin)
    total = sum(tensor.nbytes for tensor in tensors.values())
    hidden = None if show_progress is None else not show_progress
    with tqdm(total=total, desc="Writing", unit="B", unit_scale=True, disable=hidden) as bar:
        for tensor, parts in zip(tensors.values(), contents(source, tensors), strict=True):
            written = 0
            for part in parts:
                file.write(np.ascontiguousarray(part).data)
                written += part.nbytes
                bar.update(part.nbytes)
            assert written == tensor.nbytes, (written, tensor)
            file.write(bytes(-written % ALIGNMENT))


def check_expressible(source: Source) -> None:
    """InputError for a model that llama.cpp would compute otherwise, or not at all."""
    config, modules, where = source.config, source.modules, source.path
    dense = modules.dense
    widths = (dense[0].inputs, dense[-1].outputs) if dense else (config.D, config.D)
    wrong = {
        "its attention's scale is not 1 / sqrt(head size)": any(
            not math.isclose(layer.scale, 1 / math.sqrt(layer.H)) for layer in config.layers
        ),
        "its pooling leaves the prompt out": not modules.include_prompt,
        "its heads are not Dense, Dense, Normalize": modules.heads != (*dense, *modules.heads[len(dense) :][:1])
        or not isinstance(modules.heads[-1], Normalize)
        or [head.name for head in dense] not in ([], *(list(HEADS)[: n + 1] for n in range(len(HEADS)))),
        "a Dense head has a bias or an activation": any(h.has_bias or h.activation != "Identity" for h in dense),
        f"its heads lead from {widths[0]} to {widths[1]} dimensions, llama.cpp's from {config.D} to {config.D} "
        "(--no-dense writes the trunk alone)": widths != (config.D, config.D),
    }
    if reasons := [reason for reason, found in wrong.items() if found]:
        raise InputError(f"{where}: llama.cpp cannot run it as it is: {'; '.join(reasons)}")


def warn_of_settings(source: Source) -> None:
    """A warning for what a GGUF file has no room for."""
    defaults = source.defaults
    lost = {
        "its prompts": any(PUBLISHED.get(name, prompt) != prompt for name, prompt in defaults.prompts.items()),
        "its default prompt": defaults.default_prompt_name is not None,
        f"its similarity, {defaults.similarity_fn_name}": defaults.similarity_fn_name != "cosine",
        f"its default of {defaults.truncate_dim} dimensions": defaults.truncate_dim is not None,
    }
    if names := [name for name, found in lost.items() if found]:
        warn(f"{source.path}: not kept in a GGUF file: {', '.join(names)}")


def tensor_layout(source: Source, format: str | None) -> dict[str, Written]:
    """The file's tensors by their names there, in their order."""
    config, held = source.config, formats_held(source.tensors, None)
    if format is not None and format not in MATRIX_TYPES:
        raise InputError(f"format = {format!r} is not known; expected {', '.join(MATRIX_TYPES)}")

    def type_of(name: str, shape: tuple[int, ...], fused: str = "") -> str:
        if len(shape) == 1:
            return "F32"
        tensor = source.tensors[name if name in source.tensors else fused]
        now = held[tensor.name if tensor.name in held else name]
        own = tensor.dtype if now == "f32" and tensor.dtype in FLOATS else now.upper()
        wanted = own if format is None else format.upper()
        if own in BLOCKS and wanted not in (own, "F32"):
            raise InputError(f"{source.path}: {name} is {own} already; export it as f32, or without a format")
        if wanted in BLOCKS:
            check_shape(shape, BLOCKS[wanted], name)
        return wanted

    table = config.V, config.D
    found = {
        "token_embd.weight": Written(type_of(EMBED, table), table),
        "output_norm.weight": Written("F32", (config.D,)),
    }
    for i in range(len(config.layers)):
        for field, (name, shape) in layer_tensors(config, i).items():
            fused = next((tensor_name(i, whole) for whole, parts in FUSED.items() if field in parts), "")
            found[f"blk.{i}.{FIELDS[field]}.weight"] = Written(type_of(name, shape, fused), shape)
    for head in source.modules.dense:
        shape = head.outputs, head.inputs
        found[f"{HEADS[head.name]}.weight"] = Written(type_of(f"{head.name}/linear.weight", shape), shape)
    return found


def model_metadata(source: Source) -> dict[str, Any]:
    """The settings under llama.cpp's keys."""
    config = source.config
    full = next((layer for layer in config.layers if layer.radius is None), config.layers[0])
    slides = [layer.radius is not None for layer in config.layers]
    sliding = next((layer for layer in config.layers if layer.radius is not None), None)
    settings: dict[str, Any] = {
        "context_length": config.max_positions,
        "embedding_length": config.D,
        "block_count": len(config.layers),
        "feed_forward_length": config.F,
        "attention.head_count": full.N,
        "attention.head_count_kv": full.K,
        "attention.key_length": full.H,
        "attention.value_length": full.H,
        "attention.layer_norm_rms_epsilon": full.eps,
        "attention.sliding_window": 2 * (sliding.radius or 0) if sliding else 2 * config.max_positions,
        "rope.freq_base": full.theta,
        "pooling_type": MEAN,
    }
    if sliding:
        settings["rope.freq_base_swa"] = sliding.theta
    if slides != [(i + 1) % PATTERN != 0 for i in range(len(slides))]:
        settings["attention.sliding_window_pattern"] = slides
    for head in source.modules.dense:
        settings[f"{HEADS[head.name]}_feat_in"] = head.inputs
        settings[f"{HEADS[head.name]}_feat_out"] = head.outputs
    general = {"general.architecture": ARCHITECTURE, "general.type": "model"}
    return {**general, **{f"{ARCHITECTURE}.{key}": value for key, value in settings.items()}}


def header(metadata: Mapping[str, Any], tensors: Mapping[str, Written]) -> bytes:
    """All that comes before the tensors."""
    parts = [MAGIC, number(3, 4), number(len(tensors)), number(len(metadata))]
    parts += [text(key) + value(entry) for key, entry in metadata.items()]
    offset = 0
    for name, tensor in tensors.items():
        parts += [text(name), number(len(tensor.shape), 4), *(number(n) for n in reversed(tensor.shape))]
        parts += [number(NUMBERS[tensor.type], 4), number(offset)]
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % ALIGNMENT)


def number(n: int, length: int = 8) -> bytes:
    return n.to_bytes(length, "little")


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return number(len(content)) + content


def value(entry: Any) -> bytes:
    """A metadata value with its type."""
    if isinstance(entry, str):
        return number(STRING, 4) + text(entry)
    if isinstance(entry, bool):
        return number(BOOL, 4) + number(entry, 1)
    if isinstance(entry, int):
        return number(UINT32, 4) + number(entry, 4)
    if isinstance(entry, float):
        return number(FLOAT32, 4) + np.array(entry, SCALARS[FLOAT32]).tobytes()
    kind = STRING if isinstance(entry[0], bytes) else BOOL if isinstance(entry[0], bool) else ARRAY
    if isinstance(entry, np.ndarray):
        kind = FLOAT32 if entry.dtype.kind == "f" else INT32
    begin = number(ARRAY, 4) + number(kind, 4) + number(len(entry))
    return begin + (b"".join(map(text, entry)) if kind == STRING else np.array(entry, SCALARS[kind]).tobytes())


def contents(source: Source, tensors: Mapping[str, Written]) -> Iterator[Iterable[AnyArray]]:
    """Each tensor's bytes in the layout's order, in parts."""
    loader = Loader.as_stored(source.tensors)
    yield table_parts(source, tensors["token_embd.weight"].type)
    yield [with_one(loader.norm("norm.weight"))]
    for i in range(len(source.config.layers)):
        layer = loader.layer(source.config, i)
        for field, (name, shape) in layer_tensors(source.config, i).items():
            w = getattr(layer, field)
            if len(shape) == 1:
                yield [with_one(w)]
            else:
                yield [as_stored(w, tensors[f"blk.{i}.{FIELDS[field]}.weight"].type, name)]
            if name in source.tensors:  # else it is in a fused one
                source.tensors[name].let_go()
    for name, head in loader.heads(source.modules).items():
        yield [as_stored(head.weight, tensors[f"{HEADS[name]}.weight"].type, f"{name}/linear.weight")]


def with_one(w: Float32) -> AnyArray:
    """A norm's weights as llama.cpp has them; see tensors.NormTensor."""
    return (w + np.float32(1)).astype("<f4", copy=False)


def table_parts(source: Source, type: str) -> Iterator[AnyArray]:
    """The embedding table, some rows at a time."""
    table = source.table
    for rows in source.table_parts():
        if table.dtype == type:
            length = table.nbytes // source.config.V
            yield np.frombuffer(table.source.read(table.offset + rows.start * length, len(rows) * length), np.uint8)
            continue
        ids = np.arange(rows.start, rows.stop)
        if isinstance(table, BlockTensor) and table.format == BLOCKS.get(type):  # another type with the same values
            yield to_blocks(*table.encoded_rows(ids), table.format)
        else:
            yield as_stored(table.rows(ids), type, EMBED)


def as_stored(w: Matrix, type: str, name: str) -> AnyArray:
    """A matrix, or some rows of one, as they lie in a file of some type."""
    if isinstance(w, Packed):
        if type == w.format.upper():
            return to_blocks(*w.encoded(), w.format)
        w = w.dequantize()
    if type in BLOCKS:
        return to_blocks(*encode(w, BLOCKS[type], name), BLOCKS[type])
    if type == "F16" and not np.abs(w).max() <= LARGEST_F16:
        raise WeightsError(f"{name} holds {np.abs(w).max():.7g}, and float16 ends at {LARGEST_F16}; take bf16 or f32")
    return to_bfloat16(w) if type == "BF16" else w.astype(FLOATS[type], copy=False)
