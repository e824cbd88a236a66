"""Blocks of GGUF's types: of any bits, and their values one after the other, as ggml-quants.c computes them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gemma_np.gguf.file import NUMBERS, TYPES

F = np.float32
# Where a block has its float16 values.
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q5_0": (0,), "IQ4_NL": (0,)}


def blocks_of(kind: str, n: int, seed: int = 0, largest: float = 2) -> Any:
    """Blocks of any bits, uint8 [n, bytes], with scales that are numbers."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n, TYPES[NUMBERS[kind]][2]), dtype=np.uint8)
    for place in SCALES[kind]:
        blocks[:, place : place + 2] = rng.uniform(-largest, largest, (n, 1)).astype("<f2").view(np.uint8)
    return blocks


def values_of(kind: str, blocks: Any) -> Any:
    """Their values, float32 [n, values of a block]."""
    return np.array([BY_THE_BOOK[kind](block.tobytes()) for block in blocks], F)


def float16(block: bytes, place: int) -> Any:
    return np.frombuffer(block[place : place + 2], "<f2")[0].astype(F)


def fifth(x: bytes, place: int) -> list[int]:
    qh = int.from_bytes(x[place : place + 4], "little")
    return [(qh >> j & 1) << 4 for j in range(32)]


def q4_1(x: bytes) -> list[Any]:
    d, m, qs = float16(x, 0), float16(x, 2), x[4:]
    return [F(q & 15) * d + m for q in qs] + [F(q >> 4) * d + m for q in qs]


def q5_0(x: bytes) -> list[Any]:
    d, qh, qs = float16(x, 0), fifth(x, 2), x[6:]
    low = [F((qs[j] & 15 | qh[j]) - 16) * d for j in range(16)]
    return low + [F((qs[j] >> 4 | qh[j + 16]) - 16) * d for j in range(16)]


def q5_1(x: bytes) -> list[Any]:
    d, m, qh, qs = float16(x, 0), float16(x, 2), fifth(x, 4), x[8:]
    low = [F(qs[j] & 15 | qh[j]) * d + m for j in range(16)]
    return low + [F(qs[j] >> 4 | qh[j + 16]) * d + m for j in range(16)]


def iq4_nl(x: bytes) -> list[Any]:
    values = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    d, qs = float16(x, 0), x[2:]
    return [d * F(values[q & 15]) for q in qs] + [d * F(values[q >> 4]) for q in qs]


def scale_min_k4(j: int, q: bytes) -> tuple[int, int]:
    if j < 4:
        return q[j] & 63, q[j + 4] & 63
    return q[j + 4] & 15 | q[j - 4] >> 6 << 4, q[j + 4] >> 4 | q[j] >> 6 << 4


def q4_k(x: bytes, high: bytes = bytes(32), at: int = 16) -> list[Any]:
    d, dmin, scales, y = float16(x, 0), float16(x, 2), x[4:16], []
    for j in range(8):
        sc, m = scale_min_k4(j, scales)
        d1, m1 = d * F(sc), dmin * F(m)
        for i in range(32):
            q = x[at + 32 * (j // 2) + i]
            code = (q & 15 if j % 2 == 0 else q >> 4) + (16 if high[i] >> j & 1 else 0)
            y.append(d1 * F(code) - m1)
    return y


def q5_k(x: bytes) -> list[Any]:
    return q4_k(x, x[16:48], 48)


def q6_k(x: bytes) -> list[Any]:
    low, high, scales, d = x[:128], x[128:192], np.frombuffer(x[192:208], np.int8), float16(x, 208)
    y = [F(0)] * 256
    for half in range(2):
        for i in range(32):
            q, h, s = low[64 * half :], high[32 * half + i], scales[8 * half + i // 16 :]
            for row, low_bits in enumerate((q[i] & 15, q[i + 32] & 15, q[i] >> 4, q[i + 32] >> 4)):
                code = F((low_bits | (h >> 2 * row & 3) << 4) - 32)
                y[128 * half + 32 * row + i] = d * F(s[2 * row]) * code
    return y


BY_THE_BOOK: dict[str, Callable[[bytes], list[Any]]] = {
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
}
