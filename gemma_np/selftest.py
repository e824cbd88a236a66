"""Fresh kernels against NumPy, before anyone relies on them: a compiler or a processor with a fault gives wrong vectors
without a word.

It runs once, when kernels have been compiled, on a model of two layers with random weights, in some 50 ms. Kernels that
fail are not kept, and NumPy computes.
"""

from dataclasses import dataclass

import numpy as np

from gemma_np import model
from gemma_np.arrays import AnyArray, Float32
from gemma_np.config import Config, Layer
from gemma_np.fast import Fast
from gemma_np.kernels.columns import Column
from gemma_np.kernels.objects import BuildError, Compiled
from gemma_np.modules import Dense, Modules
from gemma_np.weights.loading import Loader, Weights
from gemma_np.weights.names import EMBED, dense_shapes, trunk_shapes

NEAR = Layer(radius=8, theta=1e4, N=4, K=2, H=32, scale=32**-0.5, eps=1e-6)
FAR = Layer(radius=None, theta=1e6, N=4, K=2, H=32, scale=32**-0.5, eps=1e-6)
CONFIG = Config(V=97, D=64, F=96, max_positions=128, layers=(NEAR, FAR))
HEAD = Dense("2_Dense", inputs=64, outputs=64, has_bias=False, activation="Identity")
MODULES = Modules(trunk="", pooling="1_Pooling", include_prompt=True, heads=(HEAD,))
LENGTHS = (1, 7, 33, 70)  # a token, less than a tile, across a block of keys, across the window
# Least cosine with NumPy over the same rounded weights. float32 passes differ by some 1e-6. Kernels round activations
# in addition, with errors of 1/254 of a group's second largest value: a thousandth of the length, after two layers.
# A wrong kernel gives vectors that have nothing to do with these.
COSINES = {"f32": 0.99999, "q8_0": 0.999, "q4_0": 0.999}


@dataclass(frozen=True)
class Made:
    """A float32 tensor that is in no file."""

    array: Float32
    format: str = "f32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def float32(self) -> Float32:
        return self.array

    def rows(self, ids: AnyArray) -> Float32:
        return self.array[ids]

    def let_go(self) -> None:
        """There is no page to give back."""


def check(column: Column, formats: tuple[str, ...], compiled: Compiled) -> None:
    """Raises BuildError for kernels that do not compute what NumPy does, in a format that they were compiled for."""
    for format in formats:
        cosine = lowest_cosine(column, format, compiled)
        if not cosine >= COSINES[format]:
            raise BuildError(
                f"compiled kernels ({column.name}, {format}) give other vectors than NumPy (cosine {cosine:.4f}); this "
                "compiler or processor has a fault, or GEMMA_NP_KERNELS names the wrong column"
            )


def lowest_cosine(column: Column, format: str, compiled: Compiled) -> float:
    """Over some texts: the cosine of the kernels' vector and NumPy's."""
    weights = made_weights(format)
    fast = Fast(column, weights, CONFIG, MODULES, None, lambda *_: compiled)
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, CONFIG.V, T).astype(np.int32) for T in LENGTHS]
    found = fast.vectors(ids, [0] * len(ids))
    cosines = []
    for tokens, vector in zip(ids, found, strict=True):
        expected = model.embed(tokens, weights, CONFIG, MODULES)
        cosines.append(float(vector @ expected / (np.linalg.norm(vector) * np.linalg.norm(expected))))
    return min(cosines)


def made_weights(format: str) -> Weights:
    """Random ones, the same every time, all matrices in a format."""
    rng = np.random.default_rng(0)
    shapes = trunk_shapes(CONFIG) | {f"{HEAD.name}/{name}": shape for name, shape in dense_shapes(HEAD).items()}
    tensors, formats = {}, {}
    for name, shape in shapes.items():
        spread = 0.3 if len(shape) == 1 else shape[1] ** -0.5
        tensors[name] = Made((rng.normal(size=shape) * spread).astype(np.float32))
        if len(shape) == 2:
            formats[name] = "f32" if name == EMBED else format
    loader = Loader(tensors, formats, packed=True)  # type: ignore[arg-type]  # as far as it is asked, a Made is a Tensor
    layers = tuple(loader.layer(CONFIG, i) for i in range(len(CONFIG.layers)))
    return Weights(tensors[EMBED], layers, loader.norm("norm.weight"), loader.heads(MODULES))
