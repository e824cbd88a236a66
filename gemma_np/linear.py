"""x @ W.T: the one door from the readable model to the products that cost nearly all of its time."""

import numpy as np

from gemma_np.arrays import Float32
from gemma_np.weights.packed import Packed


def linear(
    x: Float32, weight: Float32 | Packed, bias: Float32 | None = None
) -> Float32:  # [T, I], [O, I], [O] -> [T, O]
    """x @ weight.T + bias; `weight` has one row per output, as checkpoints store it.

    Packed weights are brought back to float32 exactly, for this product alone; `x` is not rounded. In the fast path
    (kernels/) neither happens.
    """
    y: Float32 = np.matmul(x, (weight.dequantize() if isinstance(weight, Packed) else weight).T)
    return y if bias is None else y + bias
