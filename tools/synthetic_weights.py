"""Synthetic weights for any model of the architecture: well-behaved ones, and ones that behave like the real ones.

The real model is hard on arithmetic: a residual that leaves float16's range, single channels a hundred times louder
than the rest, norm weights from -87 to 2,534, projections with entries at 38 standard deviations, feed-forward outputs
so small that epsilon counts. `realistic` brings all that back (real_stats.json), layer by layer: it draws a layer's
weights, runs the calibration text through `gemma_np.model.block`, and sets a few numbers so that each activation meets
its target. In the real model channels are loud or quiet by nature, in all layers alike: the louder a channel, the
larger its weights in the norms after attention and feed-forward, and the smaller those in the norms before. Two are
far louder than the rest, and here they stay so by a loop:

    the embedding table gives every token the same values in two outlier channels, one above zero and one below
    -> a few neurons of each layer read these channels alone, and fire far above all others
    -> two rows of down_proj read these neurons alone, and carry half of the feed-forward output's energy
    -> the post-norm's gains in the two channels move the residual there to where it shall be

Queries, keys and gates read the two as well, which gives each of them a part that all tokens share.

A gain is a norm's factor, 1 + weight; the bulk is every channel but the two.
Letters: T tokens, D hidden size, F feed-forward size, I and O a matrix's inputs and outputs.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import real_stats
from distributions import ascending_gains, heavy_tailed, ordinary

from gemma_np.arrays import AnyArray, Bool, Float32
from gemma_np.config import Config
from gemma_np.model import linear
from gemma_np.ops import gelu_tanh, rms_norm
from gemma_np.weights.loading import LayerWeights
from gemma_np.weights.names import layer_tensors, trunk_shapes

Blocks = Iterator[tuple[str, Float32]]  # tensors in the file's order, large ones as several blocks of rows
Rounding = Callable[[Float32], Float32]  # to what the file's dtype can hold

TABLE_ROWS = 4096  # of the embedding table at a time: 12 MB at D = 768
NEURONS = 4  # per layer that carry the outliers
DECAY = 0.8  # of their heights, from one to the next
QUIET = 0.1  # what remains of weights that would pass the outliers on: else tokens would drown in what they share
IN_EVERY_TOKEN = 0.6  # mean square of an outlier channel after a norm, of its extreme's: as loud in every token
EMBEDDED = 0.8  # the outliers' constant values in the table, of the real rows' extremes


def plain(config: Config, seed: int) -> Blocks:
    """Every tensor of a trunk in which all activations are near 1: no outliers, no surprises."""
    for number, (name, shape) in enumerate(trunk_shapes(config).items()):
        rng = np.random.default_rng((seed, number))
        for rows in row_blocks(shape):
            yield name, ordinary(rng, rows)


def dense(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    """A Dense head's weight [O, I] or bias [O]."""
    return ordinary(rng, shape)


def realistic(config: Config, seed: int, rounding: Rounding) -> Blocks:
    """Every tensor of a trunk that behaves like the real one. `rounding` is to what the file's dtype can hold, so that
    each layer is calibrated with what will be read."""
    return Calibration(config, seed, rounding).blocks()


def row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shapes of a tensor's blocks of at most TABLE_ROWS rows."""
    for start in range(0, shape[0], TABLE_ROWS):
        yield (min(TABLE_ROWS, shape[0] - start), *shape[1:])


def coarse(value: float) -> float:
    """To the nearest of 16 steps per octave: what is measured differs in its last digits from one BLAS to the next,
    and the weights should not."""
    return math.exp2(round(math.log2(max(value, 1e-9)) * 16) / 16)


def energy(values: Float32) -> float:
    """The sum of squares."""
    return float(np.square(values).sum())


