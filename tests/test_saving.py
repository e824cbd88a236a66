"""Models to folders and back: quantised, float32, and as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bounds import ROUNDED_COSINE, SAME_COSINE
from make_checkpoint import SMALL, make_checkpoint
from safetensors.numpy import load_file
from zoo import ZOO

from gemma_np import EmbeddingGemma, InputError, WeightsError
from gemma_np.checkpoint.saving import save
from gemma_np.cli.main import main
from gemma_np.fidelity import SAMPLE, cosines
from gemma_np.files.mapped import read_json_object
from gemma_np.opening import open_source

TEXTS = ["", "The red planet", "Ünïcode 猫が寝ている", "a much longer text about seven birds " * 30]


@pytest.mark.parametrize("format", ["q8_0", "q4_0", "mixed"])
def test_a_quantised_model_goes_back_to_float_with_its_values(format: str, small: Path, tmp_path: Path) -> None:
    """Rounded values are on the format's grid: quantising the float checkpoint again gives the same bytes."""
    save(open_source(small), tmp_path / "rounded", format)
    save(open_source(tmp_path / "rounded"), tmp_path / "float", "float32")
    save(open_source(tmp_path / "float"), tmp_path / "again", format)
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("rounded", "again"))
    assert first.keys() == again.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    plain = EmbeddingGemma(tmp_path / "float")
    assert plain.quantization is None
    found = cosines(plain.encode(TEXTS), EmbeddingGemma(tmp_path / "rounded").encode(TEXTS))
    assert found.min() >= ROUNDED_COSINE  # activations are rounded in one of them


def test_a_float_model_goes_to_float_unchanged(small: Path, tmp_path: Path) -> None:
    EmbeddingGemma(small).save_pretrained(tmp_path / "copy")
    for part in ("model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"):
        old, new = load_file(small / part), load_file(tmp_path / "copy" / part)
        assert {name.removeprefix("model.") for name in old} == set(new)
        for name, array in old.items():
            np.testing.assert_array_equal(new[name.removeprefix("model.")], array)
    np.testing.assert_array_equal(EmbeddingGemma(tmp_path / "copy").encode(TEXTS), EmbeddingGemma(small).encode(TEXTS))


@pytest.mark.parametrize("name", ["bfloat16", "sharded", "prefixed", "no_dense", "groups"])
def test_other_checkpoints_make_the_same_journey(name: str, tmp_path: Path) -> None:
    checkpoint = ZOO[name].make(tmp_path / "checkpoint")
    save(open_source(checkpoint), tmp_path / "rounded", "q8_0")
    ours = EmbeddingGemma(tmp_path / "rounded")
    np.testing.assert_array_equal(ours.encode(TEXTS), EmbeddingGemma(checkpoint, quantization="q8_0").encode(TEXTS))


def test_biases_and_activations_make_it_too(tmp_path: Path) -> None:
    heads = ((64, 128, True, "Tanh"), (128, 32, True, "Identity"))
    checkpoint = make_checkpoint(tmp_path / "checkpoint", SMALL, dense=heads)
    save(open_source(checkpoint), tmp_path / "rounded", "q8_0")
    ours = EmbeddingGemma(tmp_path / "rounded").encode(TEXTS)
    np.testing.assert_array_equal(ours, EmbeddingGemma(checkpoint, quantization="q8_0").encode(TEXTS))
    save(open_source(tmp_path / "rounded"), tmp_path / "float", "float32")
    for name in ("2_Dense", "3_Dense"):
        old, new = (load_file(tmp_path / part / name / "model.safetensors") for part in ("checkpoint", "float"))
        np.testing.assert_array_equal(new["linear.bias"], old["linear.bias"])


def test_prompts_and_settings_are_saved_as_they_are_now(small: Path, tmp_path: Path) -> None:
    model = EmbeddingGemma(small, prompts={"mine": "mine: "}, default_prompt_name="mine", truncate_dim=32)
    model.similarity_fn_name = "dot"
    model.max_seq_length = 77
    for format in ("float32", "q8_0"):
        model.save_pretrained(tmp_path / format, format=format)
        again = EmbeddingGemma(tmp_path / format)
        assert again.prompts == model.prompts
        assert (again.default_prompt_name, again.truncate_dim) == ("mine", 32)
        assert (again.similarity_fn_name, again.max_seq_length) == ("dot", 77)
    assert main(["info", str(tmp_path / "q8_0"), "--check"]) == 0  # the checksums are the new files'


def test_a_model_is_saved_as_it_was_loaded(small: Path, tmp_path: Path) -> None:
    model = EmbeddingGemma(small, quantization="mixed")
    model.save_pretrained(tmp_path / "one")
    saved = EmbeddingGemma(tmp_path / "one")
    saved.save_pretrained(tmp_path / "two")
    assert (saved.quantization, EmbeddingGemma(tmp_path / "two").quantization) == ("mixed", "mixed")
    np.testing.assert_array_equal(EmbeddingGemma(tmp_path / "two").encode(TEXTS), model.encode(TEXTS))


