"""Every tensor is there, has the shape that config.json asks for, and comes into memory exactly."""

import json
import logging
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.numpy import save as serialized

from gemma_np import CheckpointError, WeightsError
from gemma_np.arrays import AnyArray, Float32
from gemma_np.checkpoint.folder import checkpoint_tensors
from gemma_np.config import read_config
from gemma_np.modules import resolve_modules
from gemma_np.weights.finite import find_nonfinite
from gemma_np.weights.loading import Weights, load_weights
from gemma_np.weights.names import layer_tensors, tensor_name, trunk_shapes

Arrays = dict[str, AnyArray]


def load(folder: Path) -> Weights:
    config, modules = read_config(folder), resolve_modules(folder)
    return load_weights(checkpoint_tensors(folder, config, modules), config, modules)


def tensors_of(folder: Path) -> Arrays:
    """The trunk's tensors, as copies: the file can be written again."""
    return {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}


def save(folder: Path, tensors: Arrays) -> None:
    save_file(tensors, folder / "model.safetensors")


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def bf16_bits(array: AnyArray) -> AnyArray:
    """float32 -> the upper half of its bits, cut off."""
    return (np.ascontiguousarray(array, dtype=np.float32).view(np.uint32) >> 16).astype("<u2")


def save_bf16(path: Path, tensors: Arrays) -> None:
    """The package has no bfloat16 arrays: it writes uint16, and the header is told otherwise."""
    data = serialized({name: bf16_bits(array) for name, array in tensors.items()})
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"U16"', b'"BF16"')
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])


def all_arrays(weights: Weights) -> dict[str, Float32]:
    """Everything that was loaded, by the names in the files."""
    V = weights.embed_tokens.shape[0]
    found = {"embed_tokens.weight": weights.embed_tokens.rows(np.arange(V)), "norm.weight": weights.norm}
    for i, layer in enumerate(weights.layers):
        found.update({tensor_name(i, field): array for field, array in vars(layer).items() if array is not None})
    for name, parts in weights.dense.items():
        found[f"{name}/linear.weight"] = parts.weight
        if parts.bias is not None:
            found[f"{name}/linear.bias"] = parts.bias
    return found


def assert_equal(found: dict[str, Float32], expected: Arrays) -> None:
    """Same names, same bits."""
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == np.float32, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def expected_of(folder: Path) -> Arrays:
    """What the package reads from the trunk and the Dense heads."""
    expected = tensors_of(folder)
    for path in folder.glob("*_Dense/model.safetensors"):
        expected.update({f"{path.parent.name}/{name}": array for name, array in load_file(path).items()})
    return expected


# ---- what is loaded ----------------------------------------------------------------------------------------------


def test_every_tensor_arrives_where_it_belongs(small: Path) -> None:
    assert_equal(all_arrays(load(small)), expected_of(small))


def test_the_names_are_the_checkpoints() -> None:
    assert tensor_name(3, "q_proj") == "layers.3.self_attn.q_proj.weight"
    assert tensor_name(0, "k_norm") == "layers.0.self_attn.k_norm.weight"
    assert tensor_name(11, "down_proj") == "layers.11.mlp.down_proj.weight"
    assert tensor_name(5, "post_attention_layernorm") == "layers.5.post_attention_layernorm.weight"


def test_the_shapes_are_embeddinggemmas(shared: Path) -> None:
    config = read_config(shared / "data/embeddinggemma-300m")
    shapes = trunk_shapes(config)
    assert len(shapes) == 2 + 24 * 13
    assert {field: shape for field, (_, shape) in layer_tensors(config, 23).items()} == {
        "input_layernorm": (768,),
        "q_proj": (768, 768),
        "k_proj": (256, 768),
        "v_proj": (256, 768),
        "q_norm": (256,),
        "k_norm": (256,),
        "o_proj": (768, 768),
        "post_attention_layernorm": (768,),
        "pre_feedforward_layernorm": (768,),
        "gate_proj": (1152, 768),
        "up_proj": (1152, 768),
        "down_proj": (768, 1152),
        "post_feedforward_layernorm": (768,),
    }
    heads = 2 * 768 * 3072
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + heads == 307_581_696


def test_names_may_have_model_in_front(writable: Path, small: Path) -> None:
    save(writable, {f"model.{name}": array for name, array in tensors_of(writable).items()})
    assert_equal(all_arrays(load(writable)), expected_of(small))


