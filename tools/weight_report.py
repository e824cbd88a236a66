"""Do a checkpoint's weights behave like the real model's? Measure them and compare with real_stats.json.

    python tools/weight_report.py CHECKPOINT

Everything is measured on the file itself, by the readable model. The bounds are for the real model's shape and the
text of the real figures; another shape gets the tables, with the figures of the same relative depth, and no verdict.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import real_stats

from gemma_np import GemmaError
from gemma_np.arrays import AnyArray, Float32
from gemma_np.checkpoint.folder import checkpoint_tensors
from gemma_np.config import Config, read_config
from gemma_np.model import trunk
from gemma_np.modules import resolve_modules
from gemma_np.weights.loading import Weights, load_weights

# Each layer's activations that must be like the real ones, within these factors.
BOUNDED = ("residual", "input_layernorm", "mlp.down_proj.input")
STD_WITHIN, LARGEST_WITHIN = 2.0, 3.0
TAIL_WITHIN = 1.5  # of largest |w| / standard deviation, for every projection
EPS_AT_LEAST = 0.1  # of the mean square of the feed-forward output, in some layer
FLOAT16_END = 65_504

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = (
    *("input_layernorm", "q_norm", "k_norm"),
    *("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)


@dataclass(frozen=True)
class Beside:
    """A measured figure and the real one."""

    here: float
    real: float

    @property
    def ratio(self) -> float:
        return self.here / self.real

    def within(self, factor: float) -> bool:
        return 1 / factor <= self.ratio <= factor


class Measured:
    """A checkpoint's weights, and what each layer computes from the text of the real figures."""

    def __init__(self, weights: Weights, config: Config) -> None:
        self.weights, self.config = weights, config
        self.layers: list[dict[str, Float32]] = []
        x = weights.embed_tokens.rows(real_stats.calibration_ids(config.V)) * math.sqrt(config.D)
        for w, layer in zip(weights.layers, config.layers, strict=True):
            self.layers.append(real_stats.watch(x, w, layer))
            x = self.layers[-1]["residual"]

    def depth(self, i: int) -> float:
        return i / max(len(self.layers) - 1, 1)

    def known(self, name: str) -> list[int]:
        """The layers whose real figures were read; all, if this model has other layers."""
        layers = real_stats.layers_known(name)
        return layers if len(self.layers) == real_stats.L else list(range(len(self.layers)))

    def std(self, name: str, i: int) -> Beside:
        real = real_stats.activation(name, self.depth(i))
        return Beside(float(self.layers[i][name].std()), real.std)

    def largest(self, name: str, i: int) -> Beside:
        real = real_stats.activation(name, self.depth(i))
        return Beside(float(np.abs(self.layers[i][name]).max()), real.loudest)

    def weight_std(self, field: str, i: int) -> Beside:
        """Of a projection, with as many inputs as the real one."""
        w: Float32 = getattr(self.weights.layers[i], field)
        inputs = real_stats.F if field == "down_proj" else real_stats.D
        return Beside(float(w.std()) * math.sqrt(w.shape[1] / inputs), real_stats.weight(field, self.depth(i)).std)

    def tail(self, field: str, i: int) -> Beside:
        """A projection's largest |w| in standard deviations."""
        w: Float32 = getattr(self.weights.layers[i], field)
        real = real_stats.weight(field, self.depth(i))
        return Beside(float(np.abs(w).max() / w.std()), real.peak / real.std)

    def gain(self, field: str, i: int) -> dict[str, Beside]:
        """Of a norm: the mean of 1 + w, the standard deviation and the largest weight."""
        w: Float32 = getattr(self.weights.layers[i], field)
        real = real_stats.weight(field, self.depth(i))
        return {
            "mean of 1 + w": Beside(float(1 + w.mean()), 1 + real.mean),
            "std": Beside(float(w.std()), real.std),
            "largest": Beside(float(w.max()), real.max),
        }

    def eps_share(self, i: int) -> Beside:
        """eps over the mean square of the feed-forward output, to which layer i's last norm adds it."""
        eps = self.config.layers[i].eps
        here = eps / float(np.square(self.layers[i]["mlp.down_proj"]).mean())
        return Beside(here, eps / real_stats.activation("mlp.down_proj", self.depth(i)).std ** 2)


def report(folder: Path) -> int:
    """Print all tables; 0, or 1 if a bound is broken. GemmaError for a checkpoint that cannot be read."""
    config = read_config(folder)
    modules = resolve_modules(folder)
    model = Measured(load_weights(checkpoint_tensors(folder, config, modules), config, modules), config)
    print(f"{folder}: the real model's figures and this one's, over {len(real_stats.IDS)} tokens\n")
    broken = [*bounded_activations(model), *projections(model), *feed_forward_outputs(model)]
    other_activations(model)
    norms(model)
    broken += longer_text(model)
    shape = (config.D, config.layers[0].H, config.F, len(config.layers))
    if shape != (real_stats.D, real_stats.H, real_stats.F, real_stats.L):
        print("No verdict: the bounds are for the real model's shape.")
        return 0
    if broken:
        print(f"OUT OF BOUNDS: {', '.join(broken)}")
        return 1
    print("All within the bounds.")
    return 0


