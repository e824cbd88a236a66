"""The door to the fast path: a model's matrices and norms once, then texts' embeddings in and vectors out.

It knows arrays, not files. A matrix is anything with `format`, `shape`, `codes` and `scales` as in
gemma_np.weights.packed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .plan import (
    ACTIVATIONS,
    BLOCK,
    FORMATS,
    LAYER,
    MATRIX,
    MAX_TEXTS,
    PANEL,
    PLAN,
    POSITIONS,
    SHARED_BYTES,
    STEPS,
    UNPACKED,
)
from .team import TEAM

Float32 = NDArray[np.float32]
Run = Callable[[int, int], None]

LINE = 64  # bytes; all arrays begin at a multiple
PADDING = 8  # rows behind every array of activations: tiles are computed whole


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


@dataclass(frozen=True)
class LayerArrays:
    """One layer. Norms are 1 + the checkpoint's weights, float32.

    qkv      q_proj, k_proj and v_proj below each other: [(N + 2K) H, D]
    gate_up  16 rows of gate_proj and 16 of up_proj in turn: [2F, D]
    radius   how far attention reaches; None: to every token
    rope     cosines and sines, float32 [max_tokens, H / 2] each
    """

    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix
    input_layernorm: Float32
    post_attention_layernorm: Float32
    pre_feedforward_layernorm: Float32
    post_feedforward_layernorm: Float32
    q_norm: Float32
    k_norm: Float32
    N: int
    K: int
    H: int
    radius: int | None
    scale: float
    eps: float
    rope: tuple[Float32, Float32]


def unfit(D: int, F: int, layers: Sequence[tuple[int, int, int]], heads: Sequence[tuple[int, int]]) -> str | None:
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


class Engine:
    """A model, ready to run.

    run         the compiled forward pass, see objects.Compiled
    layers      all layers
    norm, eps   of the last norm
    heads       the Dense heads that run here, without bias or activation; none: the result is the mean
    max_tokens  of a pass; the workspace is made for so many, once
    threads     how many run a pass
    """

    def __init__(
        self,
        run: Run,
        layers: Sequence[LayerArrays],
        norm: Float32,
        eps: float,
        heads: Sequence[Matrix],
        max_tokens: int,
        threads: int,
    ) -> None:
        self._run, self.threads, self.max_tokens = run, threads, max_tokens
        self._kept: list[Any] = [layers, norm, heads]  # the plan holds addresses: their arrays must live
        D = len(norm)
        self.dim = heads[-1].shape[0] if heads else D
        widest = max([D, *(head.shape[0] for head in heads)])
        rows = max_tokens + PADDING
        inputs = max(max(at.qkv.shape[1], at.o.shape[1], at.gate_up.shape[1]) for at in layers)
        matrices = [*heads, *(matrix for at in layers for matrix in (at.qkv, at.o, at.gate_up, at.down))]
        quantized = all(matrix.format != "f32" for matrix in matrices)
        row = (lambda n: n // 32 * ACTIVATIONS) if quantized else (lambda n: 4 * n)
        slots = max_tokens + 63 * MAX_TEXTS
        self.fewest_heads = min(at.K for at in layers)
        attention = max((3 + 64 + at.H) * (POSITIONS * at.N // at.K + PADDING) for at in layers)
        deepest = max(inputs, widest, *(at.down.shape[1] for at in layers))
        scratch = -(-max(UNPACKED * deepest + 4 * (BLOCK + PADDING) * PANEL, 4 * attention) // 4096) * 4096
        self._x = self._room(rows * D, np.float32).reshape(rows, D)
        self._arrays = {
            "shared": self._room(SHARED_BYTES, np.uint8),
            "scratch": self._room(scratch * threads, np.uint8),
            "ones": self._room(64, np.float32),
            "x": self._x,
            "a": self._room(rows * row(inputs), np.uint8),
            "b": self._room(rows * row(max(at.down.shape[1] for at in layers)), np.uint8),
            "qkv": self._room(rows * max(at.qkv.shape[0] for at in layers), np.float32),
            "q": self._room(rows * max(at.N * at.H for at in layers), np.float32),
            "keys": self._room(slots * max(at.K * at.H for at in layers), np.float32),
            "values": self._room(rows * max(at.K * at.H for at in layers), np.float32),
            "h": self._room(rows * D, np.float32),
            "head_a": self._room((MAX_TEXTS + PADDING) * row(widest), np.uint8),
            "head_b": self._room((MAX_TEXTS + PADDING) * widest, np.float32),
            "pooled": self._room((MAX_TEXTS + PADDING) * widest, np.float32),
        }
        self._arrays["ones"][:] = 1
        numbers = {name: array.ctypes.data for name, array in self._arrays.items()}
        numbers |= {
            "threads": threads,
            "scratch_bytes": scratch,
            "L": len(layers),
            "D": D,
            "layers": self._address(np.concatenate([self._layer(at) for at in layers])),
            "norm": self._address(norm),
            "eps": _bits(eps),
            "heads": len(heads),
            "head_table": self._address(np.array([n for head in heads for n in self._matrix(head)], np.int64)),
        }
        self._plan = np.array([numbers.get(name, 0) for name in PLAN], np.int64)

    def _room(self, size: int, dtype: Any) -> NDArray[Any]:
        """Zeros, of which only touched pages count as memory, at a multiple of LINE."""
        raw = np.zeros(size * np.dtype(dtype).itemsize + LINE, np.uint8)
        start = -raw.ctypes.data % LINE
        return raw[start : start + size * np.dtype(dtype).itemsize].view(dtype)

    def _address(self, array: NDArray[Any]) -> int:
        assert array.flags.c_contiguous
        self._kept.append(array)
        return int(array.ctypes.data)

    def _matrix(self, matrix: Matrix) -> list[int]:
        values = {
            "format": FORMATS.index(matrix.format),
            "codes": self._address(matrix.codes),
            "scales": 0 if matrix.scales is None else self._address(matrix.scales),
            "outputs": matrix.shape[0],
            "inputs": matrix.shape[1],
            "rounded": int(matrix.format != "f32"),
        }
        return [values[name] for name in MATRIX]

    def _layer(self, at: LayerArrays) -> NDArray[np.int64]:
        values = {
            "K": at.K,
            "G": at.N // at.K,
            "H": at.H,
            "radius": self.max_tokens if at.radius is None else at.radius,
            "scale": _bits(at.scale),
            "eps": _bits(at.eps),
            "cos": self._address(at.rope[0]),
            "sin": self._address(at.rope[1]),
        }
        for name in ("qkv", "o", "gate_up", "down"):
            values[name] = self._address(np.array(self._matrix(getattr(at, name)), np.int64))
        for name in LAYER:
            if name.endswith("norm"):
                values[name] = self._address(getattr(at, name))
        return np.array([values[name] for name in LAYER], np.int64)

    def run(self, embeddings: Float32, lengths: Sequence[int], skips: Sequence[int], hidden: bool = False) -> "Pass":
        """Texts through the model. Safe to call from many threads.

        embeddings  float32 [T, D], scaled, texts one behind the other
        lengths     of the texts, which add up to T <= max_tokens; at most MAX_TEXTS
        skips       how many leading tokens of a text the mean leaves out
        hidden      keep the trunk's vectors, too
        returns     with `vectors`, float32 [B, dim], and `hidden`, float32 [T, D]
        """
        work = Pass(self, embeddings, lengths, skips, hidden)
        TEAM.run(work)
        return work

    def stop_after(self, layer: int, step: str) -> None:
        """End passes behind a layer's step, for comparing: `array` then has what it left. (-1, ...): to the end."""
        self._stop = layer, STEPS.index(step)

    _stop = (-1, 0)

    def array(self, name: str) -> NDArray[Any]:
        """An array of the workspace by its name in the plan, as the last pass left it."""
        return self._arrays[name]


