"""A quantised model in a folder, as it is mapped into memory: nothing is copied or repacked when it is opened.

    bundle.json             format version, quantization, and of each file its size and SHA-256
    model.safetensors       norms and biases in float32; of each matrix codes and scales, packed as in packed.Packed:
                            `layers.0.mlp.down_proj.weight.codes` and `.scales`. Matrices that kernels multiply in one
                            go are one (weights.names.FUSED). Last the embedding table, in blocks (blocks.py), row by
                            row: `embed_tokens.weight.blocks`
    tokenizer.safetensors   see tokens/pieces.py; tokenizer.json instead, where that cannot express it
    *.json, */*.json        as in the checkpoint

All codes and scales start at multiples of 64 bytes, so that one folder serves every set of kernels.
"""

import json
import os
from pathlib import Path
from typing import Any

from gemma_np import __version__
from gemma_np.config import Config
from gemma_np.errors import CheckpointError, WeightsError
from gemma_np.files.mapped import read_json_object
from gemma_np.files.safetensors import Layout, open_safetensors
from gemma_np.files.writing import sha256
from gemma_np.modules import Modules
from gemma_np.weights.blocks import BlockTensor, PackedTensor, row_bytes
from gemma_np.weights.loading import Stored
from gemma_np.weights.names import EMBED, FUSED, check_tensors, layer_tensors, tensor_name
from gemma_np.weights.packed import LANES, layout
from gemma_np.weights.quantize import QUANTIZATIONS, check_shape, format_of

MANIFEST = "bundle.json"
VERSION = 1


def is_bundle(folder: Path) -> bool:
    return os.path.isfile(folder / MANIFEST)  # os.path: False for a path that cannot be


def matrix_shapes(config: Config, modules: Modules) -> dict[str, tuple[int, int]]:
    """The packed matrices of a bundle with their shapes, by the names of the checkpoint and of weights.names.FUSED."""
    shapes = {}
    for i in range(len(config.layers)):
        fields = layer_tensors(config, i)
        for fused, parts in FUSED.items():
            rows, width = sum(fields[part][1][0] for part in parts), fields[parts[0]][1][1]
            shapes[tensor_name(i, fused)] = rows, width
        for field in ("o_proj", "down_proj"):
            name, (rows, width) = fields[field]
            shapes[name] = rows, width
    for head in modules.dense:
        shapes[f"{head.name}/linear.weight"] = head.outputs, head.inputs
    return shapes


def vector_shapes(config: Config, modules: Modules) -> dict[str, tuple[int, ...]]:
    """The float32 tensors of a bundle: norms, then biases."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(len(config.layers)):
        shapes |= {name: shape for name, shape in layer_tensors(config, i).values() if len(shape) == 1}
    shapes["norm.weight"] = (config.D,)
    biased = [head for head in modules.dense if head.has_bias]
    return shapes | {f"{head.name}/linear.bias": (head.outputs,) for head in biased}


def file_layout(config: Config, modules: Modules, quantization: str) -> Layout:
    """What model.safetensors holds, in its order. InputError for shapes that have no blocks."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in matrix_shapes(config, modules).items():
        format = format_of(quantization, name)
        check_shape(shape, format, name, LANES)
        codes, scales = layout(shape, format)
        assert scales is not None
        found[f"{name}.codes"], found[f"{name}.scales"] = ("U8", codes), ("F16", scales)
    found |= {name: ("F32", shape) for name, shape in vector_shapes(config, modules).items()}
    format = format_of(quantization, EMBED)
    check_shape((config.V, config.D), format, EMBED)
    return found | {f"{EMBED}.blocks": ("U8", (config.V, row_bytes(config.D, format)))}


def write_manifest(folder: Path, quantization: str) -> None:
    """bundle.json, when all other files are there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    manifest = {"format_version": VERSION, "quantization": quantization, "made_by": __version__, "files": listed}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The quantization, and the files with their sizes and checksums. Raises CheckpointError."""
    path = folder / MANIFEST
    manifest = read_json_object(path)
    version, quantization, files = (manifest.get(key) for key in ("format_version", "quantization", "files"))
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: format_version = {version!r}, expected {VERSION}")
    if version > VERSION:
        raise CheckpointError(
            f"{path}: format_version = {version}, this gemma-np reads up to {VERSION}; update it, or quantise again"
        )
    if quantization not in QUANTIZATIONS:
        raise CheckpointError(f"{path}: quantization = {quantization!r}, expected one of {', '.join(QUANTIZATIONS)}")
    if not isinstance(files, dict) or not all(
        isinstance(file, dict) and type(file.get("bytes")) is int and isinstance(file.get("sha256"), str)
        for file in files.values()
    ):
        raise CheckpointError(f"{path}: files is no object of names with bytes and sha256; quantise the model again")
    return quantization, files


def damaged_files(folder: Path) -> list[str]:
    """What is wrong with the files, a line each; nothing if all are as they were written."""
    wrong = []
    for name, file in read_manifest(folder)[1].items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            wrong.append(f"{name} leads out of the folder")
        elif not os.path.isfile(path):
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != file["bytes"]:
            wrong.append(f"{name} has {path.stat().st_size:,} bytes, expected {file['bytes']:,}")
        elif sha256(path) != file["sha256"]:
            wrong.append(f"{name} has other bytes than were written")
    return wrong


def bundle_tensors(folder: Path, config: Config, modules: Modules) -> dict[str, Stored]:
    """A bundle's tensors, mapped and checked, as weights.loading.load_weights takes them."""
    quantization, _ = read_manifest(folder)
    path = folder / "model.safetensors"
    expected = file_layout(config, modules, quantization)
    found = open_safetensors(path)
    check_tensors(found, {name: shape for name, (_, shape) in expected.items()}, folder / "config.json")
    for name, (dtype, _) in expected.items():
        if found[name].dtype != dtype:
            raise WeightsError(f"{path}: {name} has dtype {found[name].dtype}, expected {dtype}; quantise again")
    tensors: dict[str, Stored] = {name: found[name] for name in vector_shapes(config, modules)}
    for name, shape in matrix_shapes(config, modules).items():
        codes, scales = found[f"{name}.codes"], found[f"{name}.scales"]
        format = format_of(quantization, name)
        tensors[name] = PackedTensor(name, format, shape, codes.source, codes.offset, scales.offset)
    blocks = found[f"{EMBED}.blocks"]
    shape = config.V, config.D
    tensors[EMBED] = BlockTensor(EMBED, format_of(quantization, EMBED), shape, blocks.source, blocks.offset)
    return tensors
