"""The maker of checkpoints: the same arguments give the same files, and nothing half-written stays."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import SMALL, make_checkpoint, stored
from safetensors.numpy import load_file

from gemma_np import EmbeddingGemma, GemmaError
from gemma_np.files.safetensors import to_float32
from gemma_np.weights.packed import Packed
from gemma_np.weights.quantize import quantized_rows

TOOL = Path(__file__).parents[1] / "tools" / "make_checkpoint.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("weights", ["plain", "realistic"])
def test_the_same_seed_gives_the_same_files_and_another_gives_others(tmp_path: Path, weights: str) -> None:
    one, same, other = (
        digest(make_checkpoint(tmp_path / name, weights=weights, seed=seed))
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same
    assert one["model.safetensors"] != other["model.safetensors"]
    assert one["tokenizer.json"] == other["tokenizer.json"]


def test_what_exists_is_kept_unless_force_is_given(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(out).returncode == 0  # an empty folder is as good as none
    before = digest(out)
    refused = run(out, "--seed", 1)
    assert refused.returncode == 1
    assert refused.stderr == f"make_checkpoint: error: {out} exists; remove it, or pass --force to replace it\n"
    assert digest(out) == before
    assert run(out, "--seed", 1, "--force").returncode == 0
    assert digest(out) != before


def test_dtypes_have_short_names(tmp_path: Path) -> None:
    assert run(tmp_path / "short", "--dtype", "bf16").returncode == 0
    assert digest(tmp_path / "short") == digest(make_checkpoint(tmp_path / "long", dtype="bfloat16"))
    assert run(tmp_path / "none", "--dtype", "int8").returncode == 2


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GemmaError, match="has no tokenizer"):
        make_checkpoint(tmp_path / "out", tokenizer=tmp_path)
    with pytest.raises(GemmaError, match="head_dim = 7"):
        make_checkpoint(tmp_path / "out", {**SMALL, "head_dim": 7})
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    values = np.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-9, 0, -0.0, 3e38])
    expected = [1, 1, 1 + 4 * 2**-8, 1 + 2**-7, -1, 0, -0.0, 3e38]
    # 3e38 is no bfloat16: these have 8 bits, so the nearest is off by 2^-8 at most.
    np.testing.assert_allclose(to_float32(stored(values, "bfloat16")), expected, rtol=2**-8)
    np.testing.assert_array_equal(to_float32(stored(values[:7], "bfloat16")), np.float32(expected[:7]))


def test_the_tokenizer_is_small_and_loses_no_text(small: Path) -> None:
    import tokenizers

    assert (small / "tokenizer.json").stat().st_size < 100_000
    tokenizer = tokenizers.Tokenizer.from_file(str(small / "tokenizer.json"))
    for text in ("a cat", "猫 кот قطة", "\x00\x7f\u200b👩‍🚀 \t\n", "naïve  ﬁ"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_other_dtypes_hold_the_same_weights_rounded(tmp_path: Path) -> None:
    exact = load_file(make_checkpoint(tmp_path / "float32") / "model.safetensors")
    for dtype, error in (("float16", 2**-11), ("bfloat16", 2**-8)):  # half of the last of 11 and of 8 bits
        model = EmbeddingGemma(make_checkpoint(tmp_path / dtype, dtype=dtype))
        ours = model.weights.layers[2].up_proj
        ours = ours.dequantize() if isinstance(ours, Packed) else ours
        # below 2^-14 float16 has steps of 2^-24
        np.testing.assert_allclose(ours, exact["layers.2.mlp.up_proj.weight"], rtol=error, atol=2**-25)


@pytest.mark.parametrize(("format", "weights"), [("q4_0", "plain"), ("q4_0", "realistic"), ("q8_0", "realistic")])
def test_weights_on_a_formats_grid_lose_nothing_by_it(tmp_path: Path, format: str, weights: str) -> None:
    """Every matrix: embeddings, projections and Dense; norms have no format."""
    out = make_checkpoint(tmp_path / "on", weights=weights, on_grid=format)
    off = make_checkpoint(tmp_path / "off", weights=weights)
    files = [path.relative_to(out) for path in out.rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        before = load_file(off / file)
        for name, found in load_file(out / file).items():
            if found.ndim == 2:
                np.testing.assert_array_equal(quantized_rows(found, format), found, name)
                assert (quantized_rows(before[name], format) != before[name]).any(), f"{name}: the test says nothing"


def test_a_grid_is_a_formats_and_needs_float32(tmp_path: Path) -> None:
    with pytest.raises(GemmaError, match="values of q4_0 have more bits than bfloat16 holds; expected float32"):
        make_checkpoint(tmp_path / "out", dtype="bfloat16", on_grid="q4_0")
    refused = run(tmp_path / "out", "--on-grid", "q5_1")
    assert refused.returncode == 2
    assert "argument --on-grid: invalid choice: 'q5_1' (choose from" in refused.stderr
    assert list(tmp_path.iterdir()) == []
