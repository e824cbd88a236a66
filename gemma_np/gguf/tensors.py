"""A GGUF file's tensors as weights.loading takes them: those that are stored in other ways than a checkpoint's."""

import math
from dataclasses import dataclass

import numpy as np

from gemma_np.arrays import AnyArray, Float32
from gemma_np.errors import CheckpointError
from gemma_np.files.mapped import MappedFile
from gemma_np.files.safetensors import FLOATS, Tensor
from gemma_np.gguf.file import TYPES, TensorInfo
from gemma_np.weights.blocks import BlockTensor, check_scales
from gemma_np.weights.quantize import UInt8

BLOCKS = {"Q8_0": "q8_0", "Q4_0": "q4_0"}
Q6_K = next(kind for kind in TYPES.values() if kind[0] == "Q6_K")  # name, values in a block, bytes of a block


def stored(info: TensorInfo, name: str, source: MappedFile) -> Tensor | BlockTensor:
    """A tensor under the checkpoint's name. CheckpointError for a type that is not served."""
    if len(info.shape) == 1 and info.dtype in FLOATS:
        return NormTensor(name, info.dtype, info.shape, source, info.offset)
    if info.dtype in FLOATS:
        return Tensor(name, info.dtype, info.shape, source, info.offset)
    if info.dtype in BLOCKS and len(info.shape) == 2:
        return BlockTensor(name, BLOCKS[info.dtype], (info.shape[0], info.shape[1]), source, info.offset)
    if info.dtype == "Q6_K" and name == "embed_tokens.weight":
        return Q6KTensor(name, info.dtype, info.shape, source, info.offset)
    raise CheckpointError(
        f"{source.path}: {info.name} has the type {info.dtype}; served are {', '.join((*FLOATS, *BLOCKS))}, and Q6_K "
        "for the embedding table. Take a file of one of these types"
    )


class NormTensor(Tensor):
    """A norm's weights. llama.cpp stores 1 + w, we compute with w and add the 1 again.

    Nothing is lost on the way: for every float32 w, 1 + ((1 + w) - 1) = 1 + w, with all three sums rounded. Only a file
    whose values below 1/2 were never such a sum has finer ones; they change by 2^-24 |w| at most.
    """

    def float32(self) -> Float32:
        w: Float32 = super().float32() - np.float32(1)
        return w


class RoundedTensor(Tensor):
    """A float matrix among rounded ones: it is rounded to Q8_0, too, as it is loaded, so that kernels run them all."""

    @property
    def format(self) -> str:
        return "q8_0"


@dataclass(frozen=True, eq=False)
class Q6KTensor(Tensor):
    """An embedding table in Q6_K, llama.cpp's choice for it in Q4_0 files. Its values are exact in float32."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // Q6_K[1] * Q6_K[2]

    def float32(self) -> Float32:
        """All values, exactly."""
        return self.rows(np.arange(self.shape[0]))

    def rows(self, ids: AnyArray) -> Float32:  # [T] -> [T, I]
        """Some rows, exactly, as a new array; the others are not read."""
        length = self.nbytes // self.shape[0]
        blocks = self.source.rows(ids, self.offset, length, self.shape[0]).reshape(-1, Q6_K[2])
        check_scales(np.ascontiguousarray(blocks[:, 208:]).view("<f2"), self.name, self.path)
        return decode_q6_k(blocks).reshape(len(ids), self.shape[1])


def decode_q6_k(blocks: UInt8) -> Float32:  # [n, 210] -> [n, 256]
    """d * scale * (code - 32). A block is 128 bytes with the codes' low four bits, 64 with their high two, 16 scales of
    one byte, and d in float16; its 256 values are two halves of four rows of 32, of which each byte has a part.

    Source: llama.cpp, ggml-quants.c (dequantize_row_q6_K).
    """
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 1, 2, 32) >> np.array([0, 4], np.uint8).reshape(2, 1, 1) & 15
    high = blocks[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low.reshape(n, 2, 4, 32) | high << np.uint8(4)).astype(np.float32) - np.float32(32)
    scales = blocks[:, 192:208].view(np.int8).reshape(n, 2, 4, 2).astype(np.float32)
    d = np.ascontiguousarray(blocks[:, 208:]).view("<f2").astype(np.float32)
    values = codes.reshape(n, 2, 4, 2, 16) * (d[:, :, None, None] * scales)[..., None]
    return values.reshape(n, Q6_K[1])
