"""The door to the fast path: a model's matrices and norms once, then texts' embeddings in and vectors out.

It knows arrays, not files. workspace.py says what a model brings.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from .plan import FORMATS, LAYER, MATRICES, MATRIX, MAX_TEXTS, NORMS, PLAN, POSITIONS, STEPS
from .team import TEAM
from .workspace import Float32, LayerParts, Matrix, workspace

Run = Callable[[int, int], None]

LINE = 64  # bytes; all arrays begin at a multiple


ENGINES: "WeakSet[Engine]" = WeakSet()  # all that there are


def stop_idle_threads() -> None:
    """End the threads that run passes if no engine is left; another one would start them again."""
    if not ENGINES:
        TEAM.stop()


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
        layers: Sequence[LayerParts],
        norm: Float32,
        eps: float,
        heads: Sequence[Matrix],
        max_tokens: int,
        threads: int,
    ) -> None:
        self._run, self.threads, self.max_tokens = run, threads, max_tokens
        self._kept: list[Any] = [layers, norm, heads]  # the plan holds addresses: their arrays must live
        self.D, self.dim = len(norm), heads[-1].shape[0] if heads else len(norm)
        self.fewest_heads = min(layer.at.K for layer in layers)
        sizes = workspace(layers, self.D, heads, max_tokens, threads)
        self._arrays = {name: _room(size, dtype) for name, (size, dtype) in sizes.items()}
        self._arrays["ones"][:] = 1
        self._vectors = self._arrays["head_b" if len(heads) % 2 else "pooled"]
        self._plan = np.zeros(len(PLAN), np.int64)
        self._write(
            **{name: array.ctypes.data for name, array in self._arrays.items()},
            threads=threads,
            scratch_bytes=sizes["scratch"][0] // threads,
            L=len(layers),
            D=self.D,
            layers=self._address(np.concatenate([self._layer(layer) for layer in layers])),
            norm=self._address(norm),
            eps=_bits(eps),
            heads=len(heads),
            head_table=self._address(np.array([n for head in heads for n in self._matrix(head)], np.int64)),
        )
        self.stop_after()
        ENGINES.add(self)

    def _write(self, **fields: int) -> None:
        for name, value in fields.items():
            self._plan[PLAN.index(name)] = value

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

    def _layer(self, layer: LayerParts) -> NDArray[np.int64]:
        at = layer.at
        values = {
            **{name: self._address(np.array(self._matrix(layer.matrices[name]), np.int64)) for name in MATRICES},
            **{name: self._address(layer.norms[name]) for name in NORMS},
            "K": at.K,
            "G": at.N // at.K,
            "H": at.H,
            "radius": self.max_tokens if at.radius is None else at.radius,
            "scale": _bits(at.scale),
            "eps": _bits(at.eps),
            "cos": self._address(layer.rope[0]),
            "sin": self._address(layer.rope[1]),
        }
        return np.array([values[name] for name in LAYER], np.int64)

    def run(self, embeddings: Float32, lengths: Sequence[int], skips: Sequence[int], hidden: bool = False) -> "Pass":
        """Texts through the model. Safe to call from many threads.

        embeddings  float32 [T, D], scaled, texts one after the other
        lengths     of the texts, which add up to T <= max_tokens; at most MAX_TEXTS
        skips       how many leading tokens of a text the mean leaves out
        hidden      keep the trunk's vectors, too
        returns     with `vectors`, float32 [B, dim], and `hidden`, float32 [T, D]
        """
        work = Pass(self, embeddings, lengths, skips, hidden)
        TEAM.run(work)
        return work

    def begin(self, work: "Pass") -> None:
        """Make the workspace and the plan ready for a pass."""
        self._arrays["x"][: work.embeddings.size] = work.embeddings.reshape(-1)
        self._arrays["shared"][:] = 0
        self._write(
            T=len(work.embeddings),
            B=len(work.texts),
            blocks=len(work.blocks),
            token_table=work.tokens.ctypes.data,
            text_table=work.texts.ctypes.data,
            block_table=work.blocks.ctypes.data,
            slots=work.slots,
        )

    def compute(self, thread: int) -> None:
        """A thread's share of the pass that began."""
        self._run(self._plan.ctypes.data, thread)

    def vectors(self, B: int) -> Float32:
        """What the pass left for B texts: float32 [B, dim]."""
        return self._vectors[: B * self.dim].reshape(B, self.dim).copy()

    def hidden(self, T: int) -> Float32:
        """What the trunk left for T tokens: float32 [T, D]."""
        return self._arrays["h"][: T * self.D].reshape(T, self.D).copy()

    def stop_after(self, layer: int = -1, step: str = STEPS[-1]) -> None:
        """End passes after a layer's step, for comparing: `array` then has what the step left. No layer: to the end."""
        self._write(last=len(STEPS) * layer + STEPS.index(step))

    def array(self, name: str) -> NDArray[Any]:
        """An array of the workspace by its name in the plan, as the last pass left it."""
        return self._arrays[name]


class Pass:
    """One run of an engine, see Engine.run: the tables that plan.py describes, and what comes of them."""

    vectors: Float32
    hidden: Float32

    def __init__(
        self, engine: Engine, embeddings: Float32, lengths: Sequence[int], skips: Sequence[int], hidden: bool
    ) -> None:
        assert len(embeddings) == sum(lengths) <= engine.max_tokens
        assert len(lengths) <= MAX_TEXTS
        self.engine, self.embeddings, self.threads = engine, embeddings, engine.threads
        self._hidden = hidden
        tokens = np.array(lengths, np.int64)
        starts = np.cumsum(tokens) - tokens
        room = -(-tokens // 64) * 64
        slots = np.cumsum(room) - room
        self.slots = int(room.sum())
        self.texts = np.ascontiguousarray(np.stack([starts, tokens, slots, np.minimum(skips, tokens)], axis=1))
        position = np.arange(len(embeddings)) - np.repeat(starts, tokens)
        self.tokens = np.ascontiguousarray(np.stack([position, position + np.repeat(slots, tokens)], axis=1))
        # Where some layer has fewer blocks of queries than threads, blocks are halved.
        size = POSITIONS if engine.fewest_heads * (-(-tokens // POSITIONS)).sum() >= engine.threads else POSITIONS // 2
        blocks = -(-tokens // size)
        text = np.repeat(np.arange(len(tokens)), blocks)
        first = (np.arange(len(text)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * size
        self.blocks = np.ascontiguousarray(np.stack([text, first, np.minimum(first + size, tokens[text])], axis=1))

    def begin(self) -> None:
        self.engine.begin(self)

    def run(self, number: int) -> None:
        self.engine.compute(number)

    def end(self) -> None:
        self.vectors = self.engine.vectors(len(self.texts))
        if self._hidden:
            self.hidden = self.engine.hidden(len(self.embeddings))


def _room(size: int, dtype: Any) -> NDArray[Any]:
    """Zeros, of which only touched pages count as memory, at a multiple of LINE."""
    raw = np.zeros(size * np.dtype(dtype).itemsize + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size * np.dtype(dtype).itemsize].view(dtype)


def _bits(value: float) -> int:
    """A float32's bits, as an int64 field of a plan holds them."""
    return int(np.float32(value).view(np.int32))
