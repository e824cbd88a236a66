"""What training minimises, at every Matryoshka dimension k."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def training_loss(embedded: Tensor, targets: Tensor, pairs: int, config: dict[str, Any]) -> Tensor:
    """[B, 384] and the teacher's (rotated) [B, 384] -> a scalar, the mean over the dimensions of

    cosine      1 - cosine of the first k numbers to the teacher's first k
    relations   mean squared difference between the batch's cosines at k and the teacher's at 384, weighted by the
                latter plus `far`: to tell neighbours apart counts more than how far strangers are
    binary      the same for the signs alone: cosine c becomes 2 / pi asin(c) where numbers are equally large
    contrast    cross entropy of finding row pairs + i (a document) from row i (its query); 0 without pairs
    """
    relations = targets @ targets.T
    weights = relations.clamp(min=0) + config["far"]
    weights = weights.fill_diagonal_(0) / weights.sum().clamp(min=config["far"])  # a text alone has no relations
    total = embedded.new_zeros(())
    for k in config["dimensions"]:
        y = F.normalize(embedded[:, :k])
        total = total + config["cosine"] * (1 - cosines(embedded, targets, k)).mean()
        total = total + config["relations"] * (weights * (y @ y.T - relations).square()).sum()
        if pairs:
            scores = y[:pairs] @ y[pairs:].T / config["temperature"]
            total = total + config["contrast"] * F.cross_entropy(scores, torch.arange(pairs, device=y.device))
    y = F.normalize(embedded)
    signs = y + (y.sign() / y.shape[1] ** 0.5 - y).detach()  # gradients pass as if there were no sign
    angles = 2 / math.pi * torch.asin(relations.clamp(-1, 1))
    binary = config["binary"] * (signs @ signs.T - angles).square().mean()
    return total / len(config["dimensions"]) + binary


def cosines(embedded: Tensor, targets: Tensor, k: int) -> Tensor:
    return F.cosine_similarity(embedded[:, :k], targets[:, :k])
