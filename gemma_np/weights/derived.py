"""Matrices that are computed as they are loaded: a part of a fused one, and one with an adapter's change.

In tables from names to tensors they stand where files.safetensors.Tensor does, see `Stored` in loading.py. They are
held in float32.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma_np.arrays import Float32
from gemma_np.files.safetensors import Tensor
from gemma_np.weights.blocks import PackedTensor
from gemma_np.weights.packed import parts_of


@dataclass(frozen=True, eq=False)
class Derived:
    """A matrix [O, I] that no file holds as it is."""

    name: str
    shape: tuple[int, int]

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def format(self) -> str:
        return "f32"

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)

    @property
    def path(self) -> Path:
        raise NotImplementedError

    def float32(self) -> Float32:
        """All values, as a new array."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Its pages do not count as resident memory any more, until they are read again."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class PartTensor(Derived):
    """One of the matrices that a quantised folder stores as one.

    whole     that one
    rows      of each of the matrices in it
    part      which of them this is
    in_turn   whether 16 rows of each follow each other, instead of one matrix below the other
    """

    whole: PackedTensor
    rows: tuple[int, ...]
    part: int
    in_turn: bool

    @property
    def path(self) -> Path:
        return self.whole.path

    def float32(self) -> Float32:
        return parts_of(self.whole.packed(), self.rows, self.in_turn)[self.part].dequantize()

    def let_go(self) -> None:
        self.whole.let_go()


@dataclass(frozen=True, eq=False)
class MergedTensor(Derived):
    """W + scale B A, in float32: a matrix with the change that a LoRA adapter makes.

    base    W, [O, I]
    a, b    [r, I] and [O, r]
    scale   alpha / r, or alpha / sqrt(r)
    """

    base: Tensor | PartTensor
    a: Tensor
    b: Tensor
    scale: float

    @property
    def path(self) -> Path:
        return self.base.path

    def float32(self) -> Float32:
        """In PEFT's order: the product, times the scale, added to W."""
        with np.errstate(all="ignore"):  # what is not finite shows in the vectors
            change: Float32 = self.b.float32() @ self.a.float32()
            change *= np.float32(self.scale)
            change += self.base.float32()
        return change

    def let_go(self) -> None:
        for tensor in (self.base, self.a, self.b):
            tensor.let_go()
