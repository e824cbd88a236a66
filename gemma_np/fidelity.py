"""What rounding costs: cosines of a quantised model's vectors to those of the float32 model that it was made from.

One layer of the float model at a time is in memory.
"""

from collections.abc import Sequence

import numpy as np

from gemma_np import model
from gemma_np.arrays import Float32, Int32
from gemma_np.checkpoint.source import Source
from gemma_np.ops import rms_norm, rope_table
from gemma_np.weights.loading import Loader, Weights
from gemma_np.weights.names import layer_tensors

# One text of each kind that people embed, in several scripts.
SAMPLE = (
    "Mars",
    "task: search result | query: which planet is known as the red planet?",
    "title: none | text: Venus is often called Earth's twin because of its similar size and proximity.",
    "The committee will publish its report on renewable energy in the second half of next year.",
    "def mean(values): return sum(values) / len(values)  # of a list of numbers",
    "Der schnelle braune Fuchs springt über den faulen Hund, während die Sonne langsam untergeht.",
    "La bibliothèque municipale sera fermée lundi ; les livres peuvent être rendus mardi matin.",
    "¿Cuánto cuesta un billete de ida y vuelta a Sevilla para dos personas?",
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку.",
    "机器学习模型可以把句子变成向量，从而比较它们的意思。",
    "猫が古い家の前で静かに寝ています。",
    "القطة تنام في البيت القديم بجانب النافذة.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "Patients who received the treatment recovered in 9.3 days on average (n = 214, p < 0.01), against 12.8 before.",
    "I ordered a blue lamp two weeks ago and it still has not arrived. Could you please tell me where my parcel is?",
    "In the beginning the valley was quiet. " * 12,
)


def float32_vectors(source: Source, texts: Sequence[Int32]) -> Float32:
    """Token ids -> vectors [B, dim] of a float model: model.embed, with the layers as the outer loop."""
    config, modules, tensors = source.config, source.modules, source.tensors
    loader, step = Loader(tensors, {}, packed=False), model.Steps(None)
    weights = Weights(source.table, (), tensors["norm.weight"].float32(), loader.heads(modules))
    xs = [model.embed_tokens(ids, weights, config) for ids in texts]
    for i, layer in enumerate(config.layers):
        w = loader.layer(config, i)
        xs = [model.block(x, w, layer, rope_table(len(x), layer.H, layer.theta), step) for x in xs]
        for name, _ in layer_tensors(config, i).values():
            tensors[name].let_go()
    means = [model.mean_pool(rms_norm(x, weights.norm, config.layers[-1].eps), 0) for x in xs]
    return np.stack([model.apply_heads(e, modules.heads, weights, step) for e in means])


def cosines(a: Float32, b: Float32) -> Float32:  # [B, dim], [B, dim] -> [B]
    """Of each vector to its other version."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: Float32 = ((a * b).sum(axis=1) / np.where(lengths, lengths, 1)).astype(np.float32)
    return found