def test_bfloat16_is_widened_exactly(writable: Path) -> None:
    expected = expected_of(writable)
    for path in writable.glob("**/model.safetensors"):
        save_bf16(path, load_file(path))
    rounded = {name: (bf16_bits(array).astype(np.uint32) << 16).view(np.float32) for name, array in expected.items()}
    assert_equal(all_arrays(load(writable)), rounded)


def test_float16_is_widened_exactly(writable: Path) -> None:
    expected = {name: array.astype(np.float16) for name, array in expected_of(writable).items()}
    for path in writable.glob("**/model.safetensors"):
        halves = {name: array.astype(np.float16) for name, array in load_file(path).items()}
        save_file(halves, path)
    assert_equal(all_arrays(load(writable)), expected)


def test_tensors_may_be_of_different_types(writable: Path) -> None:
    tensors = tensors_of(writable)
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = tensors[name].astype(np.float16)
    save(writable, tensors)
    assert_equal(all_arrays(load(writable)), expected_of(writable))


def test_a_checkpoint_in_several_files_is_the_same_model(writable: Path, small: Path) -> None:
    tensors = tensors_of(writable)
    (writable / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 3:05}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, writable / file)
    (writable / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(all_arrays(load(writable)), expected_of(small))


def test_a_dense_head_may_have_a_bias(writable: Path) -> None:
    change_json(writable / "2_Dense/config.json", bias=True)
    weight = load_file(writable / "2_Dense/model.safetensors")["linear.weight"].copy()
    bias = np.linspace(-1, 1, len(weight), dtype=np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, writable / "2_Dense/model.safetensors")
    assert_equal(all_arrays(load(writable)), expected_of(writable))


# ---- memory ------------------------------------------------------------------------------------------------------


def test_float32_weights_are_the_files_own_memory(small: Path) -> None:
    weights = load(small)
    mapped = np.frombuffer(weights.embed_tokens.source.map, dtype=np.uint8)
    for name, array in all_arrays(weights).items():
        if name == "embed_tokens.weight":
            assert not np.shares_memory(array, mapped), "rows are new arrays"
            continue
        assert not array.flags.owndata, f"{name} was copied"
        assert not array.flags.writeable, f"{name} can be changed, and with it the file"
        assert np.shares_memory(array, mapped) == ("Dense" not in name), name  # Dense heads have files of their own


RESIDENT = """
import sys
from pathlib import Path
from gemma_np.config import read_config
from gemma_np.modules import resolve_modules
from gemma_np.checkpoint.folder import checkpoint_tensors
from gemma_np.weights.loading import load_weights
folder = Path(sys.argv[1])
config, modules = read_config(folder), resolve_modules(folder)
weights = load_weights(checkpoint_tensors(folder, config, modules), config, modules)
resident, inside = 0, False
for line in open("/proc/self/smaps"):
    if "-" in line.split(" ")[0]:
        inside = line.rstrip().endswith(str(folder / "model.safetensors"))
    elif inside and line.startswith("Rss:"):
        resident += int(line.split()[1]) * 1024
print(resident)
"""


def test_pages_of_converted_tensors_are_given_back(writable: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs /proc/self/smaps, which only Linux has")
    path = writable / "model.safetensors"
    change_json(writable / "config.json", intermediate_size=8192)
    rng = np.random.default_rng(0)
    shapes = trunk_shapes(read_config(writable))
    save_bf16(path, {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()})
    assert path.stat().st_size > 16e6
    run = subprocess.run([sys.executable, "-c", RESIDENT, str(writable)], capture_output=True, text=True, check=True)
    # The header, and the pages that a tensor shares with its neighbours: the system maps 16 around each one it reads.
    assert int(run.stdout) < 2e6, f"{int(run.stdout):,} of {path.stat().st_size:,} bytes stayed in memory"


# ---- what is missing, misshapen or too much ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["norm.weight"], r"norm\.weight missing"),
        (["embed_tokens.weight"], r"embed_tokens\.weight missing"),
        (["layers.5.mlp.up_proj.weight"], r"layers\.5\.mlp\.up_proj\.weight missing"),
        (
            [f"layers.{i}.self_attn.q_norm.weight" for i in range(6)],
            r"layers\.0\S+q_norm\.weight, layers\.1\S+, layers\.2\S+ and 3 more missing",
        ),
    ],
)
def test_missing_tensors_are_named(writable: Path, gone: list[str], message: str) -> None:
    tensors = tensors_of(writable)
    for name in gone:
        del tensors[name]
    save(writable, tensors)
    counts = rf"config\.json asks for 80 tensors, the file has {80 - len(gone)}\. `gemma-np info"
    with pytest.raises(WeightsError, match=f"{message}; .*{counts}"):
        load(writable)


