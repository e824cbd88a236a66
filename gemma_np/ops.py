"""One function per equation, float32 in and float32 out.

Scalars come from `math`, never from NumPy: a np.float64 scalar would turn a float32 array into float64.
Letters: T tokens, D hidden size, N query heads, K key/value heads, G = N / K, H head size.
"""

import math

import numpy as np

from gemma_np.arrays import Bool, Float32

QUERY_BLOCK = 256  # queries that attend together, see `attend`


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


def attend(q: Float32, k: Float32, v: Float32, radius: int | None) -> Float32:
    """softmax(q k^T) v: each token's mean of the values within reach, weighted by how well its query fits their keys.

    q        [T, N, H], scaled; G query heads share a key/value head: query head n has key/value head n // G
    k, v     [T, K, H]
    radius   how far a token sees to each side, see `window_mask`; None: to every token
    returns  [T, N * H]

    QUERY_BLOCK queries at a time see the keys that one of them may see, so that a [N, T, T] array never exists.
    Source: Vaswani et al., Attention Is All You Need, equation 1; Ainslie et al., GQA.
    """
    T, N, H = q.shape
    K = k.shape[1]
    reach = T if radius is None else radius
    q = q.reshape(T, K, N // K, H).transpose(1, 2, 0, 3)  # [K, G, T, H]
    k, v = k.transpose(1, 2, 0), v.transpose(1, 0, 2)  # [K, H, T], [K, T, H]
    out = np.empty((T, N * H), dtype=np.float32)
    for start in range(0, T, QUERY_BLOCK):
        queries = range(start, min(start + QUERY_BLOCK, T))
        keys = range(max(0, queries.start - reach), min(T, queries.stop + reach))
        rows = q[:, :, queries.start : queries.stop].reshape(K, -1, H)  # [K, G * queries, H]
        scores = (rows @ k[:, :, keys.start : keys.stop]).reshape(K, -1, len(queries), len(keys))
        if len(keys) > reach + 1:  # else every key is within reach of every query
            np.copyto(scores, np.float32(-np.inf), where=~window_mask(queries, keys, reach))
        weights = softmax(scores).reshape(K, -1, len(keys))  # [K, G * queries, keys]
        a = (weights @ v[:, keys.start : keys.stop]).reshape(K, -1, len(queries), H)  # [K, G, queries, H]
        out[queries.start : queries.stop] = a.transpose(2, 0, 1, 3).reshape(len(queries), -1)
    return out


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

    Source: transformers, modeling_gemma3.py (_bidirectional_window_overlay, there with an exclusive bound). The sources
    disagree: DeepMind's JAX code does not halve the window, so that a token there sees 511 to each side.
    """
    distance = np.arange(queries.start, queries.stop)[:, None] - np.arange(keys.start, keys.stop)
    near: Bool = np.abs(distance) <= radius
    return near


def l2_normalize(x: Float32) -> Float32:  # [..., D] -> [..., D]
    """x / max(|x|, 1e-12), as torch.nn.functional.normalize: a vector of zeros stays zeros."""
    norm = np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True))
    unit: Float32 = x / np.maximum(norm, np.float32(1e-12))
    return unit
