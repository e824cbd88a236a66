"""real_stats.json: how large the real model's weights and activations are, by name and depth.

The file names its source. Layers and quantities that the source lacks are interpolated between their neighbours.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_np.arrays import Float32, Int32
from gemma_np.config import Layer
from gemma_np.model import Steps, block
from gemma_np.ops import rope_table
from gemma_np.weights.loading import LayerWeights

CONTENT: dict[str, Any] = json.loads((Path(__file__).parent / "real_stats.json").read_bytes())
D, H, F, L = 768, 256, 1152, 24  # the real model's hidden size, head size, feed-forward size and layers
IDS = CONTENT["ids"]  # the text that the activations belong to


@dataclass(frozen=True)
class Stat:
    """What is known of a tensor. Of a projection only `std` and `peak`, its largest |w|; of an activation no mean."""

    std: float
    min: float = math.nan
    max: float = math.nan
    mean: float = math.nan
    peak: float = math.nan

    @property
    def loudest(self) -> float:
        """The largest absolute value."""
        return max(-self.min, self.max)


def weight(name: str, depth: float) -> Stat:
    """A weight of the layer at a relative depth, 0 for the first and 1 for the last; `name` as in LayerWeights."""
    return _at(CONTENT["weights"][name], depth)


def activation(name: str, depth: float) -> Stat:
    """An activation of the layer at a relative depth; `name` as `watch` gives it."""
    return _at(CONTENT["activations"][name], depth)


def embedding(kind: str) -> Stat:
    """The embedding table ("weight"), or the rows of IDS times sqrt(D) ("activation")."""
    return Stat(**CONTENT["embed_tokens"][kind])


def activation_names() -> list[str]:
    return list(CONTENT["activations"])


def layers_known(name: str) -> list[int]:
    """The layers in which this activation was read, not interpolated."""
    return [i for i, std in enumerate(CONTENT["activations"][name]["std"]) if std is not None]


def _at(fields: dict[str, list[float | None]], depth: float) -> Stat:
    """Between two layers linearly; at the ends the nearest that is known."""
    stat = {}
    for field, values in fields.items():
        known = {i: value for i, value in enumerate(values) if value is not None}
        stat[field] = float(np.interp(depth * (L - 1), list(known), list(known.values())))
    return Stat(**stat)


def calibration_ids(V: int) -> Int32:
    """IDS, wrapped to a smaller vocabulary."""
    return np.array(IDS, dtype=np.int32) % V


def watch(x: Float32, w: LayerWeights, layer: Layer) -> dict[str, Float32]:  # [T, D] -> {name: [T, ...]}
    """Run one layer and keep all that it computes: the names of `model.block`, and three more.

    residual_mid        the residual between attention and feed-forward
    residual            the layer's output
    mlp.down_proj.input gelu(gate) * up
    """
    seen: dict[str, Float32] = {}
    keep: Callable[[str, Any], None] = seen.__setitem__
    seen["residual"] = block(x, w, layer, rope_table(len(x), layer.H, layer.theta), Steps(keep))
    seen["residual_mid"] = x + seen["post_attention_layernorm"]
    seen["mlp.down_proj.input"] = seen["mlp.act_fn"] * seen["mlp.up_proj"]
    return seen
