"""EmbeddingGemma in float64: the truth that tests measure the engine against.

Written from the description of the model alone; shares no code with gemma_np and imports nothing from it, so a mistake
would have to be made twice to stay hidden. RoPE angles, norms and softmax are float64 too (transformers does these in
float32, even in a float64 model): transformers 5.23 agrees to 4e-6 as it is, and to 3e-15 with these three made float64
(random models, 1 to 2100 tokens, relative to the largest value). Slow and obvious on purpose.

    reference = Reference(Path("embeddinggemma-300m"))
    vector = reference.embed([2, 9259, 236764, 1902, 236888, 1])          # float64 [768], length 1

Letters: T tokens, D hidden, N query heads, K key/value heads, H head size, F feed-forward, V vocabulary, and
I and O, the inputs and outputs of a Dense.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Trace = Callable[[str, Float64], None]

STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def to_float64(stored: npt.NDArray[Any]) -> Float64:
    """Exact. NumPy has no bfloat16: it comes as uint16, the upper half of a float32."""
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Tensor name without "model." -> memory map in the stored dtype: nothing is read before it is used.

    The file: header length (8 bytes, little endian), header (JSON), tensors; data_offsets count from the header's end.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        tensors[name.removeprefix("model.")] = data[begin:end].view(STORED[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def read_checkpoint(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """model.safetensors, or all the shards that model.safetensors.index.json names."""
    if (folder / "model.safetensors").exists():
        return read_safetensors(folder / "model.safetensors")
    shards = read_json(folder / "model.safetensors.index.json")["weight_map"].values()
    return {name: tensor for shard in sorted(set(shards)) for name, tensor in read_safetensors(folder / shard).items()}


def rms_norm(x: Float64, weight: Float64, eps: float) -> Float64:  # [..., D], [D] -> [..., D]
    """x / sqrt(mean(x^2) + eps) * (1 + weight)."""
    mean_square: Float64 = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + eps) * (1.0 + weight)


def gelu_tanh(x: Float64) -> Float64:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def rotate(x: Float64, theta: float) -> Float64:  # [T, heads, H] -> [T, heads, H]
    """RoPE: at position t, the pair (x[i], x[i + H/2]) turns by the angle t * theta^(-2i/H)."""
    T, _, H = x.shape
    angle = np.arange(T, dtype=np.float64)[:, None] * theta ** (-2.0 * np.arange(H // 2) / H)  # [T, H/2]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    first, second = x[..., : H // 2], x[..., H // 2 :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(q: Float64, k: Float64, v: Float64, allowed: npt.NDArray[np.bool_], scale: float) -> Float64:
    """One head: softmax(q k^T * scale) v over the allowed pairs.  [T, H] x 3, [T, T] -> [T, H].

    Nobody's row is empty: |i - i| = 0 is inside every window.
    """
    scores = np.where(allowed, q @ k.T * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: Float64 = weights.sum(axis=-1, keepdims=True)
    out: Float64 = weights / total @ v
    return out


def furthest_neighbour(window: int) -> int:
    """config.sliding_window -> the largest |i - j| that may look at each other.

    Even: the full width, half of it each way (512 -> 256). Odd: transformers turns 512 into the exclusive bound 257
    when it loads, and some versions saved that: |i - j| < 257, so 256 again.
    """
    return window - 1 if window % 2 else window // 2


class Reference:
    """A checkpoint folder. Weights stay in the file and become float64 one layer at a time.

    weights   take these instead of the file's, by tensor name; "2_Dense/linear.weight" for a Dense
    """

    def __init__(self, folder: Path, weights: dict[str, Any] | None = None) -> None:
        self.weights = weights or {}
        self.modules = [
            (entry["type"].rsplit(".", 1)[-1], folder / entry["path"]) for entry in read_json(folder / "modules.json")
        ]
        transformer = next(path for kind, path in self.modules if kind == "Transformer")
        self.tensors = {**read_checkpoint(transformer), **self.weights}
        config = read_json(transformer / "config.json")
        for key in ("attention_bias", "attn_logit_softcapping", "rope_scaling"):
            if config.get(key):
                raise ValueError(f"{transformer}: config.json: {key} = {config[key]} is not in this reference")
        self.D: int = config["hidden_size"]
        self.eps: float = config.get("rms_norm_eps", 1e-6)
        self.scale = 1.0 / math.sqrt(config.get("query_pre_attn_scalar", 256))
        self.reach = furthest_neighbour(config.get("sliding_window", 4096))

        pattern = config.get("sliding_window_pattern", 6)
        self.layer_types: list[str] = config.get("layer_types") or [
            "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(config["num_hidden_layers"])
        ]
        self.theta = {
            "full_attention": config.get("rope_theta", 1e6),
            "sliding_attention": config.get("rope_local_base_freq", 1e4),
        }
        for kind, rope in (config.get("rope_parameters") or {}).items():  # transformers 5 says it per kind of layer
            if rope.get("rope_type", "default") != "default":
                raise ValueError(f"{transformer}: config.json: {kind}: {rope} is not in this reference")
            self.theta[kind] = rope.get("rope_theta", self.theta[kind])

    def embed(self, ids: list[int], prompt_length: int = 0, trace: Trace | None = None) -> Float64:
        """Token ids, BOS and EOS included -> float64 [dim], behind all of modules.json.

        prompt_length   leading tokens (BOS counts) to leave out of the mean, if 1_Pooling says include_prompt: false
        trace           called with (name, array) after every step: embed_tokens; layers.0.attention and layers.0.mlp,
                        what each adds to the residual; layers.0, the residual; ...; norm; then the folders in
                        modules.json: 1_Pooling, 2_Dense, ...
        """
        trace = trace or (lambda name, array: None)
        x = self.hidden(ids, trace)
        for kind, path in self.modules:
            if kind == "Transformer":
                continue
            if kind == "Pooling":
                x = pool(x, read_json(path / "config.json"), prompt_length)
            elif kind == "Dense":
                tensors = read_safetensors(path / "model.safetensors")
                tensors["linear.weight"] = self.weights.get(f"{path.name}/linear.weight", tensors["linear.weight"])
                x = dense(x, read_json(path / "config.json"), tensors)
            elif kind == "Normalize":
                x = x / max(math.sqrt(x @ x), 1e-12)
            else:
                raise ValueError(f"{path}: modules.json: {kind} is not in this reference")
            trace(path.name, x)
        return x

    def hidden(self, ids: list[int], trace: Trace) -> Float64:
        """The Transformer module: ids [T] -> x [T, D], behind the last norm."""
        table = self.tensors["embed_tokens.weight"]  # [V, D]
        if not ids or min(ids) < 0 or max(ids) >= len(table):
            raise ValueError(f"ids must be 1 or more numbers from 0 to {len(table) - 1}")
        distance = np.abs(np.subtract.outer(np.arange(len(ids)), np.arange(len(ids))))
        allowed = {"full_attention": distance >= 0, "sliding_attention": distance <= self.reach}  # [T, T]

        x = to_float64(table[ids]) * math.sqrt(self.D)
        trace("embed_tokens", x)
        for i, kind in enumerate(self.layer_types):
            prefix = f"layers.{i}."
            weights = {
                name.removeprefix(prefix).removesuffix(".weight"): to_float64(tensor)
                for name, tensor in self.tensors.items()
                if name.startswith(prefix)
            }
            step = self.attention(x, weights, allowed[kind], self.theta[kind])
            trace(f"layers.{i}.attention", step)
            x = x + step
            step = self.mlp(x, weights)
            trace(f"layers.{i}.mlp", step)
            x = x + step
            trace(f"layers.{i}", x)
        x = rms_norm(x, to_float64(self.tensors["norm.weight"]), self.eps)
        trace("norm", x)
        return x

    def attention(self, x: Float64, w: dict[str, Float64], allowed: npt.NDArray[np.bool_], theta: float) -> Float64:
        """[T, D] -> [T, D], what the attention adds to the residual. Key/value head n // (N/K) serves query head n."""
        T, H = len(x), len(w["self_attn.q_norm"])  # layers may differ in heads, which no config.json says: shapes do
        N, K = len(w["self_attn.q_proj"]) // H, len(w["self_attn.k_proj"]) // H
        h = rms_norm(x, w["input_layernorm"], self.eps)
        q = (h @ w["self_attn.q_proj"].T).reshape(T, N, H)
        k = (h @ w["self_attn.k_proj"].T).reshape(T, K, H)
        v = (h @ w["self_attn.v_proj"].T).reshape(T, K, H)
        q = rotate(rms_norm(q, w["self_attn.q_norm"], self.eps), theta)
        k = rotate(rms_norm(k, w["self_attn.k_norm"], self.eps), theta)
        heads = [attend(q[:, n], k[:, n // (N // K)], v[:, n // (N // K)], allowed, self.scale) for n in range(N)]
        a = np.concatenate(heads, axis=-1)  # [T, N*H]
        return rms_norm(a @ w["self_attn.o_proj"].T, w["post_attention_layernorm"], self.eps)

    def mlp(self, x: Float64, w: dict[str, Float64]) -> Float64:
        """[T, D] -> [T, D], what the feed-forward adds to the residual."""
        h = rms_norm(x, w["pre_feedforward_layernorm"], self.eps)
        h = gelu_tanh(h @ w["mlp.gate_proj"].T) * (h @ w["mlp.up_proj"].T)  # [T, F]
        return rms_norm(h @ w["mlp.down_proj"].T, w["post_feedforward_layernorm"], self.eps)


def pool(x: Float64, config: dict[str, Any], prompt_length: int) -> Float64:  # [T, D] -> [D]
    """The mean over the tokens. Nothing left behind the prompt: zeros, as in sentence-transformers.

    Its old configs say the mode in booleans (pooling_mode_mean_tokens: true), new ones in a word: "mean".
    """
    old = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    mode = config.get("pooling_mode") or old or "mean"
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise ValueError(f"Pooling: {mode} is not in this reference, mean is")
    if not config.get("include_prompt", True):
        x = x[prompt_length:]
    total: Float64 = x.sum(axis=0)
    return total / max(len(x), 1)


def dense(x: Float64, config: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> Float64:  # [I] -> [O]
    """activation(W x + b). A Dense that names no activation has tanh: sentence-transformers' default."""
    x = to_float64(tensors["linear.weight"]) @ x
    if config.get("bias", True):
        x = x + to_float64(tensors["linear.bias"])
    activation = config.get("activation_function", "Tanh").rsplit(".", 1)[-1]
    if activation not in ("Identity", "Tanh") or config.get("use_residual"):
        raise ValueError(f"Dense: {config} is not in this reference, only Identity and Tanh without residual")
    return np.tanh(x) if activation == "Tanh" else x
