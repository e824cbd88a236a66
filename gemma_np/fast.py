"""A checkpoint on the compiled kernels: the door from weights and configuration to kernels/forward.py."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_np.arrays import Float32, Int32
from gemma_np.config import Config
from gemma_np.kernels.columns import Column
from gemma_np.kernels.plan import MAX_TEXTS
from gemma_np.model import Steps, apply_heads, embed_tokens
from gemma_np.modules import Dense, Modules
from gemma_np.ops import rope_table
from gemma_np.weights.loading import Matrix, Weights, formats_of
from gemma_np.weights.packed import Packed

if TYPE_CHECKING:
    from gemma_np.kernels.engine import Engine
    from gemma_np.kernels.objects import Compiled

# A pass ends at the first of these and of plan.MAX_TEXTS: its activations stay in the last cache, and the workspace
# stays small. More would buy nothing: weights are read once for a thousand tokens.
PASS_TOKENS = 1024
FIRST_TOKENS = 8192  # an engine's room at first; more, which a config may claim without end, when a text needs it


def leading_heads(modules: Modules) -> list[Dense]:
    """The first Dense heads without bias or activation: they run in the kernels, what follows them in NumPy."""
    found: list[Dense] = []
    for head in modules.heads:
        if not isinstance(head, Dense) or head.has_bias or head.activation != "Identity":
            break
        found.append(head)
    return found


def split(ids: Sequence[Int32]) -> Iterator[slice]:
    """Runs of at most MAX_TEXTS texts and PASS_TOKENS tokens together; a longer text is a run by itself."""
    start = tokens = 0
    for i, text in enumerate(ids):
        if i > start and (tokens + len(text) > PASS_TOKENS or i - start == MAX_TEXTS):
            yield slice(start, i)
            start, tokens = i, 0
        tokens += len(text)
    if start < len(ids):
        yield slice(start, len(ids))


def unfit(config: Config, modules: Modules) -> str | None:
    """Why the kernels cannot take a model of these sizes, or None."""
    from gemma_np.kernels.workspace import unfit_sizes

    layers = [(layer.N, layer.K, layer.H) for layer in config.layers]
    return unfit_sizes(config.D, config.F, layers, [(head.inputs, head.outputs) for head in leading_heads(modules)])


class Fast:
    """A model whose trunk and first heads are compiled.

    column   of kernels
    weights  packed
    threads  None: as many as the cores that this process may use
    kernels  gives them for a column and the weights' formats, or raises BuildError
    """

    def __init__(
        self,
        column: Column,
        weights: Weights,
        config: Config,
        modules: Modules,
        threads: int | None,
        kernels: "Callable[[Column, tuple[str, ...]], Compiled]",
    ) -> None:
        from gemma_np.kernels import cores
        from gemma_np.kernels.native import allocate_lock

        self.column, self.threads = column, threads or cores.usable_cores()
        self._weights, self._config = weights, config
        leading = leading_heads(modules)
        self._heads = [packed(weights.dense[head.name].weight) for head in leading]
        self._rest = modules.heads[len(leading) :]
        self._full_dim = modules.dense[-1].outputs if modules.dense else config.D
        self.compiled = kernels(column, formats_of(weights))
        self._growing = allocate_lock()
        self._engine = self._made(max(PASS_TOKENS, min(config.max_positions, FIRST_TOKENS)))

    def _made(self, max_tokens: int) -> "Engine":
        from gemma_np.kernels.engine import Engine
        from gemma_np.kernels.plan import MATRICES, NORMS
        from gemma_np.kernels.workspace import LayerParts

        thetas = {(layer.H, layer.theta) for layer in self._config.layers}
        ropes = {}
        for H, theta in thetas:
            cos, sin = rope_table(max_tokens, H, theta)  # each angle is there twice
            ropes[H, theta] = np.ascontiguousarray(cos[:, : H // 2]), np.ascontiguousarray(sin[:, : H // 2])
        layers = [
            LayerParts(
                at=layer,
                matrices={name: packed(getattr(w, name)) for name in MATRICES},
                norms={name: 1 + getattr(w, name) for name in NORMS},
                rope=ropes[layer.H, layer.theta],
            )
            for layer, w in zip(self._config.layers, self._weights.layers, strict=True)
        ]
        eps = self._config.layers[-1].eps
        return Engine(self.compiled.forward, layers, 1 + self._weights.norm, eps, self._heads, max_tokens, self.threads)

    def vectors(self, ids: Sequence[Int32], skips: Sequence[int]) -> Float32:
        """Texts' tokens -> their vectors [B, dim]. The kernels run the leading heads, NumPy those that follow."""
        out = np.empty((len(ids), self._full_dim), np.float32)
        for part in split(ids):
            means = self._pass(ids[part], skips[part]).vectors
            out[part] = [apply_heads(e, self._rest, self._weights, Steps(None)) for e in means]
        return out

    def tokens(self, ids: Int32) -> Float32:  # [T] -> [T, D]
        """The trunk's vectors of one text."""
        hidden: Float32 = self._pass([ids], [0], hidden=True).hidden
        return hidden

    def _pass(self, ids: Sequence[Int32], skips: Sequence[int], hidden: bool = False) -> Any:
        lengths = [len(tokens) for tokens in ids]
        engine = self._engine
        if sum(lengths) > engine.max_tokens:  # longer than the model's positions, as the user wishes
            engine = self._grown(sum(lengths))
        return engine.run(embed_tokens(np.concatenate(ids), self._weights, self._config), lengths, skips, hidden)

    def _grown(self, tokens: int) -> "Engine":
        """An engine for longer texts, in halves again as long, so that texts that grow do not make one each."""
        with self._growing:
            if tokens > self._engine.max_tokens:
                self._engine = self._made(max(tokens, self._engine.max_tokens * 3 // 2))
            return self._engine


def packed(matrix: Matrix | None) -> Packed:
    """Kernels are made for packed matrices only."""
    assert isinstance(matrix, Packed)
    return matrix
