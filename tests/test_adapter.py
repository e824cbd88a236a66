"""A LoRA adapter is the model with its change merged; what does not fit, or is no plain LoRA, is refused by name."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import pytest
from adapters import ALL, ATTENTION, plain_scale
from make_checkpoint import SMALL, make_checkpoint
from safetensors.numpy import load_file, save_file
from sentences import sentences

from gemma_np import CheckpointError, ConfigError, EmbeddingGemma, GemmaError, InputError, WeightsError, hub
from gemma_np.checkpoint.fingerprint import fingerprint
from gemma_np.cli import main as cli
from gemma_np.gguf.export import export
from gemma_np.opening import open_source
from gemma_np.weights.derived import MergedTensor

TEXTS = sentences()[:12]
# The sum of W and the change is rounded once more here than in the twin, which is added up in float64. Weights differ
# by 2^-24 of their size, which moves vectors less than products in another order do, see bounds.FLOAT32.
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def changes(small: Path) -> dict[str, Any]:
    return adapters.halves(small)


@pytest.fixture(scope="module")
def twin(small: Path, changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with the change merged, by NumPy."""
    return adapters.merged(small, tmp_path_factory.mktemp("merged") / "twin", changes, plain_scale)


@pytest.fixture
def adapter(small: Path, changes: dict[str, Any], tmp_path: Path) -> Path:
    """As PEFT saves it, of all matrices."""
    return adapters.write(tmp_path / "adapter", small, changes)


def vectors(folder: Path, **options: Any) -> Any:
    return EmbeddingGemma(folder, **options).encode(TEXTS)


def test_its_vectors_are_those_of_the_merged_model(adapter: Path, small: Path, twin: Path) -> None:
    ours = vectors(adapter)
    np.testing.assert_allclose(ours, vectors(twin), **CLOSE)
    assert np.abs(ours - vectors(small)).max() > 0.01  # it does change something


def test_every_merged_matrix_is_the_base_s_and_the_change(adapter: Path, twin: Path) -> None:
    ours, theirs = open_source(adapter, base=hub.base_of(adapter)).tensors, open_source(twin).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected, found = tensor.float32(), ours[name].float32()
        assert isinstance(ours[name], MergedTensor) == name.removesuffix(".weight").endswith(ALL)
        rounded = 3 * np.finfo(np.float32).eps * np.abs(expected).max()  # of the product, the sum, and the twin's sum
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounded, err_msg=name)


