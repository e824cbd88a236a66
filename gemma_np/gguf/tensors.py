"""A GGUF file's tensors as weights.loading takes them: those that are stored in other ways than a checkpoint's."""

import math
from dataclasses import dataclass

import numpy as np

from gemma_np.arrays import AnyArray, Float32
from gemma_np.errors import CheckpointError
from gemma_np.files.mapped import MappedFile
from gemma_np.files.safetensors import FLOATS, Tensor
from gemma_np.gguf.decoding import DECODED, RECODED, q8_0_of
from gemma_np.gguf.file import NUMBERS, TYPES, TensorInfo
from gemma_np.weights.blocks import BlockTensor, check_scales
from gemma_np.weights.quantize import Float16, UInt8

BLOCKS = {"Q8_0": "q8_0", "Q4_0": "q4_0"}
ROWS = 256  # decoded at a time


def stored(info: TensorInfo, name: str, source: MappedFile) -> Tensor | BlockTensor:
    """A tensor under the checkpoint's name. CheckpointError for a type that is not served."""
    if len(info.shape) == 1 and info.dtype in FLOATS:
        return NormTensor(name, info.dtype, info.shape, source, info.offset)
    if info.dtype in FLOATS:
        return Tensor(name, info.dtype, info.shape, source, info.offset)
    if len(info.shape) == 2:
        shape = info.shape[0], info.shape[1]
        if info.dtype in BLOCKS:
            return BlockTensor(name, BLOCKS[info.dtype], shape, source, info.offset)
        if info.dtype in RECODED:
            return RecodedTensor(name, "q8_0", shape, source, info.offset, info.dtype)
        if info.dtype in DECODED:
            return DecodedTensor(name, info.dtype, shape, source, info.offset)
    served = ", ".join((*FLOATS, *BLOCKS, *RECODED, *DECODED))
    raise CheckpointError(
        f"{source.path}: {info.name} has the type {info.dtype}; served are {served} for matrices, and of these "
        f"{', '.join(FLOATS)} for norms. Take a file of the same model in Q8_0, or make one with llama.cpp's "
        "llama-quantize from one in F32, F16 or BF16"
    )


def row_bytes(kind: str, inputs: int) -> int:
    """The size of a row of a type."""
    _, values, size = TYPES[NUMBERS[kind]]
    return inputs // values * size


class NormTensor(Tensor):
    """A norm's weights. llama.cpp stores 1 + w, we compute with w and add the 1 again.

    Nothing is lost on the way: for every float32 w, 1 + ((1 + w) - 1) = 1 + w, with all three sums rounded. Only a file
    whose values below 1/2 were never such a sum has finer ones; they change by 2^-24 |w| at most.
    """

    def float32(self) -> Float32:
        w: Float32 = super().float32() - np.float32(1)
        return w


@dataclass(frozen=True, eq=False)
class RoundedTensor(Tensor):
    """A matrix among rounded ones: it is rounded to Q8_0, too, as it is loaded, so that kernels run them all."""

    whole: Tensor

    @property
    def format(self) -> str:
        return "q8_0"

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes

    def float32(self) -> Float32:
        return self.whole.float32()


@dataclass(frozen=True, eq=False)
class RecodedTensor(BlockTensor):
    """A matrix in a type whose values are q8_0's exactly, see decoding.py: it is held in q8_0.

    kind   the type in the file, by name
    """

    kind: str

    @property
    def dtype(self) -> str:
        return self.kind

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.kind, self.shape[1])

    def codes_of(self, stored: UInt8) -> tuple[UInt8, Float16]:
        return q8_0_of(stored, self.kind)


@dataclass(frozen=True, eq=False)
class DecodedTensor(Tensor):
    """A matrix in a type that only float32 holds without loss, see decoding.py. `dtype` is GGUF's name of the type."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * row_bytes(self.dtype, self.shape[-1])

    def float32(self) -> Float32:
        """All values, exactly; some rows at a time are decoded."""
        values = np.empty(self.shape, np.float32)
        length = row_bytes(self.dtype, self.shape[1])
        for start in range(0, len(values), ROWS):
            rows = values[start : start + ROWS]
            found = np.frombuffer(self.source.map, np.uint8, len(rows) * length, self.offset + start * length)
            rows[...] = self._decoded(found, len(rows))
        self.let_go()
        return values

    def rows(self, ids: AnyArray) -> Float32:  # [T] -> [T, I]
        """Some rows, exactly, as a new array; the others are not read."""
        length = row_bytes(self.dtype, self.shape[1])
        return self._decoded(self.source.rows(ids, self.offset, length, self.shape[0]), len(ids))

    def _decoded(self, stored: UInt8, rows: int) -> Float32:
        kind = DECODED[self.dtype]
        blocks = stored.reshape(-1, row_bytes(self.dtype, TYPES[NUMBERS[self.dtype]][1]))
        check_scales(kind.scales_of(blocks), self.name, self.path)
        return kind.decode(blocks).reshape(rows, self.shape[1])
