"""A model to a folder: quantised, as bundle.py has it, or back to float32, as sentence-transformers reads it.

Tensor by tensor: no more than one layer is in memory, and some rows of the embedding table.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from gemma_np.arrays import AnyArray, Float32
from gemma_np.checkpoint import bundle
from gemma_np.checkpoint.defaults import Defaults
from gemma_np.checkpoint.source import Source
from gemma_np.errors import InputError
from gemma_np.files.mapped import read_json_object
from gemma_np.files.safetensors import BYTES, Layout, write_safetensors
from gemma_np.files.writing import new_folder
from gemma_np.tokens.json_file import Inexpressible, write_tokenizer_json
from gemma_np.tokens.package import TOKENIZER_JSON
from gemma_np.tokens.pieces import FILE, save_pieces
from gemma_np.weights.blocks import to_blocks
from gemma_np.weights.loading import Loader, Matrix
from gemma_np.weights.names import EMBED, dense_shapes, layer_tensors, trunk_shapes
from gemma_np.weights.packed import Packed
from gemma_np.weights.quantize import QUANTIZATIONS, encode, format_of

log = logging.getLogger("gemma_np")
SAVED_AS = ("float32", *QUANTIZATIONS)


def save(
    source: Source,
    out: Path,
    format: str,
    *,
    defaults: Defaults | None = None,
    max_seq_length: int | None = None,
    show_progress: bool | None = None,
) -> None:
    """A model to a new folder.

    out             the folder's name; there may be an empty one. It appears when all is written
    format          "float32": a checkpoint that sentence-transformers loads, with the very values of a quantised model;
                    one of quantize.QUANTIZATIONS: a bundle, which is mapped into memory without copying
    defaults, max_seq_length    instead of the source's
    show_progress   True, False, or None: on a terminal

    InputError: `out` exists, a quantised model is asked for in another format, or has shapes that have no blocks.
    """
    if format not in SAVED_AS:
        raise InputError(f"format = {format!r} is not known; expected {', '.join(SAVED_AS)}")
    if source.quantization not in (None, format) and format != "float32":
        raise InputError(
            f"{source.path} is {source.quantization} already; make {format} from the float checkpoint that it came from"
        )
    if not source.files:
        raise InputError(f"{source.path} is one file without a checkpoint's settings; use its safetensors checkpoint")
    if defaults is None:
        source.defaults.check_prompt(source.defaults.all_prompts)  # else the copy could not be opened either
    with new_folder(out) as folder:
        copy_settings(source, folder)
        write_tokenizer(source, folder, format)
        write_settings(source, folder, defaults or source.defaults, max_seq_length or source.max_seq_length)
        if format == "float32":
            write_float(source, folder, show_progress)
        else:
            write_quantized(source, folder, format, show_progress)
            bundle.write_manifest(folder, format)


def write_quantized(source: Source, folder: Path, quantization: str, show_progress: bool | None) -> None:
    """model.safetensors of a bundle."""
    if source.quantization is not None:
        shutil.copyfile(source.path / "model.safetensors", folder / "model.safetensors")
        return
    layout = bundle.file_layout(source.config, source.modules, quantization)
    parts = watched(quantized_parts(source, quantization), layout, "Quantising", show_progress)
    write_safetensors(folder / "model.safetensors", layout, parts)


def write_float(source: Source, folder: Path, show_progress: bool | None) -> None:
    """The trunk's model.safetensors and those of the Dense modules; config.json says that they are float32."""
    path = folder / source.modules.trunk / "config.json"
    settings = {key: value for key, value in read_json_object(path).items() if key != "torch_dtype"}
    path.write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n")  # else it is rounded on loading
    trunk = {name: ("F32", shape) for name, shape in trunk_shapes(source.config).items()}
    parts = watched(float_parts(source), trunk, "Writing", show_progress)
    write_safetensors(path.with_name("model.safetensors"), trunk, parts)
    weights = Loader.as_stored(source.tensors).heads(source.modules)
    for head in source.modules.dense:
        shapes = {name: ("F32", shape) for name, shape in dense_shapes(head).items()}
        w = weights[head.name]
        arrays = [as_float32(w.weight), *([] if w.bias is None else [w.bias])]
        write_safetensors(folder / head.name / "model.safetensors", shapes, arrays)


