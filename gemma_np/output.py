"""From a model's full vectors to what the caller asked for: fewer dimensions, length 1, fewer bits."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gemma_np.arrays import AnyArray, Float32
from gemma_np.errors import InputError, positive
from gemma_np.ops import l2_normalize

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
SPREAD = 10  # the fixed int8 range, in standard deviations of a unit vector's entries


@dataclass(frozen=True)
class Wanted:
    """What a caller wants of a model's vectors, checked when it is made.

    full_dim     how many entries the model's vectors have
    normalized   whether they have length 1
    dim          how many entries to keep; None, or more than there are: all
    normalize    bring vectors to length 1 although the model does not
    precision    one of PRECISIONS, see `quantize`
    ranges       [2, dim], the int8 range of each dimension; None: `fixed_ranges`

    Raises InputError.
    """

    full_dim: int
    normalized: bool
    dim: int | None = None
    normalize: bool = False
    precision: str = "float32"
    ranges: ArrayLike | None = None

    def __post_init__(self) -> None:
        if self.dim is not None:
            object.__setattr__(self, "dim", positive("truncate_dim", self.dim))
        if self.precision not in PRECISIONS:
            raise InputError(f"precision = {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if self.precision in ("int8", "uint8"):
            object.__setattr__(self, "ranges", self._checked_ranges())

    def _checked_ranges(self) -> Float32:
        if self.ranges is None:
            if not (self.normalized or self.normalize):
                raise InputError(
                    f"precision = {self.precision!r}: this model's vectors have no fixed length, so there is no fixed "
                    "scale; pass ranges=[lowest, highest] per dimension, or normalize_embeddings=True"
                )
            return fixed_ranges(self.width)
        ranges = np.asarray(self.ranges, dtype=np.float32)
        if ranges.shape != (2, self.width):
            raise InputError(f"ranges has shape {ranges.shape}, expected (2, {self.width}): lowest and highest values")
        return ranges

    @property
    def width(self) -> int:
        """How many entries are kept."""
        return self.full_dim if self.dim is None else min(self.dim, self.full_dim)

    def of(self, vectors: Float32) -> AnyArray:  # [B, full_dim] -> [B, width], or packed bits
        """Full vectors -> what is wanted."""
        vectors = truncate(vectors, self.dim, normalized=self.normalized, normalize=self.normalize)
        return quantize(vectors, self.precision, self.ranges)


def truncate(vectors: Float32, dim: int | None, *, normalized: bool, normalize: bool) -> Float32:
    """Matryoshka: the first `dim` entries, brought back to length 1 where the model's own vectors have it.

    vectors     [B, D]
    dim         how many entries to keep; None: all
    normalized  whether `vectors` have length 1 already
    normalize   whether the result must have length 1 although the model's vectors do not
    returns     [B, dim]
    """
    cut = dim is not None and dim < vectors.shape[-1]
    vectors = vectors[..., :dim]
    if (cut and normalized) or (normalize and not normalized):
        vectors = l2_normalize(vectors)
    return np.ascontiguousarray(vectors)


def fixed_ranges(dim: int) -> Float32:
    """The int8 range of unit vectors, the same for every text: [2, dim], lowest and highest value per dimension.

    The entries of a unit vector have a standard deviation of about 1/sqrt(dim); EmbeddingGemma's largest reach 10 times
    that. One step is 10/sqrt(dim)/127 (at most 1/127), and the range is centred so that the code is x/step rounded to
    the nearest integer: 0 is 0, and a code's error is at most half a step.
    """
    step = min(1.0, SPREAD / math.sqrt(dim)) / 127
    return np.repeat(np.array([[-128.5 * step], [126.5 * step]], dtype=np.float32), dim, axis=1)


def quantize(vectors: Float32, precision: str, ranges: ArrayLike | None) -> AnyArray:
    """Fewer bits per entry. A text's codes depend on its own vector alone, never on other texts of the call.

    vectors    [B, dim]
    precision  "int8", "uint8": 256 steps between `ranges`; "binary", "ubinary": the sign bits, packed, 8 to a byte
    ranges     [2, dim], lowest and highest value per dimension, for int8 and uint8
    returns    int8 or uint8: [B, dim], or [B, ceil(dim / 8)] packed

    With `ranges` the codes equal those of sentence-transformers' quantize_embeddings(..., ranges=ranges).
    """
    if precision == "float32":
        return vectors
    if precision in ("binary", "ubinary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 128).view(np.int8)  # ^ 128 is - 128, modulo 256
    lowest, highest = np.asarray(ranges, dtype=np.float32)
    step = (highest - lowest) / np.float32(255)
    step = np.where(step == 0, np.float32(1), step)
    codes: AnyArray = np.clip(np.floor((vectors - lowest) / step), 0, 255).astype(np.uint8)
    return codes if precision == "uint8" else (codes ^ 128).view(np.int8)
