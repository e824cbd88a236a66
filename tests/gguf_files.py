"""GGUF files made of other ones: with tensors in types that the exporter does not write, under other names and keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf_blocks import blocks_of

from gemma_np.gguf.export import number, text, value
from gemma_np.gguf.file import ALIGNMENT, MAGIC, NUMBERS, TYPES, Texts, open_gguf
from gemma_np.gguf.names import ARCHITECTURE


@dataclass(frozen=True)
class Content:
    """A tensor: its type by name, its shape row-major, its bytes."""

    kind: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Parts:
    """All that a file holds."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Content]

    def renamed(self, key: Callable[[str], str], tensor: Callable[[str], str]) -> "Parts":
        """With other keys of metadata, and other names of tensors."""
        return Parts(
            {key(name): value for name, value in self.metadata.items()},
            {tensor(name): content for name, content in self.tensors.items()},
        )

    def with_metadata(self, **changes: Any) -> "Parts":
        """With other metadata; None takes an entry out. Two underscores are a dot."""
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return replace(self, metadata={k: v for k, v in {**self.metadata, **named}.items() if v is not None})

    def with_tensors(self, tensors: Mapping[str, Content]) -> "Parts":
        return replace(self, tensors={**self.tensors, **tensors})


def read(path: Path) -> Parts:
    file = open_gguf(path)
    metadata = {name: list(entry) if isinstance(entry, Texts) else entry for name, entry in file.metadata.items()}
    tensors = {
        name: Content(info.dtype, info.shape, file.source.read(info.offset, info.nbytes))
        for name, info in file.tensors.items()
    }
    return Parts(metadata, tensors)


def write(parts: Parts, path: Path) -> Path:
    entries = [text(name) + value(listed(entry)) for name, entry in parts.metadata.items()]
    begin = [MAGIC, number(3, 4), number(len(parts.tensors)), number(len(entries)), *entries]
    offset, data = 0, b""
    for name, tensor in parts.tensors.items():
        begin += [text(name), number(len(tensor.shape), 4), *(number(n) for n in reversed(tensor.shape))]
        begin += [number(NUMBERS[tensor.kind], 4), number(offset)]
        padded = tensor.data + bytes(-len(tensor.data) % ALIGNMENT)
        data, offset = data + padded, offset + len(padded)
    whole = b"".join(begin)
    path.write_bytes(whole + bytes(-len(whole) % ALIGNMENT) + data)
    return path


def listed(entry: Any) -> Any:
    """Truth values as a list, as the exporter takes them."""
    return entry.tolist() if isinstance(entry, np.ndarray) and entry.dtype == bool else entry


def random_matrix(kind: str, shape: tuple[int, ...], seed: int) -> Content:
    """A matrix of any bits in a type, with values as large as weights are."""
    blocks = blocks_of(kind, shape[0] * shape[1] // TYPES[NUMBERS[kind]][1], seed, 2e-4 if "_K" in kind else 2e-3)
    return Content(kind, shape, blocks.tobytes())


def in_types(parts: Parts, kinds: Sequence[str]) -> Parts:
    """With matrices of any bits in some types in turn, the embedding table's the first."""
    matrices = [name for name, tensor in parts.tensors.items() if len(tensor.shape) == 2]
    return parts.with_tensors(
        {
            name: random_matrix(kinds[i % len(kinds)], parts.tensors[name].shape, seed=i)
            for i, name in enumerate(matrices)
        }
    )


def as_ollama(parts: Parts) -> Parts:
    """The same model as Ollama's own file says it: its keys, its heads, no local base, and a piece too many."""
    heads = {"dense_2": "dense.0", "dense_3": "dense.1"}
    slides = [i % 6 != 5 for i in range(parts.metadata[f"{ARCHITECTURE}.block_count"])]
    tokenizer = parts.metadata
    named = parts.renamed(
        lambda key: key.replace(ARCHITECTURE, "gemma3"),
        lambda name: heads[name[:7]] + name[7:] if name[:7] in heads else name,
    )
    return named.with_metadata(
        general__architecture="gemma3",
        gemma3__attention__causal=False,
        gemma3__attention__sliding_window_pattern=slides,
        gemma3__rope__freq_base_swa=None,
        tokenizer__ggml__add_space_prefix=None,
        tokenizer__ggml__tokens=[*tokenizer["tokenizer.ggml.tokens"], b"<image_soft_token>"],
        tokenizer__ggml__scores=np.append(tokenizer["tokenizer.ggml.scores"], np.float32(-1000)),
        tokenizer__ggml__token_type=np.append(tokenizer["tokenizer.ggml.token_type"], np.int32(4)),
    )
