"""What happens to one row of activations between two products: norms, RoPE, GELU, and rounding to int8.

Letters: n elements of a row, a multiple of 32. Each function's meaning in NumPy is in reference.py under its name.
"""

import math
from typing import Any

import numpy as np

from .plan import ACTIVATIONS, GROUP
from .simd import (
    beside,
    excess_of,
    fma,
    kernel,
    largest_two,
    less_excess,
    load,
    magnitude,
    magnitude_keys,
    power_of_two,
    set_float,
    set_int32,
    splat,
    square_root,
    store,
    store_bytes,
    sum_of,
    sum_of_ints,
    to_ints,
    where_less,
    zeros,
)

# Adding 1.5 * 2^23 and taking it off again rounds a float32 below 2^22 to the nearest whole number, ties to even.
ROUNDER = np.float32(1.5 * 2**23)
LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH, LN2_LOW = np.float32(355 / 512), np.float32(-2.12194440e-4)  # their sum is ln 2; the first has 9 bits
# 1 + r + C2 r^2 + ... + C6 r^6 is within 5e-9 of e^r, relative, for |r| <= ln 2 / 2: the best such polynomial, rounded
# to float32. Taylor's, 1/2 ... 1/720, is off by 1.7e-7 at the ends.
C6, C5, C4, C3, C2 = (np.float32(c) for c in (0.00138137979, 0.00836874824, 0.0416684039, 0.166665196, 0.49999994))
ONE, HALF = np.float32(1), np.float32(0.5)
EXP_ZERO, EXP_MOST = np.float32(-87), np.float32(88)
GELU_LINEAR = np.float32(-2 * math.sqrt(2 / math.pi))
GELU_CUBIC = np.float32(-2 * math.sqrt(2 / math.pi) * 0.044715)
ROUNDED_UP = 1 + 2**-17  # makes good for the bits that a key lost
BY_CODE, BY_PAIR = np.float32(ROUNDED_UP / 127), np.float32(ROUNDED_UP / (127 * 128 + 63))  # code + 128 * excess


@kernel
def nearest(x: Any) -> Any:
    """x rounded to a whole number, ties to even; |x| < 2^22."""
    return (x + splat(ROUNDER)) - splat(ROUNDER)


@kernel
def exp(x: Any) -> Any:
    """e^x: exactly 0 below -87, as a denormal costs a hundred cycles wherever it is used; e^88 above 88; NaN for NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2. Measured on 4 million numbers: off by 0.87 units in the last place at most.
    """
    clipped = where_less(splat(EXP_MOST), x, splat(EXP_MOST), where_less(x, splat(EXP_ZERO), splat(EXP_ZERO), x))
    n = nearest(clipped * splat(LOG2_E))
    r = fma(n, splat(-LN2_LOW), fma(n, splat(-LN2_HIGH), clipped))
    p = fma(fma(fma(fma(splat(C6), r, splat(C5)), r, splat(C4)), r, splat(C3)), r, splat(C2))
    p = fma(fma(p, r, splat(ONE)), r, splat(ONE))
    return where_less(x, splat(EXP_ZERO), zeros(), p * power_of_two(n))


@kernel
def gelu_tanh(x: Any) -> Any:
    """0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3): no cancellation anywhere."""
    minus_2u = x * fma(x * x, splat(GELU_CUBIC), splat(GELU_LINEAR))
    return x / (splat(ONE) + exp(minus_2u))