class Calibration:
    """Draws and calibrates one layer after the other, along the way of the calibration text.

    loudness [D]   how loud each channel is by nature
    outliers       the two outlier channels: the one that is above zero, the one below
    bulk [D]       True but for the outliers
    """

    def __init__(self, config: Config, seed: int, rounding: Rounding) -> None:
        self.config, self.seed, self.rounding = config, seed, rounding
        rng = np.random.default_rng((seed, 0))
        self.loudness = rng.standard_normal(config.D)
        self.outliers: list[int] = rng.choice(config.D, 2, replace=False).tolist()
        self.loudness[self.outliers] = 0  # the extremes of the other gains belong to the bulk
        self.bulk: Bool = np.ones(config.D, dtype=np.bool_)
        self.bulk[self.outliers] = False

    def blocks(self) -> Blocks:
        """All tensors, in the file's order."""
        ids = real_stats.calibration_ids(self.config.V)
        x = np.empty((len(ids), self.config.D), dtype=np.float32)
        first = 0
        for rows in self.embedding():
            here = (ids >= first) & (ids < first + len(rows))
            x[here] = rows[ids[here] - first]
            first += len(rows)
            yield "embed_tokens.weight", rows
        x *= math.sqrt(self.config.D)
        for i in range(len(self.config.layers)):
            w, x = self.layer(i, x)
            for field, (name, _) in layer_tensors(self.config, i).items():
                yield name, getattr(w, field)
        yield "norm.weight", self.final_norm(x)

    def embedding(self) -> Iterator[Float32]:
        """The table, block by block; but for the noise, all rows have the same values in the outlier channels."""
        rng = np.random.default_rng((self.seed, 1))
        table, rows_seen = real_stats.embedding("weight"), real_stats.embedding("activation")
        scale = math.sqrt(real_stats.D / self.config.D)  # the model multiplies the rows by sqrt(D)
        constants = np.array([rows_seen.max, rows_seen.min], dtype=np.float32)
        constants *= EMBEDDED / math.sqrt(self.config.D)
        for shape in row_blocks((self.config.V, self.config.D)):
            rows = heavy_tailed(rng, shape, table.std * scale, table.loudest * scale)
            rows[:, self.outliers] += constants
            yield self.rounding(rows)

    def layer(self, i: int, x: Float32) -> tuple[LayerWeights, Float32]:
        """Draw layer i and calibrate it step by step, each after all that comes before it; its weights and output."""
        at = self.config.layers[i]
        depth = i / max(len(self.config.layers) - 1, 1)
        rng = np.random.default_rng((self.seed, 2, i))
        shapes = {field: shape for field, (_, shape) in layer_tensors(self.config, i).items()}
        w = LayerWeights(**{field: self.draw(rng, field, shape, depth) for field, shape in shapes.items()})
        neurons = rng.choice(self.config.F, min(NEURONS, self.config.F), replace=False)
        for reader in (w.v_proj, w.up_proj):
            reader[:, self.outliers] *= QUIET
        w.down_proj[:, neurons] *= QUIET
        w.post_attention_layernorm[self.outliers] = QUIET - 1
        w.post_feedforward_layernorm[self.outliers] = 0

        def seen() -> dict[str, Float32]:
            return real_stats.watch(x, w, at)

        self.fit_norm_in_front("input_layernorm", w.input_layernorm, x, depth, at.eps)
        h = seen()["input_layernorm"]
        self.fit_reader("self_attn.q_proj", w.q_proj, h, depth)
        self.fit_reader("self_attn.k_proj", w.k_proj, h, depth)
        self.fit_head_norm("self_attn.q_norm", w.q_norm, seen(), depth)
        self.fit_head_norm("self_attn.k_norm", w.k_norm, seen(), depth)
        self.fit_norm_behind("post_attention_layernorm", w, w.o_proj, seen()["self_attn.o_proj"], depth, at.eps)
        mid = seen()["residual_mid"]
        self.fit_norm_in_front("pre_feedforward_layernorm", w.pre_feedforward_layernorm, mid, depth, at.eps)
        self.fit_reader("mlp.gate_proj", w.gate_proj, seen()["pre_feedforward_layernorm"], depth)
        self.light_neurons(w, neurons, seen(), depth)
        self.load_outlier_rows(w, neurons, seen(), depth, at.eps)
        self.fit_norm_behind("post_feedforward_layernorm", w, w.down_proj, seen()["mlp.down_proj"], depth, at.eps)
        self.place_outliers(w, seen(), depth)
        return w, seen()["residual"]

    def draw(self, rng: np.random.Generator, field: str, shape: tuple[int, ...], depth: float) -> Float32:
        """A weight with the real one's statistics. A projection of fewer inputs gets larger weights, so that its
        outputs stay; norms on the residual follow the channels' loudness."""
        stat = real_stats.weight(field, depth)
        if len(shape) == 2:
            scale = math.sqrt((real_stats.F if field == "down_proj" else real_stats.D) / shape[1])
            return self.rounding(heavy_tailed(rng, shape, stat.std * scale, stat.peak * scale))
        n = shape[0]
        real_n = real_stats.D
        order: AnyArray = np.argsort(-self.loudness)  # in front: the loudest get the smallest
        if field in ("q_norm", "k_norm"):
            real_n, order = real_stats.H, rng.permutation(n)
        elif field in ("post_attention_layernorm", "post_feedforward_layernorm"):
            order = np.argsort(self.loudness + 0.3 * rng.standard_normal(n))
        gains = np.empty(n, dtype=np.float32)
        gains[order] = ascending_gains(n, stat, real_n)
        return self.rounding(gains - 1)

    def fit_norm_in_front(self, field: str, weight: Float32, x: Float32, depth: float, eps: float) -> None:
        """Scale the gains so that the norm's output meets the real standard deviation. The outliers come out as loud
        as the real extremes, or with a quarter of the energy; no other channel is much louder than these."""
        target, high = real_stats.activation(field, depth), 1 + real_stats.weight(field, depth).max
        limit = target.std * math.sqrt(self.config.D / 4)
        u = rms_norm(x, np.zeros_like(weight), eps)
        gains = 1 + weight
        for c, extreme in zip(self.outliers, (target.max, -target.min), strict=True):
            gains[c] = coarse(min(min(extreme, limit) / float(np.abs(u[:, c]).max()), high))
        out = u * gains
        wanted = target.std**2 * out.size - energy(out[:, self.outliers])
        gains[self.bulk] *= coarse(math.sqrt(wanted / energy(out[:, self.bulk])))
        loudest = np.abs(u * gains).max(axis=0)
        for c in np.flatnonzero(loudest > 1.5 * target.loudest).tolist():
            gains[c] *= coarse(target.loudest / float(loudest[c]))
        weight[:] = self.rounding(gains - 1)

    def fit_norm_behind(self, field: str, w: LayerWeights, proj: Float32, y: Float32, depth: float, eps: float) -> None:
        """Bring the bulk of a post-norm's output to the real standard deviation without the outlier channels.

        The gains are the real ones; what has to give is how loud the rows of `proj` are, the projection in front.
        A row's scale is its gain to the power of a tilt: above 0 where loud channels are loud in the projection too
        (the real middle layers), below 0 where they are quiet there (the real late ones). The gains take up the rest.
        """
        target = real_stats.activation(field, depth)
        weight: Float32 = getattr(w, field)
        gains = 1 + weight
        relative = np.abs(gains) / float(np.median(np.abs(gains)))
        outliers = IN_EVERY_TOKEN * (target.min**2 + target.max**2) / real_stats.D
        wanted = math.sqrt(max(target.std**2 - outliers, 0.1 * target.std**2))

        def row_scales(tilt: float) -> Float32:
            scales = np.where(self.bulk, np.clip(relative, 0.25, 4) ** tilt, 1)
            if proj is w.down_proj:  # here only the outliers are loud
                scales = np.where(self.bulk, np.minimum(scales, 4 / np.maximum(relative, 1e-6)), 1)
            scales[self.bulk] /= math.sqrt(float(np.square(scales[self.bulk]).mean()))
            return scales.astype(np.float32)

        def missing(tilt: float) -> float:
            """The factor from the output's standard deviation to the one wanted."""
            out = rms_norm(y * row_scales(tilt), weight, eps)[:, self.bulk]
            return coarse(wanted / math.sqrt(energy(out) / out.size))

        tilt = min((step / 8 for step in range(-8, 9)), key=lambda tilt: abs(math.log(missing(tilt))))
        gains[self.bulk] *= min(max(missing(tilt), 0.7), 1.5)
        weight[:] = self.rounding(gains - 1)
        peak = float(np.abs(proj).max())
        proj[:] = self.rounding(np.clip(proj * row_scales(tilt)[:, None], -peak, peak))

    def fit_reader(self, name: str, proj: Float32, h: Float32, depth: float) -> None:
        """Let a projection read the outliers until its output meets the real standard deviation.

        So queries, keys and gates get a part that is the same for all tokens. It makes the network sound: without it,
        attention hangs on details of the text, and 24 layers multiply a small change of the input by 4,000, not by 12.
        """
        constant = linear(h[:, self.outliers], proj[:, self.outliers])
        wanted = real_stats.activation(name, depth).std ** 2 * constant.size - energy(linear(h, proj) - constant)
        peak = float(np.abs(proj).max())
        proj[:, self.outliers] *= coarse(math.sqrt(max(wanted, 0) / energy(constant)))
        proj[:] = self.rounding(np.clip(proj, -peak, peak))

    def fit_head_norm(self, name: str, weight: Float32, seen: dict[str, Float32], depth: float) -> None:
        """Scale the gains of a head's norm so that its output meets the real standard deviation: with larger ones,
        attention would hang on single tokens, and on rounding."""
        scale = real_stats.activation(name, depth).std / float(seen[name].std())
        weight[:] = self.rounding(coarse(min(max(scale, 0.5), 2)) * (1 + weight) - 1)

    def light_neurons(self, w: LayerWeights, neurons: AnyArray, seen: dict[str, Float32], depth: float) -> None:
        """Let a few neurons read the outliers alone, and fire as high as the standard deviation allows: between 0.4
        and 0.8 of the real extreme. Gate and up share the height as they do in the real model."""
        h, a = seen["pre_feedforward_layernorm"], seen["mlp.down_proj.input"]
        target = real_stats.activation("mlp.down_proj.input", depth)
        gate_to_up = (
            real_stats.activation("mlp.up_proj", depth).loudest / real_stats.activation("mlp.gate_proj", depth).max
        )
        signal = h[:, self.outliers[0]] - h[:, self.outliers[1]]
        strongest = float(signal.max())
        heights = [DECAY**i for i in range(len(neurons))]
        room = max(target.std**2 * a.size - energy(a), 0)
        share = math.sqrt(room / (energy(np.square(signal / strongest)) * sum(height**2 for height in heights)))
        height = min(max(share, 0.4 * target.loudest), 0.8 * target.loudest)
        steps = np.exp2(np.arange(-160, 80, dtype=np.float32) / 8)  # of gate, to find gelu(gate) * up = height
        for n, factor in zip(neurons, heights, strict=True):
            gate = float(steps[np.argmax(gelu_tanh(steps) * steps * gate_to_up >= height * factor)])
            for proj, value in ((w.gate_proj, gate), (w.up_proj, gate * gate_to_up)):
                size = min(coarse(value / strongest), float(np.abs(proj).max()))
                proj[n] *= QUIET
                proj[n, self.outliers] = size, -size
                proj[n] = self.rounding(proj[n])

    def load_outlier_rows(
        self, w: LayerWeights, neurons: AnyArray, seen: dict[str, Float32], depth: float, eps: float
    ) -> None:
        """Let the outliers' rows of down_proj read these neurons, with so much weight that they have half of the
        output's energy. Then the norm that follows holds them at that size in every token, whatever the neurons do."""
        y, a = seen["mlp.down_proj"], seen["mlp.down_proj.input"]
        rest = energy(y[:, self.bulk]) / len(y) + eps * self.config.D
        peak = float(np.abs(w.down_proj).max())
        size = min(coarse(math.sqrt(rest / 2) / float(a[:, neurons].sum(axis=-1).mean())), peak)
        for c, goal in zip(self.outliers, self.goals(seen, depth), strict=True):
            w.down_proj[c] *= QUIET
            w.down_proj[c, neurons] = math.copysign(size, goal - float(seen["residual_mid"][:, c].mean()))
        w.down_proj[:] = self.rounding(w.down_proj)

    def place_outliers(self, w: LayerWeights, seen: dict[str, Float32], depth: float) -> None:
        """Choose the post-norm's gains in the outlier channels so that the residual arrives at its goals."""
        high = 1 + real_stats.weight("post_feedforward_layernorm", depth).max
        for c, goal in zip(self.outliers, self.goals(seen, depth), strict=True):
            way = goal - float(seen["residual_mid"][:, c].mean())
            moved = float(seen["post_feedforward_layernorm"][:, c].mean())  # by a gain of 1
            w.post_feedforward_layernorm[c] = coarse(min(way / moved, high)) - 1
        w.post_feedforward_layernorm[:] = self.rounding(w.post_feedforward_layernorm)

    def goals(self, seen: dict[str, Float32], depth: float) -> tuple[float, float]:
        """Where the outliers shall be after this layer, on average over the tokens: at the real extremes.

        In the real model a single token can have an extreme alone; here all have it, so the standard deviation sets a
        limit. And it can fall to a fifth in one layer; all tokens' together do not, or some would change their sign.
        """
        target = real_stats.activation("residual", depth)
        limit = 1.2 * target.std * math.sqrt(self.config.D)
        above, below = (0.4 * float(mean) for mean in seen["residual_mid"][:, self.outliers].mean(axis=0))
        return max(min(target.max, limit), above), min(max(target.min, -limit), below)

    def final_norm(self, x: Float32) -> Float32:
        """The dump lacks it; it is made like the last layer's input_layernorm."""
        weight = self.draw(np.random.default_rng((self.seed, 3)), "input_layernorm", (self.config.D,), 1.0)
        self.fit_norm_in_front("input_layernorm", weight, x, 1.0, self.config.layers[-1].eps)
        return weight
