"""The whole forward pass as Python: with NUMBA_DISABLE_JIT=1 kernels are plain functions, and each access outside the
workspace is an IndexError. test_emulated.py runs this file in a process of its own; by hand:

    NUMBA_DISABLE_JIT=1 python -m pytest tests/emulated.py
"""

from typing import Any

import numpy as np
import pytest
from gemma_np.kernels import simd
from gemma_np.kernels.engine import Engine, Pass
from gemma_np.kernels.forward import forward
from gemma_np.kernels.plan import MATRICES, NORMS
from gemma_np.kernels.target import EMULATED
from gemma_np.kernels.workspace import LayerParts

from gemma_np import model
from gemma_np.arrays import AnyArray, Float32
from gemma_np.config import Layer
from gemma_np.ops import rope_table
from gemma_np.weights.loading import LayerWeights
from gemma_np.weights.packed import pack

D, F, H = 64, 32, 32
LENGTHS = (5, 2)  # of two texts: more than the window reaches, and less
rng = np.random.default_rng(0)


def weights(N: int, K: int, format: str) -> tuple[LayerWeights, LayerWeights]:
    """A layer's weights twice: packed for the kernels, and their exact values for model.py."""

    def matrix(*shape: int) -> Float32:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    def norm(n: int) -> Float32:
        return (rng.standard_normal(n) * 0.5).astype(np.float32)

    q, k, v, gate, up = matrix(N * H, D), matrix(K * H, D), matrix(K * H, D), matrix(F, D), matrix(F, D)
    turns = np.stack([gate.reshape(-1, 16, D), up.reshape(-1, 16, D)], axis=1).reshape(2 * F, D)
    arrays: dict[str, Any] = {
        "q_proj": pack(q, format),
        "k_proj": pack(k, format),
        "v_proj": pack(v, format),
        "o_proj": pack(matrix(D, N * H), format),
        "gate_proj": pack(gate, format),
        "up_proj": pack(up, format),
        "down_proj": pack(matrix(D, F), format),
        "q_norm": norm(H),
        "k_norm": norm(H),
    }
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        arrays[f"{name}_layernorm"] = norm(D)
    qkv = pack(np.concatenate([q, k, v]), format)
    fast = LayerWeights(**arrays, qkv=qkv, gate_up=pack(turns, format))
    exact = {name: a.dequantize() if name.endswith("proj") else a for name, a in arrays.items()}
    return fast, LayerWeights(**exact)


def parts(w: LayerWeights, layer: Layer, T: int) -> LayerParts:
    cos, sin = rope_table(T, layer.H, layer.theta)
    return LayerParts(
        at=layer,
        matrices={name: getattr(w, name) for name in MATRICES},
        norms={name: 1 + getattr(w, name) for name in NORMS},
        rope=(np.ascontiguousarray(cos[:, : layer.H // 2]), np.ascontiguousarray(sin[:, : layer.H // 2])),
    )


class Case:
    """A model of one layer or two, the second with full attention, and two texts."""

    def __init__(self, N: int, K: int, format: str, L: int = 2) -> None:
        options: dict[str, Any] = {"N": N, "K": K, "H": H, "scale": H**-0.5, "eps": 1e-6}
        self.layers = [Layer(radius=1, theta=1e4, **options), Layer(radius=None, theta=1e6, **options)][:L]
        self.weights = [weights(N, K, format) for _ in self.layers]
        self.norm = (rng.standard_normal(D) * 0.5).astype(np.float32)
        self.head = pack((rng.standard_normal((64, D)) * 0.1).astype(np.float32), format)
        self.x = rng.standard_normal((sum(LENGTHS), D), dtype=np.float32)
        T = len(self.x)
        layers = [parts(w, layer, T) for (w, _), layer in zip(self.weights, self.layers, strict=True)]
        self.engine = Engine(forward, layers, 1 + self.norm, 1e-6, [self.head], T, 1)
        self.work = Pass(self.engine, self.x, LENGTHS, [0, 1], hidden=True)

    def arrays(self) -> list[AnyArray]:
        """All that the pass may touch."""
        kept = [array for array in self.engine._kept if isinstance(array, np.ndarray) and array.size]
        tables = [self.work.tokens, self.work.texts, self.work.blocks, self.engine._plan]
        return [*self.engine._arrays.values(), *kept, *tables]

    def run(self) -> None:
        self.work.begin()
        simd.lend(*self.arrays())
        self.work.run(0)
        self.work.end()

    def expected(self) -> tuple[Float32, Float32]:
        """What model.py makes of it: the tokens' vectors, and the texts'."""
        hidden, vectors = [], []
        for text, skip in zip(np.split(self.x, np.cumsum(LENGTHS)[:-1]), [0, 1], strict=True):
            x = text
            for layer, (_, w) in zip(self.layers, self.weights, strict=True):
                x = model.block(x, w, layer, rope_table(len(x), H, layer.theta), model.Steps(None))
            hidden.append(model.rms_norm(x, self.norm, 1e-6))
            vectors.append(model.mean_pool(hidden[-1], skip) @ self.head.dequantize().T)
        return np.concatenate(hidden), np.stack(vectors)


@pytest.fixture(autouse=True)
def emulated() -> None:
    assert EMULATED, "needs NUMBA_DISABLE_JIT=1"


# Root mean squares, relative. Some hundred roundings to float32, or activations rounded to int8, by up to 1/254 of a
# group's largest, before each of 9 products. No bound, but one wrong token of the 7 makes it 0.3.
TOLERANCE = {"f32": 2e-6, "q8_0": 0.05, "q4_0": 0.05}


@pytest.mark.parametrize(("format", "N", "K"), [("f32", 2, 2), ("q8_0", 2, 1), ("q4_0", 4, 2)])
def test_the_pass_is_model_py(format: str, N: int, K: int) -> None:
    case = Case(N, K, format)
    case.run()
    hidden, vectors = case.expected()
    for found, expected in ((case.work.hidden, hidden), (case.work.vectors, vectors)):
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        print(f"{format}, {found.shape}: {error:.1e}")
        assert error <= TOLERANCE[format]


@pytest.mark.parametrize("name", ["x", "a", "qkv", "q", "keys", "values", "h", "b", "pooled"])
def test_an_array_that_is_too_short_is_an_index_error(name: str) -> None:
    """Whoever reads or writes one element behind the end hears of it: here the end is moved."""
    case = Case(2, 1, "q8_0" if name in ("a", "b") else "f32", L=1)
    case.work.begin()
    short = [array if array is not case.engine._arrays[name] else array.reshape(-1)[:1] for array in case.arrays()]
    simd.lend(*short)
    with pytest.raises(IndexError, match="outside of what was lent"):
        case.work.run(0)


def test_an_access_below_all_arrays_is_an_index_error() -> None:
    array = np.zeros(16, np.float32)
    simd.lend(array)
    simd.load(array.ctypes.data)
    for place in (array.ctypes.data - 4, array.ctypes.data + 4):
        with pytest.raises(IndexError):
            simd.load(place)
