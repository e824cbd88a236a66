"""Quantised tensors in files: block by block in llama.cpp's order, or packed as the kernels read them.

Tables from names to tensors hold them as they hold files.safetensors.Tensor: see `Stored` in loading.py. The files'
readers have checked that all bytes are there.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma_np.arrays import AnyArray, Float32
from gemma_np.errors import WeightsError
from gemma_np.files.mapped import MappedFile
from gemma_np.kernels.plan import GROUP
from gemma_np.weights.packed import Packed, layout
from gemma_np.weights.quantize import ZERO, Float16, UInt8, decode

BLOCK_BYTES = {"q8_0": 2 + GROUP, "q4_0": 2 + GROUP // 2}  # a float16 scale, then the codes


def row_bytes(inputs: int, format: str) -> int:
    """The size of a row of `inputs` values in blocks."""
    return inputs // GROUP * BLOCK_BYTES[format]


def to_blocks(codes: UInt8, scales: Float16, format: str) -> UInt8:  # [n, I], [n, I/32] -> [n, row_bytes]
    """Codes and scales as llama.cpp's blocks: q8_0 has signed codes, q4_0 the codes of inputs i and i + 16 in one byte.
    Source: llama.cpp, ggml-common.h (block_q8_0, block_q4_0)."""
    codes = codes.reshape(*scales.shape, GROUP)
    blocks = np.empty((*scales.shape, BLOCK_BYTES[format]), np.uint8)
    blocks[..., :2] = scales.astype("<f2")[..., None].view(np.uint8)
    if format == "q8_0":
        blocks[..., 2:] = codes ^ ZERO[format]  # subtracts 128, modulo 256
    else:
        blocks[..., 2:] = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << np.uint8(4)
    return blocks.reshape(len(scales), -1)


def from_blocks(blocks: UInt8, format: str) -> tuple[UInt8, Float16]:  # [n, row_bytes] -> [n, I], [n, I/32]
    """What `to_blocks` was given."""
    rows = len(blocks)
    blocks = blocks.reshape(rows, blocks.shape[1] // BLOCK_BYTES[format], BLOCK_BYTES[format])
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float16)
    if format == "q8_0":
        codes = blocks[..., 2:] ^ np.uint8(ZERO[format])
    else:
        codes = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return codes.reshape(rows, scales.shape[1] * GROUP), scales


def check_scales(scales: Float16, name: str, path: Path) -> None:
    """WeightsError for NaN and infinity: the rounding of activations would hide them."""
    if (scales.view(np.uint16) & 0x7C00 == 0x7C00).any():  # the exponent of both; isfinite takes ten times as long
        raise WeightsError(f"{path}: {name} holds NaN or infinity; the file is damaged, download or make it again")


@dataclass(frozen=True, eq=False)
class BlockTensor:
    """A matrix [O, I] whose rows are in blocks, one after the other. Nothing is read before it is asked for.

    format   "q8_0" or "q4_0"
    source   the file
    offset   where the matrix begins in the file, bytes
    """

    name: str
    format: str
    shape: tuple[int, int]
    source: MappedFile
    offset: int

    @property
    def dtype(self) -> str:
        return self.format.upper()

    @property
    def row_bytes(self) -> int:
        """The size of a row."""
        return row_bytes(self.shape[1], self.format)

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes

    @property
    def path(self) -> Path:
        return self.source.path

    def codes_of(self, stored: UInt8) -> tuple[UInt8, Float16]:  # [n, row_bytes] -> [n, I], [n, I/32]
        """Codes and scales of rows as they lie in the file."""
        return from_blocks(stored, self.format)

    def encoded(self) -> tuple[UInt8, Float16]:
        """All codes [O, I] and scales [O, I/32], as quantize.encode gives them."""
        stored: UInt8 = np.frombuffer(self.source.map, np.uint8, count=self.nbytes, offset=self.offset)
        codes, scales = self.codes_of(stored.reshape(self.shape[0], -1))
        self.let_go()
        check_scales(scales, self.name, self.path)
        return codes, scales

    def encoded_rows(self, ids: AnyArray) -> tuple[UInt8, Float16]:  # [T] -> [T, I], [T, I/32]
        """Codes and scales of some rows; the others are not read."""
        codes, scales = self.codes_of(self.source.rows(ids, self.offset, self.row_bytes, self.shape[0]))
        check_scales(scales, self.name, self.path)
        return codes, scales

    def float32(self) -> Float32:
        """All values, exactly."""
        return decode(*self.encoded(), self.format)

    def rows(self, ids: AnyArray) -> Float32:  # [T] -> [T, I]
        """Some rows, exactly, as a new array; the others are not read."""
        return decode(*self.encoded_rows(ids), self.format)

    def let_go(self) -> None:
        """Its pages do not count as resident memory any more, until they are read again."""
        self.source.let_go(self.offset, self.nbytes)


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A matrix [O, I] in a file as the kernels read it, see packed.Packed: its codes, and elsewhere its scales."""

    name: str
    format: str
    shape: tuple[int, int]
    source: MappedFile
    codes: int  # offsets in the file, bytes
    scales: int

    @property
    def dtype(self) -> str:
        return self.format.upper()

    @property
    def nbytes(self) -> int:
        codes, scales = layout(self.shape, self.format)
        assert scales is not None
        return math.prod(codes) + 2 * math.prod(scales)

    @property
    def path(self) -> Path:
        return self.source.path

    def packed(self) -> Packed:
        """Mapped without a copy where the file has it at multiples of 64 bytes, as kernels need it, else copied."""
        codes, scales = layout(self.shape, self.format)
        assert scales is not None
        mapped = Packed(
            self.format,
            self.shape,
            np.frombuffer(self.source.map, np.uint8, math.prod(codes), self.codes).reshape(codes),
            np.frombuffer(self.source.map, "<f2", math.prod(scales), self.scales).reshape(scales),
        )
        assert mapped.scales is not None
        check_scales(mapped.scales, self.name, self.path)
        return mapped.aligned()

    def float32(self) -> Float32:
        """All values, exactly."""
        return self.packed().dequantize()

    def let_go(self) -> None:
        """Its pages do not count as resident memory any more, until they are read again."""
        codes, scales = layout(self.shape, self.format)
        assert scales is not None
        self.source.let_go(self.codes, math.prod(codes))
        self.source.let_go(self.scales, 2 * math.prod(scales))
