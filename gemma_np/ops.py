"""One function per equation, float32 in and float32 out.

Scalars come from `math`, never from NumPy: a np.float64 scalar would turn a float32 array into float64.
Letters: T tokens, D hidden size, N query heads, K key/value heads, H head size.
"""

import math

import numpy as np

from gemma_np.arrays import Bool, Float32


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:  # [..., D], [D] -> [..., D]
    """x / sqrt(mean(x^2) + eps) * (1 + weight).  Gemma stores weight - 1 (transformers, Gemma3RMSNorm)."""
    mean_square = np.vecdot(x, x)[..., None] / np.float32(x.shape[-1])
    normed: Float32 = x * (1 / np.sqrt(mean_square + np.float32(eps)))
    normed *= 1 + weight
    return normed


def rope_table(T: int, H: int, theta: float) -> tuple[Float32, Float32]:
    """Cosines and sines of the rotary angles, position * theta^(-2i/H).

    T        number of tokens; positions run from 0
    H        head size
    theta    base: 1e4 in sliding layers, 1e6 in full ones
    returns  cos, sin: float32 [T, H], each angle twice: for the first and for the second element of its pair

    Each frequency is rounded to float32 once and the angle is a float32 product, as in transformers
    (Gemma3RotaryEmbedding). Source: Su et al., RoFormer, equation 34.
    """
    frequency = np.array([theta ** (-2 * i / H) for i in range(H // 2)], dtype=np.float32)
    angle = np.arange(T, dtype=np.float32)[:, None] * np.concatenate([frequency, frequency])
    return np.cos(angle), np.sin(angle)


def rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:  # [T, N, H], [T, H], [T, H] -> [T, N, H]
    """Turn each pair (a, b) = (x[i], x[i + H/2]) by its position's angle: (a cos - b sin, b cos + a sin).

    The pairs are NeoX halves, not neighbours.
    """
    first, second = np.split(x, 2, axis=-1)
    turned = np.concatenate([-second, first], axis=-1)
    turned *= sin[:, None, :]
    turned += x * cos[:, None, :]
    return turned


def gelu_tanh(x: Float32) -> Float32:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): GELU's tanh form (Hendrycks & Gimpel, section 2)."""
    t = np.square(x)
    t *= 0.044715 * math.sqrt(2 / math.pi)  # in place: each temporary of [T, F] costs a walk through memory
    t += math.sqrt(2 / math.pi)
    t *= x
    np.tanh(t, out=t)
    t += 1
    t *= x
    t *= 0.5
    return t


def softmax(scores: Float32) -> Float32:  # [..., T] -> [..., T], in place
    """exp(s) / sum(exp(s)) over the last axis; the maximum is taken off first, so that exp cannot overflow."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def window_mask(queries: range, keys: range, radius: int) -> Bool:
    """Who may look at whom in a sliding layer: neighbours up to `radius` tokens away, on both sides.

    queries, keys   positions of a block's queries and of the keys that it sees
    radius          the largest distance allowed, inclusive (256 for sliding_window 512)
    returns         bool [queries, keys], True where |i - j| <= radius

        queries = keys = range(5), radius = 2        1 1 1 0 0
                                                     1 1 1 1 0
                                                     1 1 1 1 1
                                                     0 1 1 1 1
                                                     0 0 1 1 1

    Source: transformers, modeling_gemma3.py (_bidirectional_window_overlay, there with an exclusive bound).
    """
    distance = np.arange(queries.start, queries.stop)[:, None] - np.arange(keys.start, keys.stop)
    near: Bool = np.abs(distance) <= radius
    return near


def l2_normalize(x: Float32) -> Float32:  # [..., D] -> [..., D]
    """x / max(|x|, 1e-12), as torch.nn.functional.normalize: a vector of zeros stays zeros."""
    norm = np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True))
    unit: Float32 = x / np.maximum(norm, np.float32(1e-12))
    return unit
