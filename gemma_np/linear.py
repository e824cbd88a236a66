"""x @ W.T: the one door from the readable model to the products that cost nearly all of its time."""

from gemma_np import kernels
from gemma_np.arrays import Float32


def linear(x: Float32, weight: Float32, bias: Float32 | None = None) -> Float32:  # [T, I], [O, I], [O] -> [T, O]
    """x @ weight.T + bias; `weight` has one row per output, as checkpoints store it."""
    y: Float32 = kernels.active().linear(x, weight)
    return y if bias is None else y + bias
