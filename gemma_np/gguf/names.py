"""What llama.cpp calls things: the keys, tensors and numbers that both reading and writing a GGUF file need."""

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


PATTERN = 6  # every sixth layer sees all tokens


MEAN = 1  # of llama.cpp's ways to pool


TRUNK_ALONE = Modules("", "1_Pooling", True, (Normalize("4_Normalize"),))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's types of pieces