def test_a_file_without_any_tensor_is_refused(writable: Path) -> None:
    save(writable, {})
    with pytest.raises(WeightsError, match=r"model\.safetensors: embed_tokens\.weight, .* and 77 more missing"):
        load(writable)


def test_a_file_with_fewer_layers_than_the_config_is_refused(writable: Path) -> None:
    change_json(writable / "config.json", num_hidden_layers=7, layer_types=["full_attention"] * 7)
    with pytest.raises(WeightsError, match=r"layers\.6\.input_layernorm\.weight, .* and 10 more missing"):
        load(writable)


@pytest.mark.parametrize(
    "name",
    [
        "embed_tokens.weight",
        "norm.weight",
        "layers.0.self_attn.q_proj.weight",
        "layers.1.self_attn.k_proj.weight",
        "layers.2.self_attn.v_proj.weight",
        "layers.3.self_attn.o_proj.weight",
        "layers.4.self_attn.q_norm.weight",
        "layers.5.self_attn.k_norm.weight",
        "layers.0.mlp.gate_proj.weight",
        "layers.1.mlp.up_proj.weight",
        "layers.2.mlp.down_proj.weight",
        "layers.3.post_feedforward_layernorm.weight",
    ],
)
@pytest.mark.parametrize("how", ["one row less", "one axis more"])
def test_a_misshapen_tensor_is_named_with_both_shapes(writable: Path, name: str, how: str) -> None:
    tensors = tensors_of(writable)
    expected = tensors[name].shape
    wrong = tensors[name][:-1] if how == "one row less" else tensors[name][None]
    tensors[name] = np.ascontiguousarray(wrong)
    save(writable, tensors)
    message = re.escape(f"model.safetensors: {name} has shape {wrong.shape}, expected {expected} from {writable}")
    with pytest.raises(WeightsError, match=message):
        load(writable)


def test_a_transposed_projection_is_refused(writable: Path) -> None:
    tensors = tensors_of(writable)
    name = "layers.0.mlp.down_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save(writable, tensors)
    with pytest.raises(WeightsError, match=re.escape(name)):
        load(writable)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "head_dim"])
def test_a_config_of_another_size_is_refused(writable: Path, key: str) -> None:
    was = json.loads((writable / "config.json").read_text())[key]
    change_json(writable / "config.json", **{key: was * 2})
    with pytest.raises(
        WeightsError, match=rf"has shape \(.*\), expected \(.*{was * 2 if key != 'head_dim' else ''}.*config\.json"
    ):
        load(writable)


@pytest.mark.parametrize(("dtype", "stored"), [("F64", np.float64), ("I8", np.int8), ("I64", np.int64)])
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.3.mlp.up_proj.weight", "norm.weight"])
def test_a_weight_of_another_type_is_refused_when_the_model_is_loaded(
    writable: Path, name: str, dtype: str, stored: type
) -> None:
    tensors = tensors_of(writable)
    tensors[name] = tensors[name].astype(stored)
    save(writable, tensors)
    message = rf"model\.safetensors: {re.escape(name)} has dtype {dtype}, expected one of F32, F16, BF16"
    with pytest.raises(CheckpointError, match=message):
        load(writable)


def test_tensors_that_nobody_uses_give_one_warning(writable: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {f"lm_head.{i}.weight": np.zeros(2, dtype=np.float64) for i in range(7)}  # of any type
    save(writable, {**tensors_of(writable), **extra})
    with caplog.at_level(logging.DEBUG, "gemma_np"):
        load(writable)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "model.safetensors: 7 tensors are not used: lm_head.0.weight, lm_head.1.weight" in record.getMessage()


def test_a_complete_checkpoint_gives_no_warning(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "gemma_np"):
        load(small)
    assert not caplog.records


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"linear\.weight missing; .*asks for 1 tensors, the file has 0"),
        ({"weight": (2, 2)}, r"linear\.weight missing"),
        ({"linear.weight": (2, 2)}, r"linear\.weight has shape \(2, 2\), expected \(\d+, \d+\) from \S+2_Dense"),
    ],
)
def test_a_dense_heads_tensors_are_checked(writable: Path, parts: dict[str, tuple[int, ...]], message: str) -> None:
    zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in parts.items()}
    save_file(zeros, writable / "2_Dense/model.safetensors")
    with pytest.raises(WeightsError, match=message):
        load(writable)


