"""config.json -> one frozen record for the model and one per layer. The rest of the code reads only these.

All that Gemma-3 checkpoints say in several ways (two styles of RoPE settings, a window that may have been saved as an
exclusive bound, layer types or a pattern) is settled here. A setting that would change the result and that we do not
serve is refused by name, never ignored.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_np.errors import FLOAT_ORIGINAL, ConfigError
from gemma_np.files.mapped import read_json_object

log = logging.getLogger("gemma_np")

# What transformers fills in for keys that a file leaves out (transformers 5.23, Gemma3TextConfig).
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}

# Settings that change the result, with the only values that we serve.
SERVED: dict[str, tuple[Any, ...]] = {
    "use_bidirectional_attention": (True,),
    "attention_bias": (False, None),
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "attn_logit_softcapping": (None,),
}
REFUSED_BECAUSE = {
    "use_bidirectional_attention": "this is a causal language model, not an EmbeddingGemma encoder",
}
# Where tools that quantise say so in config.json. MLX says it under the last.
QUANTIZED = ("quantization_config", "compression_config", "quantization")
MAX_LAYERS = 10_000  # a config that claims more is damaged; without a limit it would fill the memory


@dataclass(frozen=True)
class Layer:
    """All that one layer's arithmetic depends on, besides its weights.

    radius   largest distance that attention reaches, inclusive; None: to every token
    theta    RoPE base
    N, K, H  query heads, key/value heads, head size
    scale    factor of the attention scores, 1 / sqrt(query_pre_attn_scalar)
    eps      RMSNorm's epsilon
    """

    radius: int | None
    theta: float
    N: int
    K: int
    H: int
    scale: float
    eps: float


@dataclass(frozen=True)
class Config:
    """The trunk: vocabulary V, hidden size D, feed-forward size F, positions, its layers, and the ids that the file
    allows for BOS and EOS (none where it does not say)."""

    V: int
    D: int
    F: int
    max_positions: int
    layers: tuple[Layer, ...]
    bos: frozenset[int] = frozenset()
    eos: frozenset[int] = frozenset()


def read_config(folder: Path) -> Config:
    """Read and check `folder/config.json`; ConfigError names every setting that is not served."""
    path = folder / "config.json"
    settings = read_json_object(path)
    _refuse_unserved(path, settings)

    def count(key: str) -> int:
        return positive_int(path, key, settings.get(key, DEFAULTS[key]))

    def number(key: str) -> float:
        return positive_float(path, key, settings.get(key, DEFAULTS[key]))

    N, K, H = count("num_attention_heads"), count("num_key_value_heads"), count("head_dim")
    if N % K:
        raise ConfigError(f"{path}: num_attention_heads = {N} is not a multiple of num_key_value_heads = {K}")
    if H % 2:
        raise ConfigError(f"{path}: head_dim = {H}, expected an even number (RoPE turns pairs)")
    thetas = _thetas(path, settings)
    kinds = _layer_types(path, settings, count("num_hidden_layers"))
    radius = radius_of(path, count("sliding_window")) if "sliding_attention" in kinds else None
    scale = 1 / math.sqrt(number("query_pre_attn_scalar"))
    eps = number("rms_norm_eps")
    return Config(
        V=count("vocab_size"),
        D=count("hidden_size"),
        F=count("intermediate_size"),
        max_positions=count("max_position_embeddings"),
        layers=tuple(
            Layer(radius if kind == "sliding_attention" else None, thetas[kind], N, K, H, scale, eps) for kind in kinds
        ),
        bos=_token_ids(path, "bos_token_id", settings),
        eos=_token_ids(path, "eos_token_id", settings),
    )


def _token_ids(path: Path, key: str, settings: dict[str, Any]) -> frozenset[int]:
    value = settings.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        raise ConfigError(f"{path}: {key} = {value!r}, expected a token id or a list of them")
    return frozenset(ids)


def _refuse_unserved(path: Path, settings: dict[str, Any]) -> None:
    model_type = settings.get("model_type")
    if model_type != "gemma3_text":
        vision = "a model with a vision tower" if "vision_config" in settings else "another architecture"
        raise ConfigError(
            f"{path}: model_type = {model_type!r} ({vision}); gemma_np runs EmbeddingGemma and models of its "
            "architecture, whose model_type is 'gemma3_text'"
        )
    for key in QUANTIZED:
        if (found := settings.get(key)) is not None:
            method = found.get("quant_method") if isinstance(found, dict) else None
            tool = f"with {method}" if isinstance(method, str) else "with MLX" if key == QUANTIZED[-1] else "by a tool"
            raise ConfigError(f"{path}: {key}: the weights were quantised {tool}, and are not served. {FLOAT_ORIGINAL}")
    for key, served in SERVED.items():
        # A key that is absent is as transformers reads it: causal, and no other extras.
        value = settings.get(key, False if key == "use_bidirectional_attention" else None)
        if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in served):
            because = REFUSED_BECAUSE.get(key, "it would change the result and is not served")
            raise ConfigError(f"{path}: {key} = {value!r}: {because}; expected {served[0]!r}")


def positive_int(path: Path, key: str, value: object) -> int:
    """A setting of a file that must be a whole number from 1 to 2^31 - 1, or ConfigError."""
    if type(value) is not int or not 0 < value < 2**31:
        raise ConfigError(f"{path}: {key} = {value!r}, expected a positive integer")
    return value


def positive_float(path: Path, key: str, value: object) -> float:
    """A setting of a file that must be a number above 0, or ConfigError."""
    # 1e-30: powers of smaller ones overflow where RoPE's angles are computed
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-30 < value < 1e30:
        raise ConfigError(f"{path}: {key} = {value!r}, expected a positive number")
    return float(value)


def _layer_types(path: Path, settings: dict[str, Any], L: int) -> list[str]:
    """`layer_types`, or the older pattern: every sixth layer (or `sliding_window_pattern`-th) is full."""
    if L > MAX_LAYERS:
        raise ConfigError(f"{path}: num_hidden_layers = {L}, expected at most {MAX_LAYERS}")
    kinds = settings.get("layer_types")
    if kinds is None:
        pattern = settings.get("sliding_window_pattern", DEFAULTS["sliding_window_pattern"])
        pattern = positive_int(path, "sliding_window_pattern", pattern)
        return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(L)]
    if not isinstance(kinds, list) or len(kinds) != L:
        raise ConfigError(f"{path}: layer_types must be a list of num_hidden_layers = {L} names, got {kinds!r}")
    for i, kind in enumerate(kinds):
        if kind not in ("sliding_attention", "full_attention"):
            raise ConfigError(f"{path}: layer_types[{i}] = {kind!r}, expected 'sliding_attention' or 'full_attention'")
    return kinds


def radius_of(path: Path, sliding_window: int) -> int:
    """How far a sliding layer looks to each side, inclusive.

    `sliding_window` is the full width, 512, half of it on each side: |i - j| <= 256. When transformers loads
    the model it replaces 512 by the exclusive bound 257, and several versions saved that. A full width is even, so an
    odd value is such a bound: |i - j| < 257. Halving it once more would give wrong vectors for texts over 128 tokens.

    Source: transformers 5.23, configuration_gemma3.py (__post_init__ and to_dict).
    """
    if sliding_window % 2 == 0:
        return sliding_window // 2
    log.info(
        "%s: sliding_window = %d is an exclusive bound that was saved; attention reaches %d tokens to each side",
        path,
        sliding_window,
        sliding_window - 1,
    )
    return sliding_window - 1


def _thetas(path: Path, settings: dict[str, Any]) -> dict[str, float]:
    """The RoPE base of each kind of layer, from `rope_parameters` or the older pair of keys."""
    _check_rope(path, "rope_scaling", settings.get("rope_scaling") or {}, allowed={"rope_type", "type"})
    parameters = settings.get("rope_parameters") or {}
    older = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
    if not isinstance(parameters, dict) or not parameters.keys() <= older.keys():
        raise ConfigError(f"{path}: rope_parameters = {parameters!r}, expected one entry each for {', '.join(older)}")
    thetas = {}
    for kind, key in older.items():
        entry = parameters.get(kind) or {}
        _check_rope(path, f"rope_parameters.{kind}", entry, allowed={"rope_type", "type", "rope_theta"})
        theta = entry.get("rope_theta", settings.get(key, DEFAULTS[key]))
        thetas[kind] = positive_float(path, f"{key} ({kind})", theta)
    return thetas


def _check_rope(path: Path, where: str, entry: object, allowed: set[str]) -> None:
    """Only plain RoPE is served: no scaling, no other type."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: {where} = {entry!r}, expected an object in braces")
    for key in ("rope_type", "type"):
        if entry.get(key, "default") != "default":
            raise ConfigError(f"{path}: {where} asks for {key} = {entry[key]!r}; only 'default' RoPE is served")
    if extra := sorted(key for key in entry.keys() - allowed if entry[key] is not None):
        raise ConfigError(f"{path}: {where} sets {', '.join(extra)}; only 'default' RoPE without scaling is served")
