"""A GGUF file's tensors: which types are read as what, and norms. What blocks mean is in test_gguf_decoding.py."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gemma_np import CheckpointError
from gemma_np.arrays import Float32
from gemma_np.files.mapped import MappedFile, map_file
from gemma_np.files.safetensors import Tensor
from gemma_np.gguf.file import TYPES, TensorInfo
from gemma_np.gguf.tensors import DecodedTensor, NormTensor, RecodedTensor, RoundedTensor, row_bytes, stored
from gemma_np.weights.blocks import BlockTensor

MATRIX, NORM = "layers.0.mlp.up_proj.weight", "norm.weight"
FLOATS = ("F32", "F16", "BF16")
SERVED: dict[tuple[str, str], type] = {
    **dict.fromkeys(((NORM, dtype) for dtype in FLOATS), NormTensor),
    **dict.fromkeys(((MATRIX, dtype) for dtype in FLOATS), Tensor),
    **dict.fromkeys(((MATRIX, dtype) for dtype in ("Q8_0", "Q4_0")), BlockTensor),
    **dict.fromkeys(((MATRIX, dtype) for dtype in ("Q5_0", "IQ4_NL")), RecodedTensor),
    **dict.fromkeys(((MATRIX, dtype) for dtype in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q6_K")), DecodedTensor),
}


def mapped(folder: Path, content: bytes) -> MappedFile:
    (folder / "file").write_bytes(content)
    return map_file(folder / "file")


@pytest.mark.parametrize("name", [MATRIX, NORM])
def test_every_type_is_served_or_refused_by_name(name: str, tmp_path: Path) -> None:
    """Norms are floats: no converter writes blocks for them."""
    shape, source = (256,) if name == NORM else (3, 256), mapped(tmp_path, bytes(4))
    for dtype, values, nbytes in TYPES.values():
        info = TensorInfo("its.name", dtype, shape, 4, int(np.prod(shape)) // values * nbytes)
        if (name, dtype) in SERVED:
            found = stored(info, name, source)
            assert type(found) is SERVED[name, dtype]
            assert (found.name, found.dtype, found.shape, found.offset) == (name, dtype, shape, 4)
            assert found.nbytes == info.nbytes
            assert row_bytes(dtype, 256) == 256 // values * nbytes
        else:
            with pytest.raises(CheckpointError, match=f"its.name has the type {dtype}; served are F32, .* for norms"):
                stored(info, name, source)


@given(arrays(np.float32, 64, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_norm_of_one_plus_w_comes_back_as_it_was(w: Float32) -> None:
    one = np.float32(1)
    stored = w + one
    np.testing.assert_array_equal(one + (stored - one), stored)


def test_finer_norms_change_by_half_a_unit_of_w_at_most(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).uniform(-2, 0.5, 4096).astype(np.float32) ** 3
    (tmp_path / "norm").write_bytes(stored.tobytes())
    w = NormTensor("norm", "F32", (4096,), map_file(tmp_path / "norm"), 0).float32()
    assert (np.abs(np.float64(np.float32(1) + w) - stored) <= 2**-24 * np.abs(w)).all()


def test_a_matrix_among_rounded_ones_says_that_it_is_to_be_rounded(tmp_path: Path) -> None:
    w = np.arange(64, dtype=np.float32).reshape(2, 32)
    whole = Tensor(MATRIX, "F32", (2, 32), mapped(tmp_path, w.tobytes()), 0)
    rounded = RoundedTensor(**vars(whole), whole=whole)
    assert (whole.format, rounded.format) == ("f32", "q8_0")
    assert rounded.nbytes == whole.nbytes
    np.testing.assert_array_equal(rounded.float32(), w)
