"""What llama.cpp calls things: the keys, tensors and numbers that both reading and writing a GGUF file need."""

from collections.abc import Mapping
from typing import NamedTuple

from gemma_np.modules import Modules, Normalize

ARCHITECTURE = "gemma-embedding"


# LayerWeights' fields in a GGUF file: q_proj of layer 0 is `blk.0.attn_q.weight`.
FIELDS = {
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o_proj": "attn_output",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}


HEADS = {"2_Dense": "dense_2", "3_Dense": "dense_3"}


class Dialect(NamedTuple):
    """How a program says in a file what a model is.

    architecture   in front of its keys
    heads          Dense modules' tensors
    norms          names that the last norm may have
    defaults       of keys that its files may lack
    older          keys by other names that earlier files have for them
    """

    architecture: str
    heads: Mapping[str, str]
    norms: tuple[str, ...]
    defaults: Mapping[str, float]
    older: Mapping[str, str]


LLAMA_CPP = Dialect(
    ARCHITECTURE, HEADS, ("output_norm.weight",), {"rope.freq_base": 1e4, "rope.freq_base_swa": 1e4}, {}
)
# Ollama's own file of the model, older than Dense heads in llama.cpp's. Source: Ollama, model/models/gemma3 (embed.go,
# model_text.go), and llama/compat, llama-ollama-compat.cpp (handle_embeddinggemma), which turns it into llama.cpp's.
OLLAMA = Dialect(
    "gemma3",
    {"2_Dense": "dense.0", "3_Dense": "dense.1"},
    ("output_norm.weight", "norm.weight"),
    {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "attention.layer_norm_rms_epsilon": 1e-6},
    {"rope.freq_base": "rope.global.freq_base", "rope.freq_base_swa": "rope.local.freq_base"},
)


PATTERN = 6  # every sixth layer sees all tokens


MEAN = 1  # of llama.cpp's ways to pool


TRUNK_ALONE = Modules("", "1_Pooling", True, (Normalize("4_Normalize"),))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's types of pieces
