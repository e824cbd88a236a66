"""Random weights by their statistics: matrices with and without heavy tails, and a norm's gains."""

import math

import numpy as np
from real_stats import Stat

from gemma_np.arrays import Float32


def ordinary(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    """A matrix [O, I] that keeps its input's size, or a vector of small values."""
    return normal(rng, shape, 0.1 if len(shape) == 1 else 1 / math.sqrt(shape[1]))


def normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Float32:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= std
    return values


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...], std: float, peak: float) -> Float32:
    """Normal values whose outer ones are stretched until the largest is `peak`.

    Values beyond 0.6 of the largest, which is 3 standard deviations for a matrix of the real size, are moved outwards
    in proportion. 1 in 400 is an outlier then, and the standard deviation has grown by a few per cent.
    """
    values = normal(rng, shape, std)
    size = np.abs(values)
    largest = float(size.max())
    knee = 0.6 * largest
    outer = np.nonzero(size > knee)
    stretched = knee + (size[outer] - knee) * ((peak - knee) / (largest - knee))
    values[outer] = np.copysign(stretched, values[outer])
    return values


def ascending_gains(n: int, stat: Stat, real_n: int) -> Float32:
    """n gains like a real norm's of real_n: its smallest, a Weibull distribution, its largest.

    The extremes stand apart: the largest of 768 weights alone can make half of their variance.
    """
    bulk_mean = stat.mean - (stat.max - stat.mean) / real_n
    bulk_variance = stat.std**2 - ((stat.max - stat.mean) ** 2 + (stat.min - stat.mean) ** 2) / real_n
    bulk_std = math.sqrt(max(bulk_variance, (0.25 * (1 + bulk_mean)) ** 2))
    gains = np.minimum(spread(n, 1 + bulk_mean, bulk_std), 1 + stat.max)
    gains[0], gains[-1] = 1 + stat.min, 1 + stat.max
    return gains


def spread(n: int, mean: float, std: float) -> Float32:
    """n ascending positive values of this mean and standard deviation: the quantiles of a Weibull distribution.

    Its shape k covers what the real gains show: near 1, as in the middle layers, many channels are almost shut.
    """

    def relative_std(k: float) -> float:
        first, second = math.gamma(1 + 1 / k), math.gamma(1 + 2 / k)  # moments
        return math.sqrt(second / (first * first) - 1)

    low, high = 0.3, 20.0
    for _ in range(50):  # bisection; the relative standard deviation falls as k rises
        k = math.sqrt(low * high)
        low, high = (k, high) if relative_std(k) > std / mean else (low, k)
    scale = mean / math.gamma(1 + 1 / k)
    quantiles = [scale * (-math.log1p(-(i + 0.5) / n)) ** (1 / k) for i in range(n)]
    return np.array(quantiles, dtype=np.float32)