@kernel
def inverse_rms(x: int, n: int, eps: Any) -> Any:
    """1 / sqrt(mean(x^2) + eps); four running sums, so that rounding errors grow with n / 64."""
    a = b = c = d = zeros()
    for i in range(0, n - 63, 64):
        place = x + 4 * i
        v0, v1, v2, v3 = load(place), load(place + 64), load(place + 128), load(place + 192)
        a, b, c, d = fma(v0, v0, a), fma(v1, v1, b), fma(v2, v2, c), fma(v3, v3, d)
    for i in range(n // 64 * 64, n, 16):
        v = load(x + 4 * i)
        a = fma(v, v, a)
    return ONE / square_root(sum_of((a + b) + (c + d)) / np.float32(n) + eps)


@kernel
def put_group(first: Any, second: Any, out: int, group: int, rounded: int) -> None:
    """32 values of a row, as the next product reads them: float32 as they are, or rounded to int8 with a scale.

    The scale is the second largest magnitude / 127; the largest value may be up to 128 times as large: it is code +
    128 * excess, both int8. Activations have heavy tails, and one value that rules a group would cost the 31 others
    their bits; of the rounding's noise a fifth to an eighth is left. See plan.ACTIVATIONS for what is stored.
    """
    if not rounded:
        store(out + group * 128, first)
        store(out + group * 128 + 64, second)
        return
    place = out + group * ACTIVATIONS
    keys, more_keys = magnitude_keys(first, 0), magnitude_keys(second, 16)
    two = largest_two(keys, more_keys)
    key, next_key = two >> 32, two & 0xFFFFFFFF
    scale = max(magnitude(next_key) * BY_CODE, magnitude(key) * BY_PAIR)
    inverse = ONE / scale if scale > np.float32(1e-30) else np.float32(0)
    low, high = to_ints(nearest(first * splat(inverse))), to_ints(nearest(second * splat(inverse)))
    low_excess, high_excess = excess_of(low, keys, key), excess_of(high, more_keys, key)
    store_bytes(place, less_excess(low, low_excess))
    store_bytes(place + 16, less_excess(high, high_excess))
    set_float(place + GROUP, scale)
    sums = sum_of_ints(beside(low + high, low_excess + high_excess))  # of both at once: neither needs 16 bits
    sum_of_numbers = ((sums + 0x8000) & 0xFFFF) - 0x8000
    set_int32(place + GROUP + 4, -sum_of_numbers)
    set_int32(place + GROUP + 8, (sums - sum_of_numbers >> 16 & 255) << (key & 3) * 8)
    set_int32(place + GROUP + 12, (key >> 2 & 7) * 64)


@kernel
def put_row(x: int, n: int, out: int, rounded: int) -> None:
    for group in range(n // GROUP):
        put_group(load(x + 128 * group), load(x + 128 * group + 64), out, group, rounded)


@kernel
def norm_row(x: int, n: int, weight: int, eps: Any, out: int, rounded: int) -> None:
    """rms_norm(x) * weight, where `weight` is 1 + the checkpoint's; then put_group."""
    inverse = splat(inverse_rms(x, n, eps))
    for group in range(n // GROUP):
        place, w = x + 128 * group, weight + 128 * group
        first = (load(place) * inverse) * load(w)
        second = (load(place + 64) * inverse) * load(w + 64)
        put_group(first, second, out, group, rounded)


@kernel
def add_norm_row(x: int, h: int, n: int, weight: int, eps: Any) -> None:
    """x += rms_norm(h) * weight"""
    inverse = splat(inverse_rms(h, n, eps))
    for i in range(0, n, 16):
        place = x + 4 * i
        store(place, load(place) + (load(h + 4 * i) * inverse) * load(weight + 4 * i))


@kernel
def norm_rotate(x: int, n: int, weight: int, eps: Any, cos: int, sin: int, scale: Any, out: int) -> None:
    """rms_norm(x) * weight, its pairs (i, i + n/2) turned by the position's angles, times `scale`.

    cos, sin   float32 [n/2] of this position
    """
    inverse = splat(inverse_rms(x, n, eps))
    half, factor = 2 * n, splat(scale)
    for i in range(0, 2 * n, 64):
        a = (load(x + i) * inverse) * load(weight + i)
        b = (load(x + half + i) * inverse) * load(weight + half + i)
        c, s = load(cos + i), load(sin + i)
        store(out + i, (a * c - b * s) * factor)
        store(out + half + i, (b * c + a * s) * factor)


@kernel
def geglu_row(gate_up: int, out: int, group: int, rounded: int) -> None:
    """gelu(gate) * up of 16 gates, their 16 ups, and 16 more of each; then put_group."""
    first = gelu_tanh(load(gate_up)) * load(gate_up + 64)
    second = gelu_tanh(load(gate_up + 128)) * load(gate_up + 192)
    put_group(first, second, out, group, rounded)
