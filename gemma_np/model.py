"""EmbeddingGemma's forward pass, as the paper has it: one text in, one vector out. MODEL.md says it in words.

Letters: T tokens, D hidden size, N query heads, K key/value heads, G = N / K, H head size, F feed-forward size.
`step(name, array)` hands an array on unchanged and shows it to whoever watches, under the checkpoint's module names.
Source: transformers 5.23 (modeling_gemma3.py) and sentence-transformers 6.2 (Pooling, Dense, Normalize).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from gemma_np.arrays import AnyArray, Float32, Int32
from gemma_np.config import Config, Layer
from gemma_np.linear import linear
from gemma_np.modules import Dense, Modules, Normalize
from gemma_np.ops import gelu_tanh, l2_normalize, rms_norm, rope_table, rotate, softmax, window_mask
from gemma_np.weights.loading import LayerWeights, Weights
from gemma_np.weights.quantize import quantized_rows

Trace = Callable[[str, AnyArray], None]
Rope = tuple[Float32, Float32]
QUERY_BLOCK = 256  # queries that attend together: a [N, T, T] array of scores never exists


def trunk(ids: Int32, weights: Weights, config: Config, trace: Trace | None = None) -> Float32:  # [T] -> [T, D]
    """Tokens -> one vector each, in the light of all the others."""
    step = Steps(trace)
    ropes = {(H, theta): rope_table(len(ids), H, theta) for H, theta in {(at.H, at.theta) for at in config.layers}}
    x = step("embed_tokens", embed_tokens(ids, weights, config))
    for i, (layer, w) in enumerate(zip(config.layers, weights.layers, strict=True)):
        x = step(f"layers.{i}", block(x, w, layer, ropes[layer.H, layer.theta], step.below(f"layers.{i}.")))
    return step("norm", rms_norm(x, weights.norm, config.layers[-1].eps))


def embed_tokens(ids: Int32, weights: Weights, config: Config) -> Float32:  # [T] -> [T, D]
    """Rows of the embedding table, times sqrt(D)."""
    rows = quantized_rows(weights.embed_tokens.rows(ids), weights.embed_format, "embed_tokens.weight")
    return rows * math.sqrt(config.D)


def block(x: Float32, w: LayerWeights, layer: Layer, rope: Rope, step: "Steps") -> Float32:  # [T, D] -> [T, D]
    """Attention, then feed-forward, each between two norms and added to the residual."""
    h = step("input_layernorm", rms_norm(x, w.input_layernorm, layer.eps))
    h = attention(h, w, layer, rope, step.below("self_attn."))
    x = x + step("post_attention_layernorm", rms_norm(h, w.post_attention_layernorm, layer.eps))
    h = step("pre_feedforward_layernorm", rms_norm(x, w.pre_feedforward_layernorm, layer.eps))
    h = mlp(h, w, step.below("mlp."))
    return x + step("post_feedforward_layernorm", rms_norm(h, w.post_feedforward_layernorm, layer.eps))


def attention(h: Float32, w: LayerWeights, layer: Layer, rope: Rope, step: "Steps") -> Float32:  # [T, D] -> [T, D]
    """softmax(q k^T * scale) v over the tokens within reach, to both sides; G query heads share one key/value head."""
    T, N, K, H = len(h), layer.N, layer.K, layer.H
    q = step("q_proj", linear(h, w.q_proj)).reshape(T, N, H)
    k = step("k_proj", linear(h, w.k_proj)).reshape(T, K, H)
    v = step("v_proj", linear(h, w.v_proj)).reshape(T, K, H)
    q = rotate(step("q_norm", rms_norm(q, w.q_norm, layer.eps)), *rope)
    q *= layer.scale
    k = rotate(step("k_norm", rms_norm(k, w.k_norm, layer.eps)), *rope)

    grouped = q.reshape(T, K, N // K, H).transpose(1, 2, 0, 3)  # [K, G, T, H]: query head n has key/value head n // G
    k, v = k.transpose(1, 2, 0), v.transpose(1, 0, 2)  # [K, H, T], [K, T, H]
    a = np.empty((T, N * H), dtype=np.float32)
    for start in range(0, T, QUERY_BLOCK):
        queries = range(start, min(start + QUERY_BLOCK, T))
        a[start : queries.stop] = attend(grouped, k, v, queries, layer.radius)
    return step("o_proj", linear(a, w.o_proj))


def attend(q: Float32, k: Float32, v: Float32, queries: range, radius: int | None) -> Float32:
    """Some queries against all the keys that one of them may see.

    q        [K, G, T, H], scaled
    k, v     [K, H, T], [K, T, H]
    queries  the positions to compute
    radius   see `window_mask`; None: every token
    returns  [queries, N*H]
    """
    (K, G, T, H), t = q.shape, len(queries)
    reach = T if radius is None else radius
    keys = range(max(0, queries.start - reach), min(T, queries.stop + reach))
    block = q[:, :, queries.start : queries.stop].reshape(K, G * t, H)
    scores = (block @ k[:, :, keys.start : keys.stop]).reshape(K, G, t, len(keys))
    if len(keys) > reach + 1:  # else every key is within reach of every query
        np.copyto(scores, np.float32(-np.inf), where=~window_mask(queries, keys, reach))
    weights = softmax(scores).reshape(K, G * t, len(keys))
    a = (weights @ v[:, keys.start : keys.stop]).reshape(K, G, t, H)
    return a.transpose(2, 0, 1, 3).reshape(t, K * G * H)


def mlp(h: Float32, w: LayerWeights, step: "Steps") -> Float32:  # [T, D] -> [T, D]
    """GeGLU: (gelu(h Wgate) * (h Wup)) Wdown.  Source: Shazeer, GLU Variants Improve Transformer."""
    gate = step("act_fn", gelu_tanh(step("gate_proj", linear(h, w.gate_proj))))
    up = step("up_proj", linear(h, w.up_proj))
    return step("down_proj", linear(gate * up, w.down_proj))


def mean_pool(x: Float32, skip: int) -> Float32:  # [T, D] -> [D]
    """Mean over the tokens from `skip` on; zeros if none is left, as in sentence-transformers.

    Summed along the last axis of a transposed copy, because there NumPy adds in pairs: over 2048 tokens the rounding
    error is that of 11 additions, not of 2048.
    """
    counted = np.ascontiguousarray(x[skip:].T)
    mean: Float32 = counted.sum(axis=-1) / np.float32(max(counted.shape[1], 1))
    return mean


def embed(
    ids: Int32, weights: Weights, config: Config, modules: Modules, skip: int = 0, trace: Trace | None = None
) -> Float32:  # [T] -> [dim]
    """A text's tokens -> its vector: the trunk, the mean without the first `skip` tokens, and the heads behind it."""
    step = Steps(trace)
    e = step(modules.pooling, mean_pool(trunk(ids, weights, config, trace), skip))
    return apply_heads(e, modules.heads, weights, step)


def apply_heads(
    e: Float32, heads: Sequence[Dense | Normalize], weights: Weights, step: "Steps"
) -> Float32:  # [D] -> [dim]
    """What comes behind the mean: Dense and Normalize modules, in turn."""
    for head in heads:
        if isinstance(head, Dense):
            w = weights.dense[head.name]
            e = linear(e[None], w.weight, w.bias)[0]
            e = np.tanh(e) if head.activation == "Tanh" else e
        else:
            e = l2_normalize(e)
        step(head.name, e)
    return e


class Steps:
    """Shows each named step to `trace` and hands its array on: the one hook for comparing, testing and teaching."""

    def __init__(self, trace: Trace | None, prefix: str = "") -> None:
        self.trace, self.prefix = trace, prefix

    def __call__(self, name: str, array: Float32) -> Float32:
        if self.trace is not None:
            self.trace(self.prefix + name, array)
        return array

    def below(self, prefix: str) -> "Steps":
        """The same hook, inside a module."""
        return Steps(self.trace, self.prefix + prefix)