@pytest.mark.parametrize("kernels", ["numpy", None])
def test_with_and_without_kernels(
    kernels: str | None, adapter: Path, twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels:
        monkeypatch.setenv("GEMMA_NP_KERNELS", kernels)
    np.testing.assert_allclose(vectors(adapter), vectors(twin), **CLOSE)


def test_some_matrices_of_some_layers(small: Path, tmp_path: Path) -> None:
    few = {name: half for name, half in adapters.halves(small, ATTENTION[:2]).items() if "layers.3" in name}
    assert len(few) == 4
    twin = adapters.merged(small, tmp_path / "twin", few, plain_scale)
    np.testing.assert_allclose(vectors(adapters.write(tmp_path / "few", small, few)), vectors(twin), **CLOSE)


def test_the_prefix_of_a_model_with_a_head_is_read(small: Path, changes: Any, twin: Path, tmp_path: Path) -> None:
    adapter = adapters.write(tmp_path / "adapter", small, changes, prefix="base_model.model.model.")
    np.testing.assert_allclose(vectors(adapter), vectors(twin), **CLOSE)


def test_ranks_and_scales_of_single_matrices(small: Path, tmp_path: Path) -> None:
    def rank(module: str) -> int:
        return 2 if module.endswith("v_proj") else 6 if module == "layers.1.mlp.down_proj" else 4

    def scale(module: str) -> float:
        return {"q_proj": 3.0, "k_proj": 16.0}.get(module[-6:], 8.0) / np.sqrt(rank(module))

    changes = adapters.halves(small, rank=rank)
    patterns = {
        "rank_pattern": {"v_proj": 2, "layers.1.mlp.down_proj": 6},
        "alpha_pattern": {r"layers\.\d+\.self_attn\.q_proj": 3, "self_attn.k_proj": 16.0},
    }
    adapter = adapters.write(tmp_path / "adapter", small, changes, use_rslora=True, **patterns)
    twin = adapters.merged(small, tmp_path / "twin", changes, scale)
    np.testing.assert_allclose(vectors(adapter), vectors(twin), **CLOSE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_base_in_half_precision_is_added_to_in_float32(dtype: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", SMALL, dtype=dtype)
    EmbeddingGemma(base).save_pretrained(tmp_path / "float", format="float32")
    changes = adapters.halves(tmp_path / "float")
    twin = adapters.merged(tmp_path / "float", tmp_path / "twin", changes, plain_scale)
    np.testing.assert_allclose(vectors(adapters.write(tmp_path / "adapter", base, changes)), vectors(twin), **CLOSE)


def test_halves_in_half_precision(small: Path, changes: Any, tmp_path: Path) -> None:
    halves = {name: half.astype(np.float16) for name, half in changes.items()}
    twin = adapters.merged(small, tmp_path / "twin", halves, plain_scale)
    np.testing.assert_allclose(vectors(adapters.write(tmp_path / "adapter", small, halves)), vectors(twin), **CLOSE)


def test_a_quantised_base_is_added_to_at_its_values(small: Path, tmp_path: Path) -> None:
    EmbeddingGemma(small).save_pretrained(tmp_path / "base", format="mixed")
    EmbeddingGemma(tmp_path / "base").save_pretrained(tmp_path / "float", format="float32")
    changes = adapters.halves(tmp_path / "float", ("k_proj", "up_proj", "o_proj"))
    adapter = adapters.write(tmp_path / "adapter", tmp_path / "base", changes)
    twin = adapters.merged(tmp_path / "float", tmp_path / "twin", changes, plain_scale)
    model = EmbeddingGemma(adapter)
    assert model.quantization is None
    np.testing.assert_allclose(model.encode(TEXTS), vectors(twin), **CLOSE)
    ours = open_source(adapter, base=tmp_path / "base").tensors
    for name, tensor in open_source(twin).tensors.items():  # what is not changed, bit for bit
        if f"{name.removesuffix('.weight')}.lora_A" not in changes:
            np.testing.assert_array_equal(ours[name].float32(), tensor.float32(), err_msg=name)


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_it_is_rounded_like_a_checkpoint(quantization: str, adapter: Path, tmp_path: Path) -> None:
    EmbeddingGemma(adapter).save_pretrained(tmp_path / "merged")
    ours = EmbeddingGemma(adapter, quantization=quantization)
    theirs = EmbeddingGemma(tmp_path / "merged", quantization=quantization)
    np.testing.assert_array_equal(ours.encode(TEXTS), theirs.encode(TEXTS))
    ours.save_pretrained(tmp_path / "rounded")
    np.testing.assert_array_equal(vectors(tmp_path / "rounded"), ours.encode(TEXTS))


# ---- modules and settings beside it --------------------------------------------------------------------------------


def test_trained_heads_and_settings_beside_it_win(small: Path, adapter: Path, twin: Path, tmp_path: Path) -> None:
    adapters.beside(small, adapter)
    head = load_file(adapter / "3_Dense/model.safetensors")
    save_file({name: 2 * np.flip(w, 0).copy() for name, w in head.items()}, adapter / "3_Dense/model.safetensors")
    adapters.edit(adapter / "config_sentence_transformers.json", prompts={"query": "q: ", "mine": "m: "})
    adapters.edit(adapter / "sentence_bert_config.json", max_seq_length=400)
    expected = Path(shutil.copytree(twin, tmp_path / "twin"))
    for name in ("3_Dense/model.safetensors", "config_sentence_transformers.json", "sentence_bert_config.json"):
        shutil.copy(adapter / name, expected / name)
    ours, theirs = EmbeddingGemma(adapter), EmbeddingGemma(expected)
    assert (ours.prompts, ours.max_seq_length) == (theirs.prompts, 400)
    mine = (model.encode(TEXTS[:3], prompt_name="mine") for model in (ours, theirs))
    np.testing.assert_allclose(*mine, **CLOSE)
    assert np.abs(ours.encode(TEXTS) - vectors(twin)).max() > 0.01
    ours.save_pretrained(tmp_path / "saved")
    again = EmbeddingGemma(tmp_path / "saved")
    assert (again.prompts, again.max_seq_length) == (ours.prompts, 400)
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))


def test_what_does_not_lie_beside_it_is_the_base_s(small: Path, adapter: Path) -> None:
    ours, theirs = EmbeddingGemma(adapter), EmbeddingGemma(small)
    assert (ours.modules, ours.prompts, ours.max_seq_length) == (theirs.modules, theirs.prompts, theirs.max_seq_length)


def test_a_tokenizer_beside_it_counts(small: Path, adapter: Path) -> None:
    shutil.copy(small / "tokenizer.json", adapter)
    source = open_source(adapter, base=small)
    assert source.open_tokenizer(run=None).path == adapter / "tokenizer.json"
    assert source.pieces().path == adapter / "tokenizer.json"


def test_a_base_with_its_trunk_in_a_folder(small: Path, changes: Any, twin: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(small, tmp_path / "base"))
    (base / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        (base / name).rename(base / "0_Transformer" / name)
    modules = json.loads((base / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (base / "modules.json").write_text(json.dumps(modules))
    peft = adapters.write(tmp_path / "peft", base, changes)
    whole = adapters.beside(small, adapters.write(tmp_path / "whole", base, changes))
    for folder in (peft, whole):
        model = EmbeddingGemma(folder)
        np.testing.assert_allclose(model.encode(TEXTS), vectors(twin), **CLOSE)
        for format in ("float32", "q8_0"):
            model.save_pretrained(folder / format, format=format)
        np.testing.assert_array_equal(vectors(folder / "float32"), model.encode(TEXTS))
        EmbeddingGemma(folder / "q8_0")


# ---- saved, exported, told -----------------------------------------------------------------------------------------


def test_it_is_saved_merged(adapter: Path, twin: Path, tmp_path: Path) -> None:
    model = EmbeddingGemma(adapter)
    model.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged/adapter_config.json").exists()
    np.testing.assert_array_equal(vectors(tmp_path / "merged"), model.encode(TEXTS))
    names = {path.relative_to(twin).as_posix() for path in twin.rglob("*") if path.is_file()}
    assert {
        path.relative_to(tmp_path / "merged").as_posix() for path in (tmp_path / "merged").rglob("*") if path.is_file()
    } == names


def test_it_is_exported_merged(adapter: Path, tmp_path: Path) -> None:
    with (tmp_path / "model.gguf").open("wb") as file, pytest.warns(match="merge in one way only"):
        export(open_source(adapter, base=hub.base_of(adapter)), file, "f32")
    np.testing.assert_array_equal(vectors(tmp_path / "model.gguf"), vectors(adapter))


def test_a_fingerprint_tells_adapters_apart(small: Path, adapter: Path, twin: Path) -> None:
    def found(folder: Path = adapter) -> str:
        source = open_source(folder, base=hub.base_of(folder))
        return fingerprint(source, None, source.defaults.prompts)

    seen = {found(), found(small), found(twin)}
    assert found() in seen
    assert len(seen) == 3
    adapters.edit(adapter / "adapter_config.json", lora_alpha=9)
    assert found() not in seen
    adapters.edit(adapter / "adapter_config.json", lora_alpha=8)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.layers.2.mlp.up_proj.lora_B.weight"
    save_file({**tensors, name: -tensors[name]}, adapter / "adapter_model.safetensors")
    assert found() not in seen


def test_a_pickle_opens_the_same_model_elsewhere(
    small: Path, changes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.parent)
    adapter = adapters.write(tmp_path / "adapter", small.name, changes)  # found from here alone
    by_config, by_name = EmbeddingGemma(adapter), EmbeddingGemma(adapter, base=small.name)
    pickled = [pickle.dumps(model) for model in (by_config, by_name)]
    monkeypatch.chdir(tmp_path)
    for content in pickled:
        np.testing.assert_array_equal(pickle.loads(content).encode(TEXTS), by_config.encode(TEXTS))


def test_commands_take_it(adapter: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(adapter)]) == 0
    out = capsys.readouterr().out
    assert f"base         {small}, into which the adapter is merged as it is loaded\n" in out
    assert "tensor       base_model.model.layers.*.mlp.up_proj.lora_A.weight F32   [4, 64]" in out
    assert out.endswith("can run      yes\n")
    for command, format in (("dequantize", []), ("quantize", ["--format", "q4_0"])):
        assert cli.main([command, str(adapter), *format, "-o", str(tmp_path / command)]) == 0
    np.testing.assert_array_equal(vectors(tmp_path / "dequantize"), vectors(adapter))
    np.testing.assert_array_equal(vectors(tmp_path / "quantize"), vectors(adapter, quantization="q4_0"))
    adapters.edit(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    capsys.readouterr()
    assert cli.main(["embed", "-m", str(adapter), "a text"]) == 1
    assert "adapter_config.json: the base: " in capsys.readouterr().err
    assert cli.main(["embed", "-m", str(adapter), "--base", str(small), "a text"]) == 0


# ---- refused -------------------------------------------------------------------------------------------------------


def change(folder: Path, **tensors: Any) -> None:
    """Change the adapter's tensors; None takes one out. Double underscores are dots."""
    path = folder / "adapter_model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    every = {name: tensor for name, tensor in {**load_file(path), **named}.items() if tensor is not None}
    save_file(every, path)


Q = "base_model__model__layers__0__self_attn__q_proj__lora_"
ONE = np.ones((4, 64), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}A__weight": None}, r"q_proj has .*lora_B\.weight, but .*q_proj\.lora_A\.weight is missing"),
        ({f"{Q}B__weight": None}, r"q_proj has .*lora_A\.weight, but .*q_proj\.lora_B\.weight is missing"),
        ({f"{Q}A__weight": ONE[:, :32]}, r"q_proj\.lora_A\.weight has shape \(4, 32\), expected \(4, 64\): .*rank 4"),
        ({f"{Q}A__weight": ONE[:3]}, r"lora_A\.weight has shape \(3, 64\), expected \(4, 64\)"),
        ({f"{Q}B__weight": ONE}, r"lora_B\.weight has shape \(4, 64\), expected \(64, 4\)"),
        ({f"{Q}A__weight": ONE.astype(np.int32)}, "has dtype I32"),
        ({f"{Q}magnitude_vector__weight": ONE}, r"lora_magnitude_vector\.weight is not served; expected LoRA"),
        ({"base_model__model__embed_tokens__lora_embedding_A": ONE}, "embed_tokens.lora_embedding_A is not served"),
        ({"base_model__model__norm__weight": ONE[0]}, r"norm\.weight is not served"),
        ({"base_model__model__layers__0__self_attn__q_proj__bias": ONE[0]}, r"q_proj\.bias is not served"),
        ({"linear__weight": ONE}, r"linear\.weight is not served"),
        (
            {f"base_model__model__layers__9__mlp__up_proj__lora_{half}__weight": ONE for half in "AB"},
            r"layers\.9\.mlp\.up_proj\.weight is no matrix of the base, .*, of 6 layers",
        ),
        (
            {
                f"base_model__model__model__layers__0__self_attn__q_proj__lora_{half}__weight": w
                for half, w in (("A", ONE), ("B", ONE.T.copy()))
            },
            r"layers\.0\.self_attn\.q_proj\.weight is changed twice",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tensors: Any, message: str, adapter: Path) -> None:
    change(adapter, **tensors)
    with pytest.raises(GemmaError, match=message):
        EmbeddingGemma(adapter)


def test_an_adapter_without_tensors_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no tensors"):
        EmbeddingGemma(adapters.write(tmp_path / "adapter", small, {}))


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    wider = make_checkpoint(tmp_path / "wider", {**SMALL, "hidden_size": 96})
    with pytest.raises(
        WeightsError, match=r"expected \(96, 4\): .* in the base, .*wider\. It is another model's adapter"
    ):
        EmbeddingGemma(adapter, base=wider)


def test_nan_in_a_half_is_found(adapter: Path) -> None:
    change(adapter, **{f"{Q}A__weight": np.full((4, 64), np.nan, np.float32)})
    with pytest.raises(WeightsError, match="holds NaN or infinity"):
        vectors(adapter)
    with pytest.raises(WeightsError, match=r"layers\.0\.self_attn\.q_proj\.weight"):
        vectors(adapter, quantization="q8_0")


def test_places_that_are_not_clear_are_refused(small: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="base is for LoRA adapters"):
        EmbeddingGemma(small, base=small)
    with pytest.raises(InputError, match="base is for LoRA adapters"):
        open_source(small, base=small)
    with pytest.raises(CheckpointError, match="its base must be named"):
        open_source(adapter)
    with pytest.raises(InputError, match="dense is for GGUF files"):
        EmbeddingGemma(adapter, dense=False)
    with pytest.raises(CheckpointError, match=r"its base, .*, is an adapter, too; merge that one first"):
        EmbeddingGemma(adapter, base=adapters.write(tmp_path / "second", small, {}))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"its base, .*model\.gguf, is one file"):
        EmbeddingGemma(adapter, base=tmp_path / "model.gguf")
    shutil.copytree(small / "2_Dense", adapter / "2_Dense")
    with pytest.raises(CheckpointError, match=r"has 2_Dense, but no modules\.json"):
        EmbeddingGemma(adapter)
    shutil.rmtree(adapter / "2_Dense")
    shutil.copy(small / "model.safetensors", adapter)
    with pytest.raises(CheckpointError, match="has both an adapter and a whole model's weights"):
        EmbeddingGemma(adapter)
    os.remove(adapter / "model.safetensors")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle file \(adapter_model\.bin\)"):
        EmbeddingGemma(adapter)


def test_a_base_that_is_not_found_is_told_with_what_to_do(adapter: Path) -> None:
    for name, message in (
        ("", "does not name the base; name it: --base"),
        ("no/such/base", "the base: .* --base MODEL"),
    ):
        adapters.edit(adapter / "adapter_config.json", base_model_name_or_path=name)
        with pytest.raises(GemmaError, match=message):
            EmbeddingGemma(adapter)
    adapters.edit(adapter / "adapter_config.json", peft_type="VERA")
    with pytest.raises(ConfigError, match=r"adapter_config\.json: peft_type = 'VERA'"):
        EmbeddingGemma(adapter)