def test_a_dense_head_whose_bias_is_missing_is_refused(writable: Path) -> None:
    change_json(writable / "3_Dense/config.json", bias=True)
    with pytest.raises(
        WeightsError, match=r"linear\.bias missing; .*3_Dense.config\.json asks for 2 tensors, the file has 1"
    ):
        load(writable)


def test_a_bias_that_the_config_denies_is_not_used_and_the_log_says_so(
    writable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = writable / "3_Dense/model.safetensors"
    weight = load_file(path)["linear.weight"].copy()
    save_file({"linear.weight": weight, "linear.bias": np.ones(len(weight), dtype=np.float32)}, path)
    assert load(writable).dense["3_Dense"].bias is None
    assert "1 tensors are not used: linear.bias" in caplog.text


@pytest.mark.parametrize("head", ["2_Dense", "3_Dense"])
def test_a_dense_head_without_its_file_is_refused_never_skipped(writable: Path, head: str) -> None:
    (writable / head / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{head}.model\.safetensors is missing"):
        load(writable)


def test_a_trunk_may_lie_in_a_folder_of_its_own(writable: Path, small: Path) -> None:
    (writable / "0_Transformer").mkdir()
    for file in ("model.safetensors", "config.json"):
        shutil.move(writable / file, writable / "0_Transformer" / file)
    modules = json.loads((writable / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (writable / "modules.json").write_text(json.dumps(modules))
    config, modules = read_config(writable / "0_Transformer"), resolve_modules(writable)
    weights = load_weights(checkpoint_tensors(writable, config, modules), config, modules)
    assert_equal(all_arrays(weights), expected_of(small))


# ---- what is not finite ------------------------------------------------------------------------------------------

Damage = Callable[[str, float], Weights]


@pytest.fixture
def damaged(writable: Path) -> Damage:
    """The small model with one number of one tensor replaced."""

    def write_and_load(name: str, value: float) -> Weights:
        head, _, part = name.rpartition("/")
        path = writable / head / "model.safetensors"
        tensors = {key: array.copy() for key, array in load_file(path).items()}
        tensors[part].flat[-1] = value
        save_file(tensors, path)
        return load(writable)

    return write_and_load


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "layers.0.input_layernorm.weight",
        "layers.1.self_attn.q_proj.weight",
        "layers.2.self_attn.k_norm.weight",
        "layers.3.mlp.gate_proj.weight",
        "layers.4.mlp.down_proj.weight",
        "layers.5.post_feedforward_layernorm.weight",
        "norm.weight",
        "2_Dense/linear.weight",
        "3_Dense/linear.weight",
    ],
)
def test_the_tensor_that_is_not_finite_is_named(damaged: Damage, name: str, value: float) -> None:
    assert find_nonfinite(damaged(name, value), [np.array([2, 7, 1])]) == name


def test_a_bias_that_is_not_finite_is_named(writable: Path, damaged: Damage) -> None:
    change_json(writable / "2_Dense/config.json", bias=True)
    weight = load_file(writable / "2_Dense/model.safetensors")["linear.weight"].copy()
    bias = np.zeros(len(weight), dtype=np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, writable / "2_Dense/model.safetensors")
    assert find_nonfinite(damaged("2_Dense/linear.bias", np.nan), []) == "2_Dense/linear.bias"


def test_an_embedding_that_is_not_finite_is_named_with_its_row(damaged: Damage) -> None:
    weights = damaged("embed_tokens.weight", np.nan)
    last = weights.embed_tokens.shape[0] - 1
    here, elsewhere = np.array([2, last, 7, 1], dtype=np.int32), np.array([2, 1], dtype=np.int32)
    assert find_nonfinite(weights, [elsewhere, here]) == f"embed_tokens.weight (row {last})"
    assert find_nonfinite(weights, [elsewhere]) is None  # only the rows that were used are looked at


def test_in_a_sound_model_nothing_is_named(small: Path) -> None:
    assert find_nonfinite(load(small), [np.arange(100, dtype=np.int32)]) is None


def test_a_name_with_and_without_prefix_is_told(writable: Path) -> None:
    path = writable / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.norm.weight": tensors["norm.weight"]}, path)
    config, modules = read_config(writable), resolve_modules(writable)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight and norm\.weight are both there"):
        checkpoint_tensors(writable, config, modules)
