"""What a model brings to the kernels, whether its sizes fit them, and how much memory its passes need.

Letters as in MODEL.md. A matrix is anything with `format`, `shape`, `codes` and `scales`, packed as gemma_np does it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .plan import ACTIVATIONS, BLOCK, GROUP, MATRICES, MAX_TEXTS, PANEL, POSITIONS, SHARED_BYTES, UNPACKED

Float32 = NDArray[np.float32]

PAGE = 4096  # bytes; threads' scratch begins at multiples
PADDING = 8  # rows after the last one of every array of activations: tiles are computed whole


class Matrix(Protocol):
    """Weights as the kernels read them."""

    @property
    def format(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def codes(self) -> NDArray[Any]: ...
    @property
    def scales(self) -> NDArray[np.float16] | None: ...


class LayerNumbers(Protocol):
    """What a layer's arithmetic depends on besides its weights, as gemma_np.config.Layer says it."""

    @property
    def N(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def H(self) -> int: ...
    @property
    def radius(self) -> int | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def eps(self) -> float: ...


@dataclass(frozen=True)
class LayerParts:
    """One layer.

    at        its numbers
    matrices  by the names in plan.MATRICES: qkv [(N + 2K) H, D], q_proj, k_proj and v_proj below each other; o_proj
              [D, N H]; gate_up [2F, D], 16 rows of gate_proj and 16 of up_proj in turn; down_proj [D, F]
    norms     by the names in plan.NORMS: 1 + the checkpoint's weights, float32
    rope      cosines and sines, float32 [max_tokens, H / 2] each
    """

    at: LayerNumbers
    matrices: Mapping[str, Matrix]
    norms: Mapping[str, Float32]
    rope: tuple[Float32, Float32]


def unfit_sizes(D: int, F: int, layers: Sequence[tuple[int, int, int]], heads: Sequence[tuple[int, int]]) -> str | None:
    """Why the tiles cannot take a model of these sizes, or None: layers are (N, K, H), heads are (inputs, outputs)."""
    wrong = []
    if D % 64:
        wrong.append(f"hidden_size {D} is no multiple of 64")
    if F % 32:
        wrong.append(f"intermediate_size {F} is no multiple of 32")
    for N, K, H in dict.fromkeys(layers):
        if H % 32:
            wrong.append(f"head_dim {H} is no multiple of 32")
        if (N + 2 * K) * H % 64:
            wrong.append(f"query, key and value heads are {(N + 2 * K) * H} wide, no multiple of 64")
        if N // K > 8:
            wrong.append(f"{N // K} query heads share a key/value head, more than 8")
    for inputs, outputs in heads:
        if inputs % 32 or outputs % 64:
            wrong.append(f"a Dense head is {inputs} to {outputs}, no multiples of 32 and 64")
    return "; ".join(wrong) or None


def workspace(
    layers: Sequence[LayerParts], D: int, heads: Sequence[Matrix], max_tokens: int, threads: int
) -> dict[str, tuple[int, Any]]:
    """The arrays of a pass by their names in plan.PLAN: how many elements of which dtype. Layers may differ in heads
    and widths, so each array is as large as the layer that needs most of it."""
    rows, texts, slots = max_tokens + PADDING, MAX_TEXTS + PADDING, max_tokens + 63 * MAX_TEXTS
    numbers = [layer.at for layer in layers]
    widest = max([D, *(head.shape[0] for head in heads)])
    hidden = max(layer.matrices["down_proj"].shape[1] for layer in layers)
    inputs = max(layer.matrices[name].shape[1] for layer in layers for name in MATRICES if name != "down_proj")
    every = [*heads, *(matrix for layer in layers for matrix in layer.matrices.values())]
    rounded = all(matrix.format != "f32" for matrix in every)

    def activations(n: int) -> int:
        """Bytes of a row of n, as a product reads it."""
        return n // GROUP * ACTIVATIONS if rounded else 4 * n

    attention = 4 * max((3 + 64 + at.H) * (POSITIONS * at.N // at.K + PADDING) for at in numbers)
    product = UNPACKED * max(inputs, widest, hidden) + 4 * (BLOCK + PADDING) * PANEL
    scratch = -(-max(product, attention) // PAGE) * PAGE
    return {
        "shared": (SHARED_BYTES, np.uint8),
        "scratch": (scratch * threads, np.uint8),
        "ones": (64, np.float32),
        "x": (rows * D, np.float32),
        "a": (rows * activations(inputs), np.uint8),
        "b": (rows * activations(hidden), np.uint8),
        "qkv": (rows * max((at.N + 2 * at.K) * at.H for at in numbers), np.float32),
        "q": (rows * max(at.N * at.H for at in numbers), np.float32),
        "keys": (slots * max(at.K * at.H for at in numbers), np.float32),
        "values": (rows * max(at.K * at.H for at in numbers), np.float32),
        "h": (rows * D, np.float32),
        "head_a": (texts * activations(widest), np.uint8),
        "head_b": (texts * widest, np.float32),
        "pooled": (texts * widest, np.float32),
    }
