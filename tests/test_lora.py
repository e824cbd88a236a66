"""adapter_config.json says which LoRA it is; what is none is refused by the key's name."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import adapters
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import ConfigError, GemmaError
from gemma_np.checkpoint.lora import Lora, read_lora

MODULE = "layers.3.self_attn.q_proj"


def read(folder: Path, **settings: Any) -> Lora:
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return read_lora(folder)


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    lora = read(tmp_path, **{**adapters.CONFIG, "base_model_name_or_path": "google/x", "revision": "v2"})
    assert (lora.base, lora.revision) == ("google/x", "v2")
    assert (lora.rank_of(MODULE), lora.scale_of(MODULE)) == (4, 2.0)


def test_what_is_left_out_is_as_peft_has_it(tmp_path: Path) -> None:
    lora = read(tmp_path, peft_type="LORA")
    assert (lora.base, lora.rank_of(MODULE), lora.scale_of(MODULE)) == (None, 8, 1.0)


def test_the_scale_is_alpha_by_the_rank_or_its_root(tmp_path: Path) -> None:
    assert read(tmp_path, peft_type="LORA", r=16, lora_alpha=4).scale_of(MODULE) == 0.25
    assert read(tmp_path, peft_type="LORA", r=16, lora_alpha=4, use_rslora=True).scale_of(MODULE) == 1.0


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("layers.3.self_attn.q_proj", True),
        ("proj", False),  # not the end behind a dot
        ("layers.3", False),
        ("layers.2.self_attn.q_proj", False),
        (r"layers\.[0-3]\..*q_proj", True),
        ("q_proj|v_proj", True),
        (r"model\.layers\.3\.self_attn\.q_proj", False),
        (r"^layers\.3\.self_attn\.q_proj", True),
        ("^q_proj", False),
    ],
)
def test_patterns_fit_as_in_peft(pattern: str, fits: bool, tmp_path: Path) -> None:
    assert (re.match(rf"(.*\.)?({pattern})$", MODULE) is not None) == fits  # PEFT, utils/other.py (get_pattern_key)
    lora = read(tmp_path, peft_type="LORA", rank_pattern={pattern: 2}, alpha_pattern={pattern: 6})
    assert (lora.rank_of(MODULE), lora.scale_of(MODULE)) == ((2, 3.0) if fits else (8, 1.0))


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    lora = read(tmp_path, peft_type="LORA", rank_pattern={"v_proj": 3, "q_proj": 2, MODULE: 5})
    assert lora.rank_of(MODULE) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "ADALORA"}, "peft_type = 'ADALORA' is not served; expected 'LORA'. Merge it"),
        ({"peft_type": None}, "peft_type = None"),
        ({"use_dora": True}, "use_dora = True: this is no plain LoRA"),
        ({"bias": "all"}, "bias = 'all' is not served"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"modules_to_save": ["linear"]}, r"modules_to_save = \['linear'\]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"kasa_config": {"a": 1}}, "kasa_config"),
        ({"some_later_config": {"a": 1}}, "some_later_config"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' may have changed the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
        ({"r": 0}, "r = 0, expected a positive integer"),
        ({"r": 2.5}, "r = 2.5"),
        ({"lora_alpha": "8"}, "lora_alpha = '8', expected a number"),
        ({"lora_alpha": True}, "lora_alpha = True"),
        ({"use_rslora": "yes"}, "use_rslora = 'yes'"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path = 5, expected a string"),
        ({"revision": []}, r"revision = \[\], expected a string"),
        ({"rank_pattern": []}, None),
        ({"rank_pattern": ["q"]}, r"rank_pattern = \['q'\], expected an object"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\] = 0, expected a positive"),
        ({"alpha_pattern": {"q": "x"}}, r"alpha_pattern\['q'\] = 'x'"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern has '\(', which is no regular expression"),
        ({"rank_pattern": {"(a+)+b": 2}}, r"rank_pattern is too involved: '\(a\+\)\+b'"),
        ({"rank_pattern": {".*.*.*x": 2}}, "too involved"),
        ({"rank_pattern": {f"x{i}": 2 for i in range(301)}}, "too involved"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(settings: Any, message: str | None, tmp_path: Path) -> None:
    if message is None:
        read(tmp_path, **{"peft_type": "LORA", **settings})
        return
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **{"peft_type": "LORA", **settings})


@pytest.mark.parametrize("settings", [{"init_lora_weights": "eva"}, {"fan_in_fan_out": True}, {"lora_dropout": 0.1}])
def test_how_it_was_trained_does_not_matter(settings: Any, tmp_path: Path) -> None:
    assert read(tmp_path, peft_type="LORA", **settings).scale_of(MODULE) == 1.0


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*adapters.CONFIG, "else"]), ANY, max_size=5))
def test_whatever_the_file_says_it_is_read_or_refused(settings: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            lora = read(Path(folder), **{"peft_type": "LORA", **settings})
        except GemmaError:
            return
        assert isinstance(lora.scale_of(MODULE), float)
