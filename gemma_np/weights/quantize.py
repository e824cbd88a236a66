"""The formats of quantised matrices: what a code means, how it is rounded, and how far off it can be.

A row of a matrix [O, I] is cut into groups of 32 inputs, which llama.cpp calls blocks. A group has one float16 scale
and 32 unsigned codes, and

    value = (code - zero) * scale          q8_0: zero 128, codes 1 .. 255        q4_0: zero 8, codes 0 .. 15

exactly: code - zero has at most 7 bits, a float16 has 11, and their product fits the 24 bits of a float32.
The values are those of llama.cpp's formats of the same names, bit for bit, so that checkpoints trained for them lose
nothing. Source: llama.cpp, ggml-quants.c (quantize_row_q8_0_ref, quantize_row_q4_0_ref); its package gguf, quants.py.

Where codes lie in memory, for kernels: packed.py; in files: blocks.py. Letters: O outputs, I inputs.
"""

import numpy as np
from numpy.typing import NDArray

from gemma_np.arrays import Float32
from gemma_np.errors import InputError, WeightsError
from gemma_np.kernels.plan import FORMATS, GROUP

UInt8 = NDArray[np.uint8]
Float16 = NDArray[np.float16]

QUANTIZATIONS = ("q8_0", "q4_0", "mixed")  # what `quantization=` accepts, apart from None
ZERO = {"q8_0": 128, "q4_0": 8}  # the code that means 0
BITS = {"f32": 32.0, "q8_0": 8.5, "q4_0": 4.5}  # per value, scales included
STEPS = {"q8_0": 127, "q4_0": 8}  # scales from 0 to a block's largest magnitude
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


def format_of(quantization: str | None, tensor_name: str) -> str:
    """The format in which a matrix is held: "f32", "q8_0" or "q4_0".

    quantization  None, or one of QUANTIZATIONS; "mixed" is q8_0 for attention, q4_0 for all else (Google's own mixed
                  precision has int8 and int4 in the same places, but one scale per row)
    tensor_name   a matrix's, as in the checkpoint: "layers.0.mlp.up_proj.weight"
    """
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise InputError(f"quantization = {quantization!r} is not known; expected None, {', '.join(QUANTIZATIONS)}")
    if quantization == "mixed":
        return "q8_0" if ".self_attn." in tensor_name else "q4_0"
    return quantization or "f32"