class Pass:
    """One run of an engine, see Engine.run."""

    vectors: Float32
    hidden: Float32

    def __init__(
        self, engine: Engine, embeddings: Float32, lengths: Sequence[int], skips: Sequence[int], hidden: bool
    ) -> None:
        assert len(embeddings) == sum(lengths) <= engine.max_tokens
        assert len(lengths) <= MAX_TEXTS
        self.engine, self.embeddings, self.threads = engine, embeddings, engine.threads
        tokens = np.array(lengths, np.int64)
        starts = np.cumsum(tokens) - tokens
        room = -(-tokens // 64) * 64
        slots = np.cumsum(room) - room
        self.texts = np.ascontiguousarray(np.stack([starts, tokens, slots, np.minimum(skips, tokens)], axis=1))
        position = np.arange(len(embeddings)) - np.repeat(starts, tokens)
        self.tokens = np.ascontiguousarray(np.stack([position, position + np.repeat(slots, tokens)], axis=1))
        # Where some layer has fewer blocks of queries than threads, they are halved.
        size = POSITIONS if engine.fewest_heads * (-(-tokens // POSITIONS)).sum() >= engine.threads else POSITIONS // 2
        blocks = -(-tokens // size)
        text = np.repeat(np.arange(len(tokens)), blocks)
        first = (np.arange(len(text)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * size
        stop = np.minimum(first + size, tokens[text])
        self.blocks = np.ascontiguousarray(np.stack([text, first, stop], axis=1))
        self.slots = int(room.sum())
        self._hidden = hidden

    def begin(self) -> None:
        engine, plan = self.engine, self.engine._plan
        T = len(self.embeddings)
        engine._x[:T] = self.embeddings
        engine._arrays["shared"][:] = 0
        fields = {
            "T": T,
            "B": len(self.texts),
            "blocks": len(self.blocks),
            "token_table": self.tokens.ctypes.data,
            "text_table": self.texts.ctypes.data,
            "block_table": self.blocks.ctypes.data,
            "slots": self.slots,
            "stop_layer": engine._stop[0],
            "stop_step": engine._stop[1],
        }
        for name, value in fields.items():
            plan[PLAN.index(name)] = value

    def run(self, number: int) -> None:
        self.engine._run(self.engine._plan.ctypes.data, number)

    def end(self) -> None:
        engine, B = self.engine, len(self.texts)
        heads = int(engine._plan[PLAN.index("heads")])
        out = engine._arrays["head_b" if heads % 2 else "pooled"]
        self.vectors = out[: B * engine.dim].reshape(B, engine.dim).copy()
        if self._hidden:
            D = self.embeddings.shape[1]
            self.hidden = engine._arrays["h"][: self.embeddings.size].reshape(-1, D).copy()


def _bits(value: float) -> int:
    """A float32's bits, as an int64 field of a plan holds them."""
    return int(np.float32(value).view(np.int32))
