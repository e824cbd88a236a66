"""Small checkpoints of many shapes, for goldens and live comparisons, and texts to try them with."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_checkpoint import SMALL, make_checkpoint

from gemma_np import EmbeddingGemma


@dataclass(frozen=True)
class Animal:
    """A checkpoint that differs from the small default in a few settings.

    settings  changes of config.json; None removes a key
    options   other arguments of make_checkpoint
    radius    how far its sliding layers reach
    judge     changes of config.json for Hugging Face, where it would misread ours
    """

    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    radius: int = 16
    judge: dict[str, Any] = field(default_factory=dict)

    def make(self, out: Path) -> Path:
        changed = {**SMALL, **self.settings}
        config = {key: value for key, value in changed.items() if value is not None or key not in self.settings}
        return make_checkpoint(out, config, **self.options)

    def make_for_hugging_face(self, folder: Path) -> Path | None:
        """A copy that Hugging Face reads rightly, or None where it reads ours rightly."""
        if not self.judge:
            return None
        self.make(folder / "theirs")
        path = folder / "theirs" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **self.judge}))
        return folder / "theirs"


PATTERN = ["sliding_attention", "full_attention", "sliding_attention"]

ZOO: dict[str, Animal] = {
    "defaults": Animal(),
    "realistic_weights": Animal(options={"weights": "realistic"}),
    "groups": Animal({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
    "every_head_its_own_keys": Animal({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}),
    "odd_sizes": Animal(
        {
            "hidden_size": 90,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "intermediate_size": 77,
            "query_pre_attn_scalar": 7,
            "rms_norm_eps": 1e-3,
        },
        {"dense": ((90, 131, False, "Identity"), (131, 90, False, "Identity"))},
    ),
    "window_of_one_neighbour": Animal({"sliding_window": 2}, radius=1),
    "saved_exclusive_window": Animal({"sliding_window": 9}, radius=8, judge={"sliding_window": 16}),
    "layer_types_by_pattern": Animal({"layer_types": None, "sliding_window_pattern": 2}),
    "all_layers_slide": Animal({"layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2}),
    "no_layer_slides": Animal({"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2, "sliding_window": None}),
    "new_style_rope": Animal(
        {
            "rope_theta": None,
            "rope_local_base_freq": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e3},
            },
        }
    ),
    "old_style_rope": Animal({"rope_theta": 3e5, "rope_local_base_freq": 500.0}),
    "bfloat16": Animal(options={"dtype": "bfloat16", "weights": "realistic"}),
    "float16": Animal(options={"dtype": "float16"}),
    "sharded": Animal(options={"shards": 3}),
    "prefixed": Animal(options={"prefix": "model."}),
    "biases_and_tanh": Animal(
        options={"dense": ((64, 100, True, "Tanh"), (100, 50, True, "Identity"), (50, 60, False, "Tanh"))}
    ),
    "no_dense": Animal(options={"dense": ()}),
    "no_normalize": Animal(options={"normalize": False}),
    "include_prompt_false": Animal(options={"include_prompt": False}),
}

# One text of each kind: none, one letter, scripts of the world, bytes that no piece covers, special tokens, long ones.
TEXTS = [
    "",
    "a",
    " ",
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,\ta tab\nand a line  ",
    "Größe, façade, naïveté, Ελληνικά, Русский, עברית, العربية, हिन्दी, ไทย, ქართული",
    "猫がマットの上に座った。한국어 문장입니다.",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b \x00 \U0010ffff",
    "<bos> and <eos> and <unk> in the text",
    "def f(x):\n    return x ** 2  # code",
]


WORDS = ("the", "cat", "saw", "a", "red", "house", "near", "old", "trees", "while", "birds", "sang", "about", "rain")


def text_of(model: EmbeddingGemma, tokens: int, prompt_name: str | None) -> str:
    """Words of a text that has so many tokens with its prompt, BOS and EOS."""
    empty = model.count_tokens("", prompt_name)
    assert tokens >= empty, f"the prompt alone has {empty} tokens"
    if tokens == empty:
        return ""
    n = tokens - empty  # every word has at least one token
    while (
        count := model.count_tokens(text := " ".join(WORDS[i * 5 % len(WORDS)] for i in range(n)), prompt_name)
    ) > tokens:
        n -= max((count - tokens) // 4, 1)
    text += " a" * (tokens - count)
    assert model.count_tokens(text, prompt_name) == tokens, f"no text of {tokens} tokens was found"
    return text
