"""Which tensor holds NaN or infinity, where a vector turned out not to be finite."""

from collections.abc import Sequence

import numpy as np

from gemma_np.arrays import Int32
from gemma_np.weights.loading import Matrix, Weights
from gemma_np.weights.names import tensor_name
from gemma_np.weights.packed import Packed


def find_nonfinite(weights: Weights, ids: Sequence[Int32]) -> str | None:
    """The name of a tensor that holds NaN or infinity, or None. For telling why a vector is not finite."""
    for i, layer in enumerate(weights.layers):
        for field, values in vars(layer).items():
            if not finite(values):
                return tensor_name(i, field)
    if not np.isfinite(weights.norm).all():
        return "norm.weight"
    for name, parts in weights.dense.items():
        if not finite(parts.weight):
            return f"{name}/linear.weight"
        if parts.bias is not None and not np.isfinite(parts.bias).all():
            return f"{name}/linear.bias"
    for tokens in ids:
        for token in np.unique(tokens):
            if not np.isfinite(weights.embed_tokens.rows(token[None])).all():
                return f"embed_tokens.weight (row {token})"
    return None


def finite(matrix: Matrix | None) -> bool:
    """Whether all values are finite; of quantised ones the scales decide."""
    if matrix is None:
        return True
    if not isinstance(matrix, Packed):
        return bool(np.isfinite(matrix).all())
    return bool(np.isfinite(matrix.codes if matrix.scales is None else matrix.scales).all())
