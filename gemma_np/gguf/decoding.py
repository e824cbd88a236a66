"""The blocks of GGUF's types that are not ours: their values in float32, or their codes in q8_0.

A block of 32 values has one float16 scale d, and in Q4_1 and Q5_1 a float16 minimum m. A block of 256 values (the K
types) has both for the whole of it, and a small integer of each for every 32 values (Q6_K: for every 16). With q the
code of a value, from its bits,

    Q4_1, Q5_1   d q + m
    Q5_0         d (q - 16)
    IQ4_NL       d LEVELS[q]
    Q4_K, Q5_K   d scale q - dmin min
    Q6_K         d scale (q - 32)

Q5_0's and IQ4_NL's are q8_0's values with other bits: a float16 times a whole number from -127 to 127, 32 to a scale.
The others have no such form and are held in float32, which has their exact values, or for a sum the nearest.

Source: llama.cpp, ggml-common.h (block_q4_1 and so on) and ggml-quants.c (dequantize_row_q4_1 and so on). Its package
gguf judges this file in the tests.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gemma_np.arrays import AnyArray, Float32
from gemma_np.weights.quantize import ZERO, Float16, UInt8

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)


def halves(packed: UInt8) -> UInt8:  # [n, b] -> [n, 2, b]
    """The low four bits of each byte, then the high ones."""
    return packed[:, None] >> np.array([[0], [4]], np.uint8) & np.uint8(15)


def fifth_bits(packed: UInt8) -> UInt8:  # [n, 4] -> [n, 32]
    """A bit for each of 32 codes of five bits, as 16 or 0."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def float16s(blocks: UInt8, start: int, count: int = 1) -> Float16:  # [n, b] -> [n, count]
    return np.ascontiguousarray(blocks[:, start : start + 2 * count]).view("<f2")


def float32s(blocks: UInt8, start: int) -> Float32:  # [n, b] -> [n, 1]
    return float16s(blocks, start).astype(np.float32)


def decode_q4_1(blocks: UInt8) -> Float32:  # [n, 20] -> [n, 32]
    codes = halves(blocks[:, 4:]).reshape(-1, 32)
    values: Float32 = float32s(blocks, 0) * codes + float32s(blocks, 2)
    return values


def decode_q5_1(blocks: UInt8) -> Float32:  # [n, 24] -> [n, 32]
    codes = halves(blocks[:, 8:]).reshape(-1, 32) | fifth_bits(blocks[:, 4:8])
    values: Float32 = float32s(blocks, 0) * codes + float32s(blocks, 2)
    return values


def six_bits(packed: UInt8) -> tuple[UInt8, UInt8]:  # [n, 12] -> [n, 8], [n, 8]
    """Eight scales and eight minima of a block of 256. The first four of each are the low six bits of their bytes; of
    the others the four low bits share the last four bytes, and the two high bits are above the first four."""
    scales, minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    others = rest & np.uint8(15) | scales >> np.uint8(2) & np.uint8(48)
    other_minima = rest >> np.uint8(4) | minima >> np.uint8(2) & np.uint8(48)
    low = np.uint8(63)
    return np.concatenate([scales & low, others], axis=1), np.concatenate([minima & low, other_minima], axis=1)


def scaled(blocks: UInt8, codes: UInt8) -> Float32:  # [n, b], [n, 8, 32] -> [n, 256]
    """d scale q - dmin min, of Q4_K and Q5_K."""
    scales, minima = six_bits(blocks[:, 4:16])
    steps, offsets = float32s(blocks, 0) * scales, float32s(blocks, 2) * minima
    values: Float32 = steps[:, :, None] * codes - offsets[:, :, None]
    return values.reshape(-1, 256)


def decode_q4_k(blocks: UInt8) -> Float32:  # [n, 144] -> [n, 256]
    return scaled(blocks, halves(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32))


def decode_q5_k(blocks: UInt8) -> Float32:  # [n, 176] -> [n, 256]
    """Bit j of byte i of the 32 in front of the others is the fifth of code i of the j-th group of 32."""
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return scaled(blocks, halves(blocks[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32) | fifth << np.uint8(4))


def decode_q6_k(blocks: UInt8) -> Float32:  # [n, 210] -> [n, 256]
    """d scale (q - 32). A block is 128 bytes with the codes' low four bits, 64 with their high two, 16 scales of one
    byte, and d in float16; its 256 values are two halves of four rows of 32, of which each byte has a part."""
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 1, 2, 32) >> np.array([0, 4], np.uint8).reshape(2, 1, 1) & 15
    high = blocks[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low.reshape(n, 2, 4, 32) | high << np.uint8(4)).astype(np.float32) - np.float32(32)
    scales = blocks[:, 192:208].view(np.int8).reshape(n, 2, 4, 2).astype(np.float32)
    d = float32s(blocks, 208)
    values = codes.reshape(n, 2, 4, 2, 16) * (d[:, :, None, None] * scales)[..., None]
    return values.reshape(n, 256)


def recode_q5_0(blocks: UInt8) -> UInt8:  # [n, 22] -> [n, 32]
    codes = halves(blocks[:, 6:]).reshape(-1, 32) | fifth_bits(blocks[:, 2:6])
    return codes + np.uint8(ZERO["q8_0"] - 16)


def recode_iq4_nl(blocks: UInt8) -> UInt8:  # [n, 18] -> [n, 32]
    levels = (LEVELS + ZERO["q8_0"]).astype(np.uint8)
    return levels[halves(blocks[:, 2:]).reshape(-1, 32)]


class Decoded(NamedTuple):
    """How a type becomes float32: its decoder, and where a block has how many float16 values."""

    decode: Callable[[UInt8], Float32]
    scales: tuple[int, int]

    def scales_of(self, blocks: UInt8) -> Float16:
        return float16s(blocks, *self.scales)


DECODED = {
    "Q4_1": Decoded(decode_q4_1, (0, 2)),
    "Q5_1": Decoded(decode_q5_1, (0, 2)),
    "Q4_K": Decoded(decode_q4_k, (0, 2)),
    "Q5_K": Decoded(decode_q5_k, (0, 2)),
    "Q6_K": Decoded(decode_q6_k, (208, 1)),
}
# Types whose values are q8_0's: from blocks, which begin with the scale, to q8_0's codes.
RECODED: dict[str, Callable[[UInt8], UInt8]] = {"Q5_0": recode_q5_0, "IQ4_NL": recode_iq4_nl}


def q8_0_of(blocks: AnyArray, kind: str) -> tuple[UInt8, Float16]:  # [rows, bytes] -> [rows, I], [rows, I/32]
    """Codes and scales of q8_0 that have the very values of rows in one of RECODED."""
    rows, length = len(blocks), {"Q5_0": 22, "IQ4_NL": 18}[kind]
    each = blocks.reshape(-1, length)
    scales = float16s(each, 0).astype(np.float16)
    return RECODED[kind](each).reshape(rows, -1), scales.reshape(rows, -1)