def bounded_activations(model: Measured) -> list[str]:
    """A row per layer; the names of the activations that are out of bounds, which are marked."""
    print(f"Standard deviation (within a factor of {STD_WITHIN:g}) and largest absolute value ({LARGEST_WITHIN:g})\n")
    print("      " + "".join(f"{name:^57}" for name in BOUNDED))
    print(
        "layer" + f"{'std: real':>11}{'here':>10}{'ratio':>7}{'max: real':>11}{'here':>10}{'ratio':>7} " * len(BOUNDED)
    )
    broken = []
    for i in range(len(model.layers)):
        cells = []
        for name in BOUNDED:
            known = i in model.known(name)
            for figure, factor in ((model.std, STD_WITHIN), (model.largest, LARGEST_WITHIN)):
                beside = figure(name, i)
                good = beside.within(factor) or not known
                if not good:
                    broken.append(f"layers.{i} {name}")
                real, ratio = (f"{beside.real:.4g}", f"{beside.ratio:.2f}") if known else ("-", "-")
                cells.append(f"{real:>11}{f'{beside.here:.4g}':>10}{ratio + ' !'[not good]:>7}")
            cells.append(" ")
        print(f"{i:>5}" + "".join(cells))
    print()
    return broken


def projections(model: Measured) -> list[str]:
    """A row per kind of projection, the ratios over its layers; what is out of bounds."""
    print(f"Projections: ratios to the real ones over all layers (tails within a factor of {TAIL_WITHIN:g})\n")
    print(f"{'':<28}{'std':^24}{'largest |w| / std':^24}")
    broken = []
    for field in PROJECTIONS:
        tails = [model.tail(field, i) for i in range(len(model.layers))]
        print(f"{field:<28}{over([model.weight_std(field, i) for i in range(len(model.layers))])}{over(tails)}")
        broken += [f"layers.{i} {field}" for i, tail in enumerate(tails) if not tail.within(TAIL_WITHIN)]
    print()
    return broken


def feed_forward_outputs(model: Measured) -> list[str]:
    """Where eps counts; what is out of bounds."""
    i = max(range(len(model.layers)), key=lambda i: model.eps_share(i).here)
    share = model.eps_share(i)
    print(
        f"eps is {share.here:.0%} of the mean square of layer {i}'s feed-forward output (the real model's: "
        f"{share.real:.0%}; at least {EPS_AT_LEAST:.0%} in some layer)"
    )
    largest = max(float(np.abs(layer["residual"]).max()) for layer in model.layers)
    print(f"The largest residual is {largest:,.0f} (float16 ends at {FLOAT16_END:,})\n")
    return [] if share.here >= EPS_AT_LEAST else ["eps"]


def other_activations(model: Measured) -> None:
    print("Other activations: ratios to the real ones, over the layers that are known\n")
    print(f"{'':<28}{'std':^24}{'largest':^24}")
    for name in real_stats.activation_names():
        if name not in BOUNDED:
            layers = model.known(name)
            stds, largest = ([figure(name, i) for i in layers] for figure in (model.std, model.largest))
            print(f"{name:<28}{over(stds)}{over(largest)}")
    print()


def norms(model: Measured) -> None:
    print("Norm weights: ratios to the real ones over all layers\n")
    print(f"{'':<28}{'mean of 1 + w':^24}{'std':^24}{'largest':^24}")
    for field in NORMS:
        gains = [model.gain(field, i) for i in range(len(model.layers))]
        print(f"{field:<28}" + "".join(over([gain[key] for gain in gains]) for key in gains[0]))
    print()


def longer_text(model: Measured, tokens: int = 300) -> list[str]:
    """Other tokens, and more: does the residual stay as large as it was? What is out of bounds."""
    ids = np.random.default_rng(0).integers(4, model.config.V, tokens).astype(np.int32)
    ratios = []

    def compare(name: str, array: AnyArray) -> None:
        if name.startswith("layers.") and name.count(".") == 1:
            layer = model.layers[int(name.removeprefix("layers."))]
            ratios.append(float(array.std() / layer["residual"].std()))

    trunk(ids, model.weights, model.config, compare)
    print(f"{tokens} random tokens: the residual's std is {min(ratios):.2f} to {max(ratios):.2f} times that above\n")
    return [] if all(0.1 < ratio < 10 for ratio in ratios) else [f"residual over {tokens} tokens"]


def over(figures: Sequence[Beside]) -> str:
    """A cell: the geometric mean of the ratios, the smallest and the largest."""
    ratios = [max(figure.ratio, 0) for figure in figures]
    mean = math.exp(sum(math.log(max(ratio, 1e-9)) for ratio in ratios) / len(ratios))
    return f"{f'{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})':^24}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Do a checkpoint's weights behave like the real model's?",
        epilog="example:  python tools/weight_report.py demo",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a folder")
    try:
        return report(parser.parse_args().checkpoint)
    except GemmaError as error:
        print(f"weight_report: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
