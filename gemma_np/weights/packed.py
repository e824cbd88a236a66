"""A matrix in the order in which kernels read it: sixteen rows (a panel) at a time.

Letters: O outputs, I inputs, P panels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from gemma_np.arrays import AnyArray, Float32
from gemma_np.kernels.plan import GROUP
from gemma_np.weights.quantize import Float16, UInt8, check_shape, decode, encode

LANES = 16  # rows of a panel: with 4 inputs each, one vector of 64 bytes


CHUNK = 64  # rows encoded at a time: their float32 temporaries stay in the second-level cache


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix [O, I] in the order in which kernels read it: panels of 16 rows, 4 inputs of each side by side.

    format   codes                              holds row o, input i (p = o // 16, lane = o % 16) at
    "f32"    float32 [O/16, I, 16]              [p, i, lane]
    "q8_0"   uint8 [O/16, I/4, 16, 4]           [p, i // 4, lane, i % 4]
    "q4_0"   uint8 [O/16, I/32, 4, 16, 4]       [p, i // 32, i // 4 % 4, lane, i % 4], in its low four bits where
                                                i % 32 < 16, else in its high ones
    scales   float16 [O/16, I/32, 16]           [p, i // 32, lane]; None for "f32"

    64 bytes are a step, 4 inputs of 16 rows, for vectors of 64, 32 or 16 bytes; in q4_0 two steps, k and k + 4 of a
    block's eight. A row's 16 bytes of a q4_0 block are those of llama.cpp's block, four at a time.
    Panels may lie apart (gate and up take turns in one buffer); within a panel all is contiguous. `empty` starts codes
    and scales at a multiple of 64 bytes.
    """

    format: str
    shape: tuple[int, int]
    codes: AnyArray
    scales: Float16 | None

    def __post_init__(self) -> None:
        found = (self.codes.shape, None if self.scales is None else self.scales.shape)
        assert found == layout(self.shape, self.format), found

    @classmethod
    def empty(cls, shape: tuple[int, int], format: str, name: str = "") -> "Packed":
        """Room for a matrix; InputError for a shape that the format cannot hold."""
        check_shape(shape, format, name, LANES)
        codes, scales = layout(shape, format)
        dtype = np.float32 if format == "f32" else np.uint8
        return cls(format, shape, aligned_empty(codes, dtype), aligned_empty(scales, np.float16) if scales else None)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def aligned(self) -> "Packed":
        """Itself if codes and scales start at multiples of 64 bytes, as kernels need it, else a copy that does."""
        if self.codes.ctypes.data % 64 == 0 and (self.scales is None or self.scales.ctypes.data % 64 == 0):
            return self
        copy = Packed.empty(self.shape, self.format)
        copy.codes[...] = self.codes
        if copy.scales is not None:
            copy.scales[...] = self.scales
        return copy

    def encoded(self, start: int = 0, stop: int | None = None) -> tuple[UInt8, Float16]:  # -> [n, I], [n, I/32]
        """Codes and scales of rows `start` to `stop`, both multiples of 16, as `encode` gives them."""
        stop = self.shape[0] if stop is None else stop
        assert self.scales is not None
        assert start % LANES == stop % LANES == 0 <= start <= stop <= self.shape[0], (start, stop, self.shape)
        panels, rows, inputs = slice(start // LANES, stop // LANES), stop - start, self.shape[1]
        codes = self.codes[panels]
        if self.format == "q4_0":
            codes = np.stack([codes & 15, codes >> 4], axis=2)  # [P, I/32, 2, 4, 16, 4]
        codes = codes.reshape(len(codes), inputs // 4, LANES, 4).transpose(0, 2, 1, 3).reshape(rows, inputs)
        return codes, self.scales[panels].transpose(0, 2, 1).reshape(rows, inputs // GROUP)

    def rows(self, start: int, stop: int) -> Float32:  # -> [stop - start, I]
        """Rows `start` to `stop`, both multiples of 16, as float32, exactly."""
        if self.scales is not None:
            return decode(*self.encoded(start, stop), self.format)
        assert start % LANES == stop % LANES == 0 <= start <= stop <= self.shape[0], (start, stop, self.shape)
        codes = self.codes[start // LANES : stop // LANES]
        return codes.transpose(0, 2, 1).copy().reshape(stop - start, self.shape[1])

    def dequantize(self) -> Float32:  # -> [O, I]
        """All rows as float32, exactly."""
        return self.rows(0, self.shape[0])


def pack(w: Float32, format: str, out: Packed | None = None, name: str = "") -> Packed:
    """Encode a matrix and lay it out for kernels, 64 rows at a time: little memory is needed besides the result.

    w        float32 [O, I]; O a multiple of 16, and I of 32 unless format is "f32"
    out      where to write, of w's shape and that format; None: a new one, which is returned
    name     the tensor's, for error messages
    """
    out = out or Packed.empty((w.shape[0], w.shape[1]), format, name)
    assert w.dtype == np.float32, w.dtype
    assert (out.shape, out.format) == (w.shape, format), (out.shape, out.format, w.shape, format)
    for start in range(0, len(w), CHUNK):
        rows = w[start : start + CHUNK]
        panels = slice(start // LANES, (start + len(rows)) // LANES)
        if out.scales is None:
            out.codes[panels] = rows.reshape(-1, LANES, w.shape[1]).transpose(0, 2, 1)
            continue
        pack_codes(*encode(rows, format, name), out, start)
    return out


def pack_codes(codes: UInt8, scales: Float16, out: Packed, start: int = 0) -> None:
    """Lay rows out that are encoded already.

    codes, scales   [n, I] and [n, I/32], as `encode` gives them; n a multiple of 16
    out             where they become rows `start` to `start + n`
    """
    assert out.scales is not None
    panels = slice(start // LANES, (start + len(codes)) // LANES)
    out.scales[panels] = scales.reshape(-1, LANES, scales.shape[1]).transpose(0, 2, 1)
    if out.format == "q4_0":
        halves = codes.reshape(*scales.shape, 2, GROUP // 2)
        codes = halves[..., 0, :] | halves[..., 1, :] << np.uint8(4)
    words = codes.view(np.uint32).reshape(-1, LANES, *out.codes.shape[1:-2])  # 4 inputs of a row move as one
    out.codes[panels].view(np.uint32)[..., 0] = np.moveaxis(words, 1, -1)


def parts_of(whole: Packed, rows: Sequence[int], in_turn: bool) -> list[Packed]:
    """The matrices, of so many rows each, that a fused one is made of."""
    parts = []
    for i, count in enumerate(rows):
        first = sum(rows[:i]) // LANES
        panels = slice(i, None, len(rows)) if in_turn else slice(first, first + count // LANES)
        scales = None if whole.scales is None else whole.scales[panels]
        parts.append(Packed(whole.format, (count, whole.shape[1]), whole.codes[panels], scales))
    return parts


def layout(shape: tuple[int, int], format: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The shapes of codes and scales; see `Packed`."""
    panels, inputs = shape[0] // LANES, shape[1]
    if format == "f32":
        return (panels, inputs, LANES), None
    steps = (inputs // 4,) if format == "q8_0" else (inputs // GROUP, 4)
    return (panels, *steps, LANES, 4), (panels, inputs // GROUP, LANES)


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> AnyArray:
    """np.empty, starting at a multiple of 64 bytes: a vector that straddles two cache lines costs a third more."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + 63, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)