def test_quantize_reports_size_and_cosine(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(small), "--format", "q8_0", "-o", str(tmp_path / "other")]) == 0
    out = capsys.readouterr().out.splitlines()
    size = sum(path.stat().st_size for path in (tmp_path / "other").rglob("*") if path.is_file())
    assert out[0] == f"{tmp_path / 'other'}: {size / 1e6:.1f} MB, q8_0"
    found = cosines(EmbeddingGemma(small).encode(SAMPLE), EmbeddingGemma(tmp_path / "other").encode(SAMPLE))
    assert out[1] == f"cosine to float32, 16 texts: mean {found.mean():.4f}, lowest {found.min():.4f}"
    assert main(["dequantize", str(tmp_path / "other"), "-o", str(tmp_path / "float")]) == 0
    assert capsys.readouterr().out.endswith(" MB, float32\n")


def test_what_cannot_be_is_refused_before_anything_is_written(small: Path, tmp_path: Path) -> None:
    save(open_source(small), tmp_path / "model", "q4_0")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match="is q4_0 already; make q8_0 from the float checkpoint that it came from"):
        save(open_source(tmp_path / "model"), tmp_path / "other", "q8_0")
    with pytest.raises(InputError, match="exists already"):
        save(open_source(small), tmp_path / "model", "q8_0")
    with pytest.raises(InputError, match="format = 'q2_k' is not known; expected float32, q8_0, q4_0, mixed"):
        save(open_source(small), tmp_path / "other", "q2_k")
    assert sorted(os.listdir(tmp_path)) == before
    assert main(["quantize", str(small), "-o", str(tmp_path / "model")]) == 2


def test_shapes_without_blocks_are_refused(tmp_path: Path) -> None:
    odd = ZOO["odd_sizes"].make(tmp_path / "odd")
    with pytest.raises(InputError, match="needs two axes, multiples of"):
        save(open_source(odd), tmp_path / "out", "q8_0")
    assert os.listdir(tmp_path) == ["odd"]


def test_a_damaged_checkpoint_leaves_nothing_behind(writable: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = load_file(writable / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.4.mlp.down_proj.weight"))
    tensors[name][3, 3] = np.nan
    save_file(tensors, writable / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layers\.4\.mlp\.down_proj\.weight"):
        save(open_source(writable), tmp_path / "out", "q8_0")
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("format", ["q4_0", "float32"])
def test_saving_computes_no_vector(small: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full model would run over 16 texts in NumPy to throw the cosines away."""

    def computed(*_: object) -> None:
        raise AssertionError("a vector was computed")

    model = EmbeddingGemma(small)
    monkeypatch.setattr("gemma_np.model.attention", computed)
    monkeypatch.setattr("gemma_np.pipeline.Pipeline.embed_ids", computed)
    model.save_pretrained(tmp_path / "model", format=format)


def test_progress_is_shown_on_demand(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(open_source(small), tmp_path / "quiet", "q8_0")
    assert "Quantising" not in capsys.readouterr().err
    EmbeddingGemma(small).save_pretrained(tmp_path / "loud", format="q8_0", show_progress_bar=True)
    assert "Quantising: 100%" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of pages")
def test_one_layer_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Twelve layers of 2 MB and a table of 33 MB pass through: less than 24 MB more than with one layer and 1,024
    rows."""
    script = """
import sys
from pathlib import Path
from gemma_np.checkpoint import saving
from gemma_np.opening import open_source
saving.save(open_source(Path(sys.argv[1])), Path(sys.argv[2]), "q8_0")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    peaks = []
    for L, V in ((1, 1024), (12, 32768)):
        settings = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": L, "vocab_size": V}
        settings["layer_types"] = ["full_attention"] * L
        heads = ((256, 256, False, "Identity"), (256, 256, False, "Identity"))
        checkpoint = make_checkpoint(tmp_path / f"of {L}", {**SMALL, **settings}, dense=heads)
        command = [sys.executable, "-c", script, str(checkpoint), str(tmp_path / f"out of {L}")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 24_000, peaks


def test_sentence_transformers_loads_what_went_back_to_float(
    sentence_transformers: ModuleType, small: Path, tmp_path: Path
) -> None:
    save(open_source(small), tmp_path / "rounded", "q4_0")
    save(open_source(tmp_path / "rounded"), tmp_path / "float", "float32")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "float"), device="cpu")
    expected = theirs.encode(TEXTS, convert_to_numpy=True)
    found = EmbeddingGemma(tmp_path / "float").encode(TEXTS)
    assert cosines(found, expected).min() >= SAME_COSINE
    rounded = EmbeddingGemma(tmp_path / "rounded").encode(TEXTS)
    assert cosines(rounded, expected).min() >= ROUNDED_COSINE  # activations are rounded there
    assert read_json_object(tmp_path / "float/config.json")["dtype"] == "float32"
    assert "torch_dtype" not in json.dumps(read_json_object(tmp_path / "float/config.json"))
