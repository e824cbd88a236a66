"""config.json: every way of saying the same, and every setting that would change the result and is not served."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_np import CheckpointError, ConfigError
from gemma_np.config import DEFAULTS, MAX_LAYERS, Config, Layer, read_config

SLIDING, FULL = "sliding_attention", "full_attention"
# EmbeddingGemma's config.json, with 6 layers instead of 24.
SETTINGS: dict[str, Any] = {
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3TextModel"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "dtype": "float32",
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 768,
    "intermediate_size": 1152,
    "layer_types": [SLIDING] * 5 + [FULL],
    "max_position_embeddings": 2048,
    "model_type": "gemma3_text",
    "num_attention_heads": 3,
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "use_bidirectional_attention": True,
    "vocab_size": 262144,
}
NEAR = Layer(radius=256, theta=1e4, N=3, K=1, H=256, scale=1 / 16, eps=1e-6)
FAR = replace(NEAR, radius=None, theta=1e6)
EXPECTED = Config(262144, 768, 1152, 2048, (NEAR,) * 5 + (FAR,), frozenset({2}), frozenset({1}))
ABSENT = object()  # for a key that the file does not have

Read = Callable[..., Config]


def with_changes(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**SETTINGS, **changes}.items() if value is not ABSENT}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture
def read(scratch: Path) -> Read:
    """EmbeddingGemma's config.json with some keys changed, read."""

    def write_and_read(**changes: Any) -> Config:
        (scratch / "config.json").write_text(json.dumps(with_changes(changes)))
        return read_config(scratch)

    return write_and_read


def test_embeddinggemmas_settings_become_its_numbers(read: Read) -> None:
    assert read() == EXPECTED


