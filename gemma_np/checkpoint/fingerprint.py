"""Which model made a vector: one hash, which caches, indexes and services keep and compare."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from gemma_np.checkpoint.bundle import is_bundle, read_manifest
from gemma_np.checkpoint.source import Source
from gemma_np.files.safetensors import Tensor
from gemma_np.tokens.package import TOKENIZER_JSON
from gemma_np.tokens.pieces import FILE, array_names
from gemma_np.weights.blocks import BlockTensor, PackedTensor
from gemma_np.weights.derived import Derived, MergedTensor
from gemma_np.weights.loading import Stored

CHUNK_BYTES = 1 << 22  # read at a time


def fingerprint(source: Source, quantization: str | None, prompts: Mapping[str, str]) -> str:
    """SHA-256, in hex, of all that decides a text's vector: configuration, modules, prompts, the formats of matrices,
    weights and tokenizer. Not of the path, the kernels, or this package's version.

    quantization   what matrices are rounded to as they are loaded, or were already; None: nothing
    prompts        in use, by name: the checkpoint's, or those with which the caller replaced them

    Two files with the same weights in other forms (a checkpoint, and its GGUF file) have different fingerprints. Of a
    quantised folder the checksums in its bundle.json are taken for the files; anything else is read as a whole, about
    a second per gigabyte.
    """
    found = hashlib.sha256()
    settings = {
        "config": asdict(source.config) | {"bos": sorted(source.config.bos), "eos": sorted(source.config.eos)},
        "modules": [(type(head).__name__, asdict(head)) for head in source.modules.heads],
        "include_prompt": source.modules.include_prompt,
        "prompts": dict(prompts),
        "quantization": quantization,
    }
    found.update(json.dumps(settings, sort_keys=True).encode())
    for part in bundle_parts(source) if source.path.is_dir() and is_bundle(source.path) else all_parts(source):
        found.update(part)
    return found.hexdigest()


def narrowed(model: str, prompt: str, dim: int, max_seq_length: int) -> str:
    """SHA-256, in hex, of a model's fingerprint and of what else a call decides."""
    return hashlib.sha256(json.dumps([model, prompt, dim, max_seq_length]).encode()).hexdigest()


def bundle_parts(source: Source) -> Iterator[bytes]:
    """The checksums of a quantised folder's weights and tokenizer."""
    _, files = read_manifest(source.path)
    for name in sorted(files):
        if name.endswith((".safetensors", TOKENIZER_JSON)):
            yield f"{name} {files[name]['bytes']} {files[name]['sha256']}".encode()


def all_parts(source: Source) -> Iterator[bytes]:
    """The bytes of each tensor after its name, type and shape; then those of the tokenizer."""
    for name in sorted(source.tensors):
        yield from tensor_parts(name, source.tensors[name])
    folder = source.tokenizer
    if folder and (folder / TOKENIZER_JSON).is_file() and not (folder / FILE).is_file():
        yield (folder / TOKENIZER_JSON).read_bytes()
        return
    pieces: Any = source.pieces()
    for name in array_names():
        yield f"{name} {len(getattr(pieces, name))}".encode() + getattr(pieces, name).tobytes()


def tensor_parts(name: str, tensor: Stored) -> Iterator[bytes]:
    """A tensor's name, type and shape, and its bytes. Of one that an adapter changes, those of all that it is made of:
    the sum itself has other last bits on other processors."""
    yield f"{name} {tensor.dtype} {tensor.shape}".encode()
    if isinstance(tensor, MergedTensor):
        yield f"{name} + {tensor.scale!r} *".encode()
        for part in (tensor.base, tensor.b, tensor.a):
            yield from tensor_parts(part.name, part)
    elif isinstance(tensor, Derived):
        yield tensor.float32().astype("<f4", copy=False).tobytes()
        tensor.let_go()
    else:
        yield from stored_bytes(tensor)


def stored_bytes(tensor: Tensor | BlockTensor | PackedTensor) -> Iterator[bytes]:
    """A tensor as it is in its file, read past the map, so that no page of it stays in memory."""
    assert not isinstance(tensor, PackedTensor)  # only quantised folders have them
    for start in range(0, tensor.nbytes, CHUNK_BYTES):
        yield tensor.source.read(tensor.offset + start, min(CHUNK_BYTES, tensor.nbytes - start))
