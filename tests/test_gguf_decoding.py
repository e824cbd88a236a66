"""GGUF's other block types have the values that llama.cpp computes from them, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_blocks import BY_THE_BOOK, SCALES, blocks_of, values_of

from gemma_np import WeightsError
from gemma_np.files.mapped import map_file
from gemma_np.gguf.decoding import DECODED, RECODED
from gemma_np.gguf.file import NUMBERS, TYPES, TensorInfo
from gemma_np.gguf.tensors import DecodedTensor, RecodedTensor, stored
from gemma_np.weights.blocks import BlockTensor

KINDS = [*DECODED, *RECODED]


def tensor_of(kind: str, blocks: Any, rows: int, folder: Path) -> Any:
    """The blocks as a matrix in a file."""
    (folder / "file").write_bytes(b"before" + blocks.tobytes())
    values = TYPES[NUMBERS[kind]][1]
    info = TensorInfo("w", kind, (rows, len(blocks) // rows * values), 6, blocks.nbytes)
    return stored(info, "w", map_file(folder / "file"))


def test_every_type_that_is_served_is_compared() -> None:
    assert set(BY_THE_BOOK) == set(KINDS) == set(SCALES)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_llama_cpp_s_one_by_one(kind: str, tmp_path: Path) -> None:
    blocks = blocks_of(kind, 6)
    expected = values_of(kind, blocks).reshape(3, -1)
    tensor = tensor_of(kind, blocks, 3, tmp_path)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (kind, expected.shape, blocks.nbytes)
    np.testing.assert_array_equal(tensor.float32(), expected)
    np.testing.assert_array_equal(tensor.rows(np.array([2, 0, 2])), expected[[2, 0, 2]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parity
def test_values_are_those_of_the_package_gguf(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `parity`")
    blocks = blocks_of(kind, 600, seed=1)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    tensor = tensor_of(kind, blocks, 300, tmp_path)  # more rows than are decoded at a time
    assert tensor.float32().tobytes() == expected.tobytes()  # signs of zeros, too


@pytest.mark.parametrize("kind", RECODED)
def test_what_has_the_form_of_q8_0_is_held_in_it_without_loss(kind: str, tmp_path: Path) -> None:
    blocks = blocks_of(kind, 8)
    tensor = tensor_of(kind, blocks, 4, tmp_path)
    assert isinstance(tensor, RecodedTensor)
    assert tensor.format == "q8_0"
    codes, scales = tensor.encoded()
    assert codes.min() >= 1  # kernels expect -127 to 127
    np.testing.assert_array_equal(scales.ravel(), np.ascontiguousarray(blocks[:, :2]).view("<f2").ravel())
    for ours, whole in zip(tensor.encoded_rows(np.array([3, 1])), (codes, scales), strict=True):
        np.testing.assert_array_equal(ours, whole[[3, 1]])


@pytest.mark.parametrize("kind", DECODED)
def test_the_others_are_held_in_float32_decoded_some_rows_at_a_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = blocks_of(kind, 1000)
    tensor = tensor_of(kind, blocks, 500, tmp_path)
    assert isinstance(tensor, DecodedTensor)
    assert tensor.format == "f32"
    seen: list[int] = []

    def watched(part: Any) -> Any:
        seen.append(len(part))
        return decode(part)

    decode = DECODED[kind].decode
    monkeypatch.setitem(DECODED, kind, DECODED[kind]._replace(decode=watched))
    assert tensor.float32().shape == tensor.shape
    assert seen == [512, 488]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_is_no_number_is_refused(kind: str, tmp_path: Path) -> None:
    for place in SCALES[kind]:
        for bad in (b"\x00\x7c", b"\x01\x7e", b"\x00\xfc"):  # infinity, NaN, -infinity
            blocks = blocks_of(kind, 2)
            blocks[1, place : place + 2] = np.frombuffer(bad, np.uint8)
            tensor = tensor_of(kind, blocks, 2, tmp_path)
            with pytest.raises(WeightsError, match="holds NaN or infinity"):
                tensor.encoded() if isinstance(tensor, BlockTensor) else tensor.float32()
            with pytest.raises(WeightsError, match="holds NaN or infinity"):
                tensor.rows(np.array([1]))
            tensor.rows(np.array([0]))
