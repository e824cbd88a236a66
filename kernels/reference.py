"""What each kernel means, in NumPy: slow, obvious, kept for ever, and the fallback.

Letters: T tokens, I inputs, O outputs.
"""

import numpy as np
from numpy.typing import NDArray


def linear(x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:  # [T, I], [O, I] -> [T, O]
    """x @ weight.T in float32, by whatever BLAS NumPy was built with.

    Bound by arithmetic above some 30 tokens (2 T I O operations), by reading `weight` below.
    """
    y: NDArray[np.float32] = np.matmul(x, weight.T)
    return y
