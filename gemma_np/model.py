"""EmbeddingGemma's forward pass, as the paper has it: one text in, one vector out. MODEL.md says it in words.

Letters: T tokens, V pieces, D hidden size, N query heads, K key/value heads, H head size, F feed-forward size.
`step(name, array)` hands an array on unchanged and shows it to whoever watches, under the checkpoint's module names.
Source: transformers 5.23 (modeling_gemma3.py) and sentence-transformers 6.2 (Pooling, Dense, Normalize).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from gemma_np.arrays import AnyArray, Float32, Int32
from gemma_np.config import Config, Layer
from gemma_np.modules import Dense, Modules, Normalize
from gemma_np.ops import attend, gelu_tanh, l2_normalize, rms_norm, rope_table, rotate
from gemma_np.weights.loading import LayerWeights, Weights
from gemma_np.weights.packed import Packed

Trace = Callable[[str, AnyArray], None]
Rope = tuple[Float32, Float32]  # cosines and sines, [T, H] each


def embed(
    ids: Int32, weights: Weights, config: Config, modules: Modules, skip: int = 0, trace: Trace | None = None
) -> Float32:  # [T] -> [dim]
    """A text's tokens -> its vector: the trunk, the mean over all but the first `skip` tokens, and the heads."""
    step = Steps(trace)
    x = trunk(ids, weights, config, trace)  # [T, D]
    e = step(modules.pooling, mean_pool(x, skip))  # [D]
    return apply_heads(e, modules.heads, weights, step)


def trunk(ids: Int32, weights: Weights, config: Config, trace: Trace | None = None) -> Float32:  # [T] -> [T, D]
    """Tokens -> one vector each, in the light of all the others."""
    step = Steps(trace)
    ropes = {(H, theta): rope_table(len(ids), H, theta) for H, theta in {(at.H, at.theta) for at in config.layers}}
    x = step("embed_tokens", embed_tokens(ids, weights, config))  # [T, D], the residual
    for i, (at, w) in enumerate(zip(config.layers, weights.layers, strict=True)):
        x = step(f"layers.{i}", block(x, w, at, ropes[at.H, at.theta], step.below(f"layers.{i}.")))
    return step("norm", rms_norm(x, weights.norm, config.layers[-1].eps))


def embed_tokens(ids: Int32, weights: Weights, config: Config) -> Float32:  # [T] -> [T, D]
    """Rows of the embedding table, times sqrt(D).

    The sources disagree about the factor for D = 768. It is 27.7128 in float32 here and in transformers; mlx-lm and
    gemma.cpp round it to bfloat16, which gives 27.75.
    """
    return weights.embed_tokens.rows(ids) * math.sqrt(config.D)


def block(x: Float32, w: LayerWeights, at: Layer, rope: Rope, step: "Steps") -> Float32:  # [T, D] -> [T, D]
    """Attention, then feed-forward, each between two norms and added to the residual."""
    h = step("input_layernorm", rms_norm(x, w.input_layernorm, at.eps))  # [T, D]
    h = attention(h, w, at, rope, step.below("self_attn."))  # [T, D]
    x = x + step("post_attention_layernorm", rms_norm(h, w.post_attention_layernorm, at.eps))
    h = step("pre_feedforward_layernorm", rms_norm(x, w.pre_feedforward_layernorm, at.eps))  # [T, D]
    h = mlp(h, w, step.below("mlp."))  # [T, D]
    return x + step("post_feedforward_layernorm", rms_norm(h, w.post_feedforward_layernorm, at.eps))


def attention(x: Float32, w: LayerWeights, at: Layer, rope: Rope, step: "Steps") -> Float32:  # [T, D] -> [T, D]
    """softmax(q k^T * scale) v over the tokens within reach, to both sides. The queries bear the scale."""
    q = step("q_proj", linear(x, w.q_proj)).reshape(-1, at.N, at.H)  # [T, N, H]
    k = step("k_proj", linear(x, w.k_proj)).reshape(-1, at.K, at.H)  # [T, K, H]
    v = step("v_proj", linear(x, w.v_proj)).reshape(-1, at.K, at.H)  # [T, K, H]
    q = rotate(step("q_norm", rms_norm(q, w.q_norm, at.eps)), *rope) * np.float32(at.scale)  # [T, N, H]
    k = rotate(step("k_norm", rms_norm(k, w.k_norm, at.eps)), *rope)  # [T, K, H]
    return step("o_proj", linear(attend(q, k, v, at.radius), w.o_proj))


def mlp(x: Float32, w: LayerWeights, step: "Steps") -> Float32:  # [T, D] -> [T, D]
    """GeGLU: (gelu(x Wgate) * (x Wup)) Wdown.  Source: Shazeer, GLU Variants Improve Transformer."""
    gate = step("act_fn", gelu_tanh(step("gate_proj", linear(x, w.gate_proj))))  # [T, F]
    up = step("up_proj", linear(x, w.up_proj))  # [T, F]
    return step("down_proj", linear(gate * up, w.down_proj))


def linear(x: Float32, weight: Float32 | Packed, bias: Float32 | None = None) -> Float32:
    """x @ weight.T + bias.  [T, I], [O, I], [O] -> [T, O].  Checkpoints store one row of `weight` per output.

    Quantised weights are brought back to float32, exactly, for this product alone; `x` is not rounded. The compiled
    path (kernels/) multiplies the codes themselves, and rounds `x`.
    """
    y: Float32 = np.matmul(x, (weight.dequantize() if isinstance(weight, Packed) else weight).T)
    return y if bias is None else y + bias


def mean_pool(x: Float32, skip: int) -> Float32:  # [T, D] -> [D]
    """Mean over the tokens from `skip` on; zeros if there are none, as in sentence-transformers.

    Summed along the last axis of a transposed copy, because there NumPy adds in pairs: over 2048 tokens the rounding
    error is that of 11 additions, not of 2048.
    """
    counted = np.ascontiguousarray(x[skip:].T)  # [D, T - skip]
    mean: Float32 = counted.sum(axis=-1) / np.float32(max(counted.shape[1], 1))
    return mean


def apply_heads(
    e: Float32, heads: Sequence[Dense | Normalize], weights: Weights, step: "Steps"
) -> Float32:  # [D] -> [dim]
    """What follows the mean: Dense and Normalize modules, in turn."""
    for head in heads:
        if isinstance(head, Dense):
            w = weights.dense[head.name]
            e = linear(e[None], w.weight, w.bias)[0]  # [outputs]
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