def encode(x: Float32, format: str, name: str = "") -> tuple[UInt8, Float16]:
    """Values -> codes and scales.

    x        float32 [n, I], I a multiple of 32
    format   "q8_0" or "q4_0"
    name     the tensor's, for error messages
    returns  codes uint8 [n, I], scales float16 [n, I/32]

    WeightsError for NaN, and for magnitudes from 8,321,040 (q8_0) or 524,160 (q4_0) on: the scale overflows float16.
    """
    check_shape(x.shape, format, name)
    assert format != "f32"
    blocks = np.ascontiguousarray(x).reshape(len(x), x.shape[1] // GROUP, GROUP)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # what overflows is refused, below
        codes, d = encode_q8_0(blocks) if format == "q8_0" else encode_q4_0(blocks)
        scales = d.astype(np.float16)
    if not np.isfinite(scales).all():
        raise WeightsError(
            f"{name or 'tensor'}: the largest magnitude is {np.abs(x).max():.7g}, but {format} holds finite values "
            f"below {65520 * STEPS[format]:,} only, because scales are float16. Use quantization=None"
        )
    return codes.reshape(x.shape), scales


def encode_q8_0(blocks: Float32) -> tuple[UInt8, Float32]:  # [n, I/32, 32] -> codes [n, I/32, 32], d [n, I/32]
    """q8_0: 8.5 bits per value. d = max|x| / 127, code = 128 + x/d, halves rounded away from zero.

    d is float32 while codes are computed and is then rounded to the float16 that is stored. Hence

        |x - value| <= d (1/2 + 2^-15) + 127 max(d 2^-11, 2^-25)

    half a step and the roundings of 1/d and x/d (at most 127.1 of relative size 2^-23, under 2^-15), and 127 times the
    scale's rounding, which is relative for normal float16 and absolute below 2^-14. For d >= 2^-14, which is
    max|x| >= 0.0078, that is under 0.563 d, or 0.0045 max|x|.

    Edges: a block of zeros has scale 0 and codes 128. Up to d = 2^-25 the scale is 0, and so is every value. Up to
    d = 2^-128, 1/d overflows: the codes are 128 here, undefined in llama.cpp.
    """
    d = np.abs(blocks).max(axis=-1) / np.float32(127)
    steps = blocks * reciprocal(d)[..., None]
    # The cast cuts towards zero, so add a half first; but 0.49999997 + 0.5 rounds up to 1. With the float32 below a
    # half it stays under 1, and n + 1/2 still comes to n + 1, by the sum's own rounding.
    steps += np.copysign(BELOW_HALF, steps)
    codes = steps.astype(np.int8).view(np.uint8)
    codes ^= 128  # adds 128, modulo 256
    return codes, d


def encode_q4_0(blocks: Float32) -> tuple[UInt8, Float32]:  # [n, I/32, 32] -> codes [n, I/32, 32], d [n, I/32]
    """q4_0: 4.5 bits per value. d = m / -8, m the first value of largest magnitude; code = min(floor(x/d + 8.5), 15).

    So m has code 0, exactly -8 steps, and d has the opposite sign of m. On m's other side there are only 7 steps:
    what is beyond 7.5 has the top code, 15, and errs by up to a whole step.

        |x - value| <= |d| (max(1/2, x/d - 7) + 2^-19) + 8 max(|d| 2^-11, 2^-25)

    with the roundings of 1/d, x/d and the sum (8 * 2^-23 and 2^-20) under 2^-19, and 8 times the scale's rounding.
    For |d| >= 2^-14, which is |m| >= 0.0005, that is under 0.504 |d|, or 0.063 |m|; under 1.004 |d| at the top.

    Edges: a block of zeros has scale -0 and codes 8. Up to |d| = 2^-25 the scale is 0, and so is every value. Up to
    |d| = 2^-128, 1/d overflows: the codes are 8 here, undefined in llama.cpp.
    """
    first = np.abs(blocks).argmax(axis=-1, keepdims=True)
    d = np.take_along_axis(blocks, first, axis=-1)[..., 0] / np.float32(-8)
    steps = blocks * reciprocal(d)[..., None]
    steps += np.float32(8.5)
    codes = steps.astype(np.uint8)  # never negative, so that cutting towards zero is floor
    return np.minimum(codes, 15, out=codes), d


def reciprocal(d: Float32) -> Float32:
    """1/d; 0 where that is infinite."""
    inverse: Float32 = np.float32(1) / d
    inverse[np.isinf(inverse)] = 0
    return inverse


def decode(codes: UInt8, scales: Float16, format: str) -> Float32:  # [n, I], [n, I/32] -> [n, I]
    """(code - zero) * scale, exact."""
    values = codes.reshape(*scales.shape, GROUP).astype(np.float32)
    values -= ZERO[format]
    values *= scales[..., None]
    return values.reshape(codes.shape)


def quantized_rows(rows: Float32, format: str, name: str = "") -> Float32:  # [n, D] -> [n, D]
    """Encoded and decoded again: rows read from a file get the values that a quantised table would have."""
    return rows if format == "f32" else decode(*encode(rows, format, name), format)


def check_shape(shape: tuple[int, ...], format: str, name: str, lanes: int = 1) -> None:
    """InputError for an unknown format, and for a shape that is not [a multiple of `lanes`, a multiple of 32]."""
    if format not in FORMATS:
        raise InputError(f"format {format!r} is not known; expected {', '.join(FORMATS)}")
    block = 1 if format == "f32" else GROUP
    if len(shape) != 2 or shape[0] % lanes or shape[1] % block:
        raise InputError(
            f"{name or 'tensor'} has shape {shape}; {format} needs two axes, multiples of {lanes} and of {block}. "
            "quantization=None runs every size"
        )
