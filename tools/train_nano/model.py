"""nano in PyTorch, for training: gemma_np/model.py once more, with gradients, over padded batches.

Parameters carry the checkpoint's tensor names. Master weights are float32, products bfloat16, norms and the residual
stream float32.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.bfloat16(), weight.bfloat16())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on [B, N, T, H] with cos and sin [T, H / 2]."""
    half = x.shape[-1] // 2
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


class Block(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        D, F_, H = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        N, K = config["num_attention_heads"], config["num_key_value_heads"]
        self.heads, self.kv_heads, self.head_dim, self.eps = N, K, H, config["rms_norm_eps"]

        def projection(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        self.self_attn = nn.Module()
        self.self_attn.q_proj, self.self_attn.k_proj = projection(D, N * H), projection(D, K * H)
        self.self_attn.v_proj, self.self_attn.o_proj = projection(D, K * H), projection(N * H, D)
        self.self_attn.q_norm, self.self_attn.k_norm = Norm(H), Norm(H)
        self.mlp = nn.Module()
        self.mlp.gate_proj, self.mlp.up_proj = projection(D, F_), projection(D, F_)
        self.mlp.down_proj = projection(F_, D)
        self.input_layernorm, self.post_attention_layernorm = Norm(D), Norm(D)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(D), Norm(D)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        B, T, _ = x.shape
        attn, mlp = self.self_attn, self.mlp
        h = rms_norm(x, self.input_layernorm.weight, self.eps)
        q = linear(h, attn.q_proj.weight).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k = linear(h, attn.k_proj.weight).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        v = linear(h, attn.v_proj.weight).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q = rotate(rms_norm(q, attn.q_norm.weight, self.eps), cos, sin).bfloat16()
        k = rotate(rms_norm(k, attn.k_norm.weight, self.eps), cos, sin).bfloat16()
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        # In steps: on a CPU the fused attention's gradient takes longer than all other gradients of the block.
        probabilities = ((q @ k.transpose(2, 3)).float() * self.head_dim**-0.5 + mask).softmax(-1)
        a = (probabilities.bfloat16() @ v).transpose(1, 2).reshape(B, T, -1)
        x = x + rms_norm(linear(a, attn.o_proj.weight), self.post_attention_layernorm.weight, self.eps)
        h = rms_norm(x, self.pre_feedforward_layernorm.weight, self.eps).bfloat16()
        gated = F.gelu(linear(h, mlp.gate_proj.weight), approximate="tanh") * linear(h, mlp.up_proj.weight)
        return x + rms_norm(linear(gated, mlp.down_proj.weight), self.post_feedforward_layernorm.weight, self.eps)


class Norm(nn.Module):
    """Gemma's norms store weight - 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


class Nano(nn.Module):
    def __init__(self, config: dict[str, Any], heads: list[int]) -> None:
        """config: as in config.json; heads: widths after the trunk, [1024, 384] for Dense D -> 1024 -> 384."""
        super().__init__()
        self.config = config
        D = config["hidden_size"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], D)
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = Norm(D)
        self.dense = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in zip([D, *heads], heads, strict=False))

    def forward(self, ids: Tensor, lengths: Tensor, depth: int | None = None) -> Tensor:
        """ids [B, T] with any padding, lengths [B] -> vectors [B, heads[-1]], not normalised. depth: blocks to run."""
        x = F.embedding(ids, self.embed_tokens.weight) * math.sqrt(self.config["hidden_size"])
        position = torch.arange(ids.shape[1], device=ids.device)
        real = position < lengths[:, None]  # [B, T]
        distance = (position - position[:, None]).abs()
        everyone = (real[:, None, None, :]) | (distance == 0)  # a padding row that sees nothing would be NaN
        tables = {}
        for kind, theta, near in (
            ("sliding_attention", "rope_local_base_freq", distance <= self.config["sliding_window"] // 2),
            ("full_attention", "rope_theta", distance >= 0),
        ):
            allowed = everyone & near  # [B, 1, T, T]
            mask = torch.zeros(allowed.shape, dtype=torch.bfloat16, device=ids.device).masked_fill(~allowed, -torch.inf)
            tables[kind] = *rope_table(position, self.config["head_dim"], self.config[theta]), mask
        for kind, block in list(zip(self.config["layer_types"], self.layers, strict=True))[:depth]:
            x = block(x, *tables[kind])
        x = rms_norm(x, self.norm.weight, self.config["rms_norm_eps"])
        pooled = (x * real[..., None]).sum(1) / lengths[:, None]
        for dense in self.dense:
            pooled = F.linear(pooled, dense.weight)
        return pooled


def rope_table(position: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=position.device) / head_dim)
    angle = position[:, None].float() * frequency
    return angle.cos(), angle.sin()