@pytest.mark.parametrize("file", ["config.json", "config.resaved.json"])
def test_the_real_file_and_the_one_saved_again_are_the_same_model(shared: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_bytes((shared / "data/embeddinggemma-300m" / file).read_bytes())
    assert read_config(tmp_path) == replace(EXPECTED, layers=((NEAR,) * 5 + (FAR,)) * 4)


@pytest.mark.parity
def test_absent_keys_mean_what_they_mean_to_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    settings = transformers.Gemma3TextConfig().to_dict()
    rope = settings["rope_parameters"]
    theirs = {
        **{key: settings[key] for key in DEFAULTS if key in settings},
        "sliding_window_pattern": settings["_sliding_window_pattern"],
        "rope_theta": rope[FULL]["rope_theta"],
        "rope_local_base_freq": rope[SLIDING]["rope_theta"],
    }
    assert theirs == DEFAULTS
    assert not settings["use_bidirectional_attention"]  # absent: a causal model, which is refused


def test_absent_keys_have_their_defaults(read: Read) -> None:
    keep = ("model_type", "use_bidirectional_attention")
    config = read(**{key: ABSENT for key in SETTINGS if key not in keep})
    near = Layer(radius=2048, theta=1e4, N=8, K=4, H=256, scale=1 / 16, eps=1e-6)
    far = replace(near, radius=None, theta=1e6)
    layers = tuple(far if i in (5, 11, 17, 23) else near for i in range(26))
    assert config == Config(262_208, 2304, 9216, 131_072, layers)  # no BOS, no EOS: nothing is known of them


# ---- which layers see how far ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "radius"), [(512, 256), (2, 1), (64, 32), (4096, 2048), (258, 129), (256, 128)])
def test_an_even_window_is_a_full_width_of_which_half_lies_on_each_side(
    read: Read, caplog: pytest.LogCaptureFixture, window: int, radius: int
) -> None:
    with caplog.at_level(logging.DEBUG, "gemma_np"):
        assert read(sliding_window=window).layers == (replace(NEAR, radius=radius),) * 5 + (FAR,)
    assert not caplog.records


@pytest.mark.parametrize(("window", "radius"), [(257, 256), (33, 32), (1, 0), (2049, 2048)])
def test_an_odd_window_is_an_exclusive_bound_that_was_saved_and_the_log_says_so(
    read: Read, caplog: pytest.LogCaptureFixture, window: int, radius: int
) -> None:
    with caplog.at_level(logging.INFO, "gemma_np"):
        assert read(sliding_window=window).layers[0].radius == radius
    assert f"sliding_window = {window} is an exclusive bound" in caplog.text
    assert f"{radius} tokens to each side" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_model_without_sliding_layers_needs_no_window(read: Read) -> None:
    assert read(layer_types=[FULL] * 6, sliding_window=None).layers == (FAR,) * 6


@pytest.mark.parametrize(
    ("pattern", "far"), [(ABSENT, [5, 11]), (6, [5, 11]), (3, [2, 5, 8, 11]), (1, range(12)), (13, [])]
)
def test_without_layer_types_every_pattern_th_layer_is_full(read: Read, pattern: object, far: list[int]) -> None:
    layers = read(layer_types=ABSENT, num_hidden_layers=12, sliding_window_pattern=pattern).layers
    assert [i for i, layer in enumerate(layers) if layer.radius is None] == list(far)


def test_layer_types_win_over_the_pattern(read: Read) -> None:
    kinds = [FULL, SLIDING, FULL, SLIDING, SLIDING, FULL]
    layers = read(layer_types=kinds, sliding_window_pattern=2).layers
    assert [layer.radius for layer in layers] == [None, 256, None, 256, 256, None]
    assert [layer.theta for layer in layers] == [1e6, 1e4, 1e6, 1e4, 1e4, 1e6]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layer_types": [SLIDING] * 5}, "layer_types must be a list of num_hidden_layers = 6 names"),
        ({"layer_types": []}, "layer_types must be a list"),
        ({"layer_types": SLIDING}, "layer_types must be a list"),
        ({"layer_types": {str(i): FULL for i in range(6)}}, "layer_types must be a list"),
        ({"layer_types": [FULL] * 5 + ["chunked_attention"]}, r"layer_types\[5\] = 'chunked_attention', expected"),
        ({"layer_types": [FULL] * 5 + [None]}, r"layer_types\[5\] = None"),
        ({"layer_types": [FULL] * 5 + [[FULL]]}, r"layer_types\[5\] = \['full_attention'\]"),
        ({"layer_types": ABSENT, "sliding_window_pattern": 0}, "sliding_window_pattern = 0, expected"),
        ({"layer_types": ABSENT, "sliding_window_pattern": "6"}, "sliding_window_pattern = '6', expected"),
        ({"num_hidden_layers": MAX_LAYERS + 1}, "num_hidden_layers = 10001, expected at most 10000"),
        ({"layer_types": ABSENT, "num_hidden_layers": 2**30}, "num_hidden_layers = 1073741824, expected at most"),
    ],
)
def test_layers_that_make_no_sense_are_refused(read: Read, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read(**changes)


# ---- RoPE --------------------------------------------------------------------------------------------------------

PARAMETERS = {
    FULL: {"rope_type": "default", "rope_theta": 2e6},
    SLIDING: {"rope_type": "default", "rope_theta": 2e4},
}


@pytest.mark.parametrize(
    ("changes", "far", "near"),
    [
        ({"rope_theta": 2e6, "rope_local_base_freq": 2e4}, 2e6, 2e4),
        ({"rope_theta": 2000000, "rope_local_base_freq": 20000}, 2e6, 2e4),  # integers
        ({"rope_parameters": PARAMETERS}, 2e6, 2e4),  # the newer style wins over the older keys beside it
        ({"rope_parameters": PARAMETERS, "rope_theta": ABSENT, "rope_local_base_freq": ABSENT}, 2e6, 2e4),
        ({"rope_parameters": {FULL: PARAMETERS[FULL]}, "rope_local_base_freq": 3e4}, 2e6, 3e4),
        ({"rope_parameters": {FULL: {"rope_type": "default"}, SLIDING: None}, "rope_theta": 3e6}, 3e6, 1e4),
        ({"rope_parameters": None}, 1e6, 1e4),
        ({"rope_theta": ABSENT, "rope_local_base_freq": ABSENT}, 1e6, 1e4),
        ({"rope_scaling": {"rope_type": "default"}}, 1e6, 1e4),
        ({"rope_scaling": {"type": "default"}}, 1e6, 1e4),
        ({"rope_scaling": {}}, 1e6, 1e4),
    ],
)
def test_both_styles_of_rope_settings_are_read(read: Read, changes: dict[str, Any], far: float, near: float) -> None:
    layers = read(**changes).layers
    assert layers == (replace(NEAR, theta=near),) * 5 + (replace(FAR, theta=far),)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, "rope_scaling asks for rope_type = 'linear'"),
        ({"rope_scaling": {"factor": 8.0, "type": "linear"}}, "rope_scaling asks for type = 'linear'"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling sets factor"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear', expected an object"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'"),
        (
            {"rope_parameters": {**PARAMETERS, FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}},
            "rope_parameters.full_attention asks for rope_type = 'linear'; only 'default' RoPE is served",
        ),
        (
            {"rope_parameters": {**PARAMETERS, SLIDING: {"rope_type": "default", "partial_rotary_factor": 0.5}}},
            "rope_parameters.sliding_attention sets partial_rotary_factor",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "expected one entry each"),
        ({"rope_parameters": [PARAMETERS]}, "expected one entry each"),
        ({"rope_parameters": {FULL: "default"}}, "rope_parameters.full_attention = 'default', expected an object"),
    ],
)
def test_rope_of_another_kind_is_refused(read: Read, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read(**changes)


# ---- settings that would change the result -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "bert"}, "model_type = 'bert' .another architecture.; gemma_np runs EmbeddingGemma"),
        ({"model_type": ABSENT}, "model_type = None"),
        ({"model_type": ["gemma3_text"]}, "model_type = "),
        ({"model_type": "gemma3", "vision_config": {}}, "model_type = 'gemma3' .a model with a vision tower."),
        (
            {"use_bidirectional_attention": False},
            "use_bidirectional_attention = False: this is a causal language model",
        ),
        ({"use_bidirectional_attention": ABSENT}, "use_bidirectional_attention = False: this is a causal"),
        ({"use_bidirectional_attention": None}, "use_bidirectional_attention = None: this is a causal"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
        ({"use_bidirectional_attention": 1}, "use_bidirectional_attention = 1"),
        ({"attention_bias": True}, "attention_bias = True: it would change the result"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"attn_logit_softcapping": 0}, "attn_logit_softcapping = 0"),
        ({"hidden_activation": "gelu"}, "hidden_activation = 'gelu'.*expected 'gelu_pytorch_tanh'"),
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config: .* quantised with awq, .*'q8_0'"),
        ({"compression_config": {"format": "pack-quantized"}}, "compression_config: .* quantised by a tool"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization: .* quantised with MLX"),
        ({"quantization_config": "int8"}, "quantization_config: .* quantised by a tool"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_attention_heads = 3 is not a multiple of .* = 2"),
        ({"num_key_value_heads": 4}, "num_attention_heads = 3 is not a multiple of num_key_value_heads = 4"),
        ({"head_dim": 255}, "head_dim = 255, expected an even number"),
    ],
)
def test_a_setting_that_would_change_the_result_is_refused_by_name(
    read: Read, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {why}"):
        read(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"final_logit_softcapping": 30.0},  # behind the language model's head, which an encoder does not have
        {"attention_bias": ABSENT},
        {"hidden_activation": ABSENT},
        {"quantization_config": None},
        {"dtype": "bfloat16"},  # the file says for itself what its tensors are
        {"tie_word_embeddings": False, "use_cache": False, "attention_dropout": 0.5, "initializer_range": 1},
        {"transformers_version": "99", "something_new": [1, 2, 3]},
    ],
)
def test_a_setting_that_changes_nothing_is_no_matter(read: Read, changes: dict[str, Any]) -> None:
    assert read(**changes) == EXPECTED


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "sliding_window",
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, 768.0, "768", True, None, [768], 2**31, 10**30])
def test_a_size_is_a_positive_integer(read: Read, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {key} = .*, expected a positive integer"):
        read(**{key: value})


@pytest.mark.parametrize("key", ["rms_norm_eps", "query_pre_attn_scalar", "rope_theta", "rope_local_base_freq"])
@pytest.mark.parametrize(
    "value", [0, -1e-6, math.nan, math.inf, -math.inf, "1e-6", True, None, [1.0], 10**400, 5e-324, 1e-31]
)
def test_a_factor_is_a_positive_number(read: Read, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {key}.* = .*, expected a positive number"):
        read(**{key: value})


@pytest.mark.parametrize(
    ("number", "why"),
    [
        ("9" * 1_000_000, "not valid JSON"),  # Python reads 4,300 digits at most, which takes no time
        ("-" + "9" * 4300, "expected a positive integer"),
        ("1e999", "hidden_size = inf, expected"),
        ("1" * 400 + ".5", "hidden_size = inf, expected"),
        ("-0", "hidden_size = 0, expected"),
        ("-0.0", "hidden_size = -0.0, expected"),
        ("1e-999", "hidden_size = 0.0, expected"),
        ("7.68e2", "hidden_size = 768.0, expected"),
        ("NaN", "hidden_size = nan, expected"),
        ("-Infinity", "hidden_size = -inf, expected"),
        ("true", "hidden_size = True, expected"),
        ("00768", "not valid JSON"),
        ("+768", "not valid JSON"),
        ("0x300", "not valid JSON"),
        ("7_68", "not valid JSON"),
        ("٧٦٨", "not valid JSON"),
        ('"768"', "hidden_size = '768', expected"),
    ],
)
def test_a_number_is_what_json_calls_one(tmp_path: Path, number: str, why: str) -> None:
    text = json.dumps(SETTINGS).replace('"hidden_size": 768', f'"hidden_size": {number}')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ConfigError, CheckpointError), match=why):
        read_config(tmp_path)


