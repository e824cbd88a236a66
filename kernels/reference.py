"""What each kernel means, in plain NumPy, under the kernel's name: slow, obvious, kept for ever.

Kernels work on addresses; here are arrays. What is rounded to whole numbers is exact: equal means equal. All else is
float64, the judge of float32: tests/test_kernels.py derives how far a kernel may be from it.

Letters: T tokens, R rows, I inputs, O outputs, F feed-forward, G heads that share a key/value head, H head size.
"""

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

GROUP = 32
ROUNDED = np.dtype(  # a group of activations, see plan.ACTIVATIONS
    [
        ("codes", np.int8, GROUP),
        ("scale", np.float32),
        ("start", np.int32),
        ("excess", np.int8, 4),
        ("offset", np.int32),
    ]
)
FAR = -1e30  # the score of a key that a query may not see


def exp(x: Float32) -> Float64:  # [...] -> [...]
    """e^x; 0 below -87, e^88 above 88, NaN for NaN."""
    return np.where(x < -87, 0.0, np.exp(np.minimum(x.astype(np.float64), 88)))


def gelu_tanh(x: Float32 | Float64) -> Float64:  # [...] -> [...]
    """0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + e^(-2u)): 1 + tanh(u) would cancel."""
    x64 = x.astype(np.float64)
    u = math.sqrt(2 / math.pi) * (x64 + 0.044715 * x64**3)
    with np.errstate(over="ignore"):
        return x64 / (1 + np.exp(-2 * u))


def inverse_rms(x: Float32, eps: float) -> Float64:  # [..., n] -> [..., 1]
    """1 / sqrt(mean(x^2) + eps)"""
    mean: Float64 = np.square(x.astype(np.float64)).mean(axis=-1, keepdims=True)
    return 1 / np.sqrt(mean + float(np.float32(eps)))


def put_row(x: Float32) -> NDArray[np.void]:  # [..., n] -> ROUNDED [..., n/32]
    """Every 32 values rounded to whole numbers of a scale: all but the largest to int8, that one code + 128 * excess.

    The scale is the second largest magnitude / 127, or the largest / 16319 if that is more; both are cut to 18 bits and
    rounded up again. Each step is one float32 operation; scales up to 1e-30 have no codes. `start` is minus the sum of
    the numbers, and `offset` where the weights for the excess lie among a group's.
    """
    groups = x.reshape(*x.shape[:-1], -1, GROUP)
    keys = (np.abs(groups).view(np.int32) & -32) | np.arange(GROUP, dtype=np.int32)  # the last of equals is the largest
    ordered = np.sort(keys, axis=-1) & -32
    up = 1 + 2**-17
    second, most = (ordered[..., i].view(np.float32) for i in (-2, -1))
    scale = np.maximum(second * np.float32(up / 127), most * np.float32(up / (127 * 128 + 63)))
    inverse = np.float32(1) / np.where(scale > np.float32(1e-30), scale, np.float32(np.inf))
    numbers = np.rint(groups * inverse[..., None]).astype(np.int32)
    largest = keys.argmax(axis=-1)
    lanes = np.arange(GROUP) == largest[..., None]
    excess = np.where(lanes, (numbers + 64) >> 7, 0)

    rounded = np.zeros(scale.shape, ROUNDED)
    rounded["codes"] = numbers - 128 * excess
    rounded["scale"] = scale
    rounded["start"] = -numbers.sum(axis=-1)
    four = np.arange(4) == (largest % 4)[..., None]
    rounded["excess"] = np.where(four, excess.sum(axis=-1)[..., None], 0)
    rounded["offset"] = largest // 4 * 64
    return rounded


def numbers_of(a: NDArray[np.void]) -> NDArray[np.int64]:  # ROUNDED [..., n/32] -> [..., n/32, 32]
    """Codes with the excess, times 128, at its four inputs."""
    inputs = a["offset"][..., None] // 16 + np.arange(4)
    whole = a["codes"].astype(np.int64)
    added = np.take_along_axis(whole, inputs, axis=-1) + 128 * a["excess"].astype(np.int64)
    np.put_along_axis(whole, inputs, added, axis=-1)
    return whole


def norm_row(x: Float32, weight: Float32, eps: float) -> Float64:  # [..., n], [n] -> [..., n]
    """x / sqrt(mean(x^2) + eps) * weight, where `weight` is 1 + the checkpoint's. Rounded, if at all, by put_row."""
    return x * inverse_rms(x, eps) * weight