def copy_settings(source: Source, folder: Path) -> None:
    """The JSON files of a checkpoint's folders."""
    for name, path in source.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def write_tokenizer(source: Source, folder: Path, format: str) -> None:
    """tokenizer.json for float weights, tokenizer.safetensors for quantised ones, if that can express it."""
    assert source.tokenizer is not None  # a model in one file is not written to a folder
    here, there = source.tokenizer, folder / source.modules.trunk
    kept = FILE if format != "float32" else TOKENIZER_JSON
    if os.path.isfile(here / kept):
        shutil.copyfile(here / kept, there / kept)
    elif format == "float32":
        write_tokenizer_json(source.pieces(), there / kept)
    else:
        try:
            save_pieces(source.pieces(), there / FILE)
        except Inexpressible as error:
            log.warning("%s is kept as it is and costs more memory: %s", here / TOKENIZER_JSON, error)
            shutil.copyfile(here / TOKENIZER_JSON, there / TOKENIZER_JSON)


def write_settings(source: Source, folder: Path, defaults: Defaults, max_seq_length: int) -> None:
    """Prompts and the like, where they are not the source's any more."""
    if defaults != source.defaults:
        path = folder / "config_sentence_transformers.json"
        settings = read_json_object(path) if os.path.isfile(path) else {}
        path.write_text(json.dumps({**settings, **defaults.settings()}, indent=2, ensure_ascii=False) + "\n")
    if max_seq_length != source.max_seq_length:
        path = folder / source.modules.trunk / "sentence_bert_config.json"
        settings = read_json_object(path) if os.path.isfile(path) else {}
        path.write_text(json.dumps({**settings, "max_seq_length": max_seq_length}, indent=2) + "\n")


def watched(parts: Iterable[AnyArray], layout: Layout, what: str, show: bool | None) -> Iterator[AnyArray]:
    """The same parts, with a progress bar on stderr."""
    total = sum(math.prod(shape) * BYTES[dtype] for dtype, shape in layout.values())
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None if show is None else not show) as bar:
        for part in parts:
            yield part
            bar.update(part.nbytes)


def quantized_parts(source: Source, quantization: str) -> Iterator[AnyArray]:
    """All that a bundle's model.safetensors holds, in the order of bundle.file_layout."""
    tensors, config, modules = source.tensors, source.config, source.modules
    loader = Loader(tensors, {name: format_of(quantization, name) for name in tensors}, packed=True)
    for i in range(len(config.layers)):
        layer = loader.layer(config, i)
        for matrix in (layer.qkv, layer.gate_up, layer.o_proj, layer.down_proj):
            yield from packed_parts(matrix)
    for head in loader.heads(modules).values():
        yield from packed_parts(head.weight)
    for name in bundle.vector_shapes(config, modules):
        yield tensors[name].float32().astype("<f4", copy=False)
    format = format_of(quantization, EMBED)
    for rows in source.table_rows():
        yield to_blocks(*encode(rows, format, EMBED), format)


def packed_parts(matrix: Matrix | None) -> Iterator[AnyArray]:
    assert isinstance(matrix, Packed)
    assert matrix.scales is not None
    yield matrix.codes
    yield matrix.scales.astype("<f2", copy=False)


def float_parts(source: Source) -> Iterator[AnyArray]:
    """All that a trunk's model.safetensors holds, in the order of weights.names.trunk_shapes."""
    loader = Loader.as_stored(source.tensors)
    for rows in source.table_rows():
        yield rows.astype("<f4", copy=False)
    for i in range(len(source.config.layers)):
        layer = loader.layer(source.config, i)
        for field in layer_tensors(source.config, i):
            yield as_float32(getattr(layer, field)).astype("<f4", copy=False)
    yield source.tensors["norm.weight"].float32().astype("<f4", copy=False)


def as_float32(matrix: Matrix) -> Float32:
    return matrix.dequantize() if isinstance(matrix, Packed) else matrix