def test_of_a_key_that_occurs_twice_the_last_counts_as_in_transformers(tmp_path: Path) -> None:
    text = json.dumps(SETTINGS).replace('"hidden_size": 768', '"hidden_size": 1, "hidden_size": 768')
    (tmp_path / "config.json").write_text(text)
    assert read_config(tmp_path) == EXPECTED


def test_scale_and_epsilon_are_the_files_own(read: Read) -> None:
    layers = read(query_pre_attn_scalar=24, rms_norm_eps=1e-5).layers
    assert {(layer.scale, layer.eps) for layer in layers} == {(1 / math.sqrt(24), 1e-5)}


@pytest.mark.parametrize(
    ("value", "ids"), [(2, {2}), ([1, 106], {1, 106}), (None, set()), (ABSENT, set()), ([], set()), (0, {0})]
)
def test_token_ids_are_one_or_several(read: Read, value: object, ids: set[int]) -> None:
    assert read(bos_token_id=value).bos == ids
    assert read(eos_token_id=value).eos == ids


@pytest.mark.parametrize("value", ["<bos>", 1.0, True, [1, "2"], {"id": 2}])
def test_token_ids_are_integers(read: Read, value: object) -> None:
    with pytest.raises(ConfigError, match=r"bos_token_id = .*, expected a token id or a list of them"):
        read(bos_token_id=value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected an object"):
        read_config(tmp_path)


KEYS = [*SETTINGS, "rope_parameters", "sliding_window_pattern", "quantization_config"]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5) | st.sampled_from(KEYS), inner),
    max_leaves=8,
)


@given(changes=st.dictionaries(st.sampled_from(KEYS), ANY_JSON, max_size=4))
def test_whatever_the_file_says_it_is_read_or_refused(scratch: Path, changes: dict[str, Any]) -> None:
    (scratch / "config.json").write_text(json.dumps(with_changes(changes)))
    try:
        config = read_config(scratch)
    except ConfigError:
        return
    assert 0 < len(config.layers) <= MAX_LAYERS
    for layer in config.layers:
        assert layer.N % layer.K == layer.H % 2 == 0
        assert all(math.isfinite(value) and value > 0 for value in (layer.theta, layer.scale, layer.eps))