def add_norm_row(x: Float32, h: Float32, weight: Float32, eps: float) -> Float64:  # [..., n] x 2, [n] -> [..., n]
    """x + norm_row(h)"""
    return x + norm_row(h, weight, eps)


def norm_rotate(x: Float32, weight: Float32, eps: float, cos: Float32, sin: Float32, scale: float) -> Float64:
    """norm_row(x), pairs (i, i + n/2) turned by the position's angles, times `scale`.  [n] x 2, [n/2] x 2 -> [n]"""
    a, b = np.split(norm_row(x, weight, eps), 2)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin]) * float(np.float32(scale))


def geglu_row(gate_up: Float32) -> Float64:  # [64] -> [32]
    """gelu(gate) * up of 16 gates, 16 ups, 16 gates, 16 ups."""
    gate, up = gate_up.reshape(2, 2, 16).transpose(1, 0, 2)
    return (gelu_tanh(gate) * up).reshape(-1)


def tile_floats(a: Float32, w: Float32, out: Float32 | None = None, factors: Float32 | None = None) -> Float64:
    """a @ w + out * factors.  [R, I], [I, O], [R, O], [R] -> [R, O]"""
    total = a.astype(np.float64) @ w
    return total if out is None or factors is None else total + out.astype(np.float64) * factors[:, None]


def whole_numbers(codes: NDArray[np.uint8], format: str) -> NDArray[np.int64]:  # packed -> [O, I/32, 32]
    """The whole numbers, code - zero, of a packed matrix.

    codes   "q8_0": [O/16, I/4, 16, 4], "q4_0": [O/16, I/32, 4, 16, 4] with inputs 16 to 31 of 32 in the high four bits
    """
    if format == "q4_0":
        codes = np.concatenate([codes & 15, codes >> 4], axis=2)  # [O/16, I/32, 8, 16, 4]
    panels = codes.reshape(len(codes), -1, GROUP // 4, 16, 4).transpose(0, 3, 1, 2, 4)
    return panels.reshape(16 * len(codes), -1, GROUP).astype(np.int64) - (8 if format == "q4_0" else 128)


def tile_bytes(a: NDArray[np.void], w: NDArray[np.int64], steps: NDArray[np.float16]) -> Float64:
    """For each group of 32 inputs a whole number, times the scales of both sides, and the sum of all groups.

    a         ROUNDED [R, I/32]
    w, steps  whole_numbers [O, I/32, 32] and float16 scales [O, I/32]
    returns   [R, O]
    """
    products = np.einsum("rgi,ogi->rog", numbers_of(a), w)
    scales = a["scale"].astype(np.float64)[:, None] * steps.astype(np.float64)
    return (products * scales).sum(axis=-1)


def mask_row(scores: Float32, first: int, last: int) -> Float32:  # [64] -> [64]
    """Scores of keys outside first..last become FAR."""
    key = np.arange(len(scores))
    return np.where((key < first) | (key > last), np.float32(FAR), scores)


def softmax_step(scores: Float32, maximum: float, total: float) -> tuple[Float64, float, float, float]:
    """64 scores, the maximum and total so far -> exp(score - new maximum), the new maximum, the new total, and the
    factor that brings older sums to the new maximum."""
    now = max(maximum, float(scores.max()))
    weights = np.exp(scores.astype(np.float64) - now)
    factor = math.exp(maximum - now)
    return weights, now, total * factor + float(weights.sum()), factor


def attend(q: Float32, keys: Float32, values: Float32, radius: int) -> Float64:
    """softmax(q k^T) v over the keys within `radius`.  [T, G, H], [T, H], [T, H] -> [T, G * H]"""
    T, G, H = q.shape
    scores = np.einsum("tgh,sh->tgs", q.astype(np.float64), keys)
    far = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) > radius
    scores[np.broadcast_to(far[:, None], scores.shape)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights @ values).reshape(T, G * H)


def product(a: Float32, w: Float32) -> Float64:  # [R, I], [O, I] -> [R, O]
    """a @ w.T; for packed weights it is tile_bytes."""
    return tile_floats(a, w.T)


def geglu_product(gate: Float64, up: Float64) -> Float64:  # [R, F] x 2 -> [R, F]
    """gelu(gate) * up, of the products of both matrices. Rounded, if at all, by put_row."""
    return gelu_tanh(gate) * up


def pool(h: Float32, skip: int) -> Float64:  # [T, D] -> [D]
    """The mean over the tokens from `skip` on; zeros if none is left."""
    counted = h[skip:].astype(np.float64)
    mean: Float64 = counted.sum(axis=0) / max(len(counted), 1)
    return mean
