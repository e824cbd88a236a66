"""Quantised tensors in files. test_quantize.py compares the blocks with gguf's; here they are read back."""

import gc
import math
from pathlib import Path

import numpy as np
import pytest

from gemma_np import CheckpointError
from gemma_np.arrays import AnyArray, Float32
from gemma_np.files.mapped import MappedFile, map_file
from gemma_np.weights.blocks import BLOCK_BYTES, BlockTensor, PackedTensor, from_blocks, row_bytes, to_blocks
from gemma_np.weights.packed import Packed, pack, pack_codes
from gemma_np.weights.quantize import encode

FORMATS = ("q8_0", "q4_0")
ZERO = {"q8_0": 0, "q4_0": 8}  # q8_0's codes are signed in blocks


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def w(rng: np.random.Generator) -> Float32:
    """[48, 96], in blocks of very different size."""
    return (rng.standard_normal((48, 96)) * 10 ** rng.uniform(-3, 3, (48, 96))).astype(np.float32)


def read_block(block: bytes, format: str) -> list[float]:
    """One block's values, by llama.cpp's definition and one at a time."""
    d = float(np.frombuffer(block[:2], "<f2")[0])
    if format == "q8_0":
        codes = [byte - 256 * (byte > 127) for byte in block[2:]]
    else:
        codes = [byte % 16 for byte in block[2:]] + [byte // 16 for byte in block[2:]]
    return [(code - ZERO[format]) * d for code in codes]


def stored(tmp_path: Path, *parts: AnyArray, before: int = 0) -> MappedFile:
    (tmp_path / "file").write_bytes(bytes(before) + b"".join(part.tobytes() for part in parts))
    return map_file(tmp_path / "file")


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_hold_the_values(format: str, w: Float32, tmp_path: Path) -> None:
    codes, scales = encode(w, format)
    blocks = to_blocks(codes, scales, format)
    assert blocks.shape == (48, row_bytes(96, format))
    expected = [read_block(block.tobytes(), format) for block in blocks.reshape(-1, BLOCK_BYTES[format])]
    tensor = BlockTensor("w", format, (48, 96), stored(tmp_path, blocks, before=7), 7)
    np.testing.assert_array_equal(tensor.float32(), np.reshape(expected, (48, 96)))
    ids = np.array([5, 47, 0, 5], np.int32)
    np.testing.assert_array_equal(tensor.rows(ids), np.reshape(expected, (48, 96))[ids])
    assert tensor.rows(np.array([], np.int32)).shape == (0, 96)
    assert (tensor.nbytes, tensor.dtype) == (blocks.nbytes, format.upper())


@pytest.mark.parametrize("format", FORMATS)
def test_every_byte_of_a_block_comes_back(format: str, rng: np.random.Generator, tmp_path: Path) -> None:
    """Other programs' blocks have codes that ours never have: -128, no block's largest value at -8 steps."""
    blocks = rng.integers(0, 256, (32, row_bytes(64, format)), np.uint8)
    blocks.reshape(-1, BLOCK_BYTES[format])[:, :2] = np.float16(rng.standard_normal((64, 1))).view(np.uint8)
    np.testing.assert_array_equal(to_blocks(*from_blocks(blocks, format), format), blocks)
    tensor = BlockTensor("w", format, (32, 64), stored(tmp_path, blocks), 0)
    packed = Packed.empty((32, 64), format)
    pack_codes(*tensor.encoded(), packed)
    np.testing.assert_array_equal(packed.dequantize(), tensor.float32())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shift", [0, 64, 2, 32])
def test_packed_matrices_are_mapped_where_they_are_aligned(format: str, shift: int, w: Float32, tmp_path: Path) -> None:
    packed = pack(w, format)
    assert packed.scales is not None
    source = stored(tmp_path, packed.codes, packed.scales, before=shift)
    tensor = PackedTensor("w", format, (48, 96), source, shift, shift + packed.codes.nbytes)
    found = tensor.packed()
    np.testing.assert_array_equal(found.codes, packed.codes)
    np.testing.assert_array_equal(found.scales, packed.scales)
    assert found.scales is not None
    assert found.codes.ctypes.data % 64 == found.scales.ctypes.data % 64 == 0
    mapped = np.frombuffer(source.map, np.uint8)
    assert np.shares_memory(found.codes, mapped) == (shift % 64 == 0)
    assert tensor.nbytes == packed.nbytes == math.prod(packed.codes.shape) + packed.scales.nbytes
    np.testing.assert_array_equal(tensor.float32(), packed.dequantize())
    tensor.let_go()
    np.testing.assert_array_equal(found.codes, packed.codes)


def test_a_file_that_is_cut_while_it_is_in_use_is_told(w: Float32, tmp_path: Path) -> None:
    blocks = to_blocks(*encode(w, "q8_0"), "q8_0")
    tensor = BlockTensor("w", "q8_0", (48, 96), stored(tmp_path, blocks), 0)
    with open(tmp_path / "file", "r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match="was cut to less than 4,896 bytes while it was in use"):
        tensor.rows(np.array([47]))


def test_the_file_closes_with_its_last_tensor(w: Float32, tmp_path: Path) -> None:
    tensor = BlockTensor("w", "q8_0", (48, 96), stored(tmp_path, to_blocks(*encode(w, "q8_0"), "q8_0")), 0)
    file = tensor.source.file
    del tensor
    gc.collect()
    assert file.closed
