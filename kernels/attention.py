"""Attention as a streaming softmax: blocks of queries walk the keys of their window once, and no row of scores is kept.

16 positions and the G heads that share a key/value head are up to 16 G rows against the same keys, so keys and values
come from the second cache once for all of them. For each 64 keys: scores, their maximum, exp, and the values' sum,
which is scaled down when the maximum grows (Milakov & Gimelshein, Online normalizer calculation for softmax).
"""

from typing import Any

import numpy as np

from .rows import exp, put_row
from .simd import (
    get_float,
    kernel,
    lane_numbers,
    larger,
    largest,
    load,
    set_float,
    splat,
    store,
    sum_of,
    where_less,
    zeros,
)
from .tiles import FLOAT_ROWS, FLOAT_VECTORS, tile_floats

KEYS = 64  # in a step
KEY_PANEL = 32  # keys are stored as [keys / 32][H][32]: the H vectors of 32 keys fill half of the first cache
FAR = np.float32(-1e30)


@kernel
def mask_row(scores: int, first: int, last: int) -> None:
    """Scores of keys outside first..last become -1e30; numbers count from the first score."""
    for i in range(0, KEYS, 16):
        key = lane_numbers() + splat(np.float32(i))
        v = load(scores + 4 * i)
        v = where_less(key, splat(np.float32(first)), splat(FAR), v)
        store(scores + 4 * i, where_less(splat(np.float32(last)), key, splat(FAR), v))


@kernel
def softmax_step(scores: int, maximum: int, total: int, factor: int) -> None:
    """64 scores -> exp(score - maximum), in place; the maximum and the running total follow, `factor` brings older sums
    to the new maximum."""
    a, b, c, d = load(scores), load(scores + 64), load(scores + 128), load(scores + 192)
    before = get_float(maximum)
    now = max(before, largest(larger(larger(a, b), larger(c, d))))
    m = splat(now)
    a, b, c, d = exp(a - m), exp(b - m), exp(c - m), exp(d - m)
    store(scores, a)
    store(scores + 64, b)
    store(scores + 128, c)
    store(scores + 192, d)
    shrink = largest(exp(splat(before - now)))
    set_float(maximum, now)
    set_float(factor, shrink)
    set_float(total, get_float(total) * shrink + sum_of((a + b) + (c + d)))


@kernel
def put_scores(q: int, keys: int, H: int, rows: int, first: int, count: int, scores: int) -> None:
    """scores[row, i] = q[row] k[first + i] for `count` keys, in whole tiles; KEYS columns a row."""
    for part in range(0, count, FLOAT_VECTORS * 16):
        key = first + part
        k = keys + (key // KEY_PANEL * H * KEY_PANEL + key % KEY_PANEL) * 4
        for row in range(0, rows, FLOAT_ROWS):
            out = scores + (row * KEYS + part) * 4
            tile_floats(q + row * H * 4, H * 4, k, 64, KEY_PANEL * 4, H, out, KEYS * 4, 0)


@kernel
def add_values(weights: int, values: int, H: int, rows: int, count: int, sums: int, factors: int) -> None:
    """sums[row] = sums[row] * factors[row] + weights[row] @ values, over `count` keys."""
    for column in range(0, H, FLOAT_VECTORS * 16):
        for row in range(0, rows, FLOAT_ROWS):
            a, v, out = weights + row * KEYS * 4, values + column * 4, sums + (row * H + column) * 4
            tile_floats(a, KEYS * 4, v, 64, H * 4, count, out, H * 4, factors + 4 * row)


@kernel  # 13 arguments and what each is, then the walk along the keys
def attend(
    q: int,
    keys: int,
    values: int,
    T: int,
    G: int,
    H: int,
    start: int,
    stop: int,
    radius: int,
    scratch: int,
    out: int,
    ldo: int,
    rounded: int,
) -> None:
    """One block of queries of one text and key/value head: softmax(q k^T) v over the window, rounded for o_proj.

    q        float32 [T, G, H] of the text, scaled and rotated
    keys     float32 [2 ceil(T / 64), H, 32], rotated; what follows key T is not used
    values   float32 [T, H]
    start    the block's first position; `stop` is the one after its last: at most 16
    radius   largest distance between a query and a key; T or more: no limit
    scratch  float32 [3 * rows + rows * KEYS + rows * H], rows = 16 G and up to a tile's more
    out      the row of position 0 and of this head's first column, for put_row; `ldo` bytes to the next position
    """
    rows = ((stop - start) * G + FLOAT_ROWS - 1) // FLOAT_ROWS * FLOAT_ROWS
    maximum, total, factor, scores = scratch, scratch + 4 * rows, scratch + 8 * rows, scratch + 12 * rows
    sums = scores + 4 * rows * KEYS
    for row in range(rows):
        set_float(maximum + 4 * row, FAR)
        set_float(total + 4 * row, np.float32(0))
    for i in range(0, rows * H, 16):
        store(sums + 4 * i, zeros())
    lowest, highest = max(0, start - radius), min(T, stop + radius)
    for first in range(lowest // KEYS * KEYS, highest, KEYS):
        count = min(KEYS, highest - first)
        put_scores(q + start * G * H * 4, keys, H, rows, first, count, scores)
        inside = first >= stop - 1 - radius and first + KEYS - 1 <= start + radius and first + KEYS <= T
        for row in range(rows):
            if not inside:
                t = start + row // G
                mask_row(scores + row * KEYS * 4, t - radius - first, min(t + radius, T - 1) - first)
            softmax_step(scores + row * KEYS * 4, maximum + 4 * row, total + 4 * row, factor + 4 * row)
        add_values(scores, values + first * H * 4, H, rows, count, sums, factor)
    for row in range((stop - start) * G):
        divide_row(sums + row * H * 4, H, get_float(total + 4 * row))
    for position in range(stop - start):
        put_row(sums + position * G * H * 4, G * H, out + (start + position) * ldo, rounded)


@kernel
def divide_row(x: int, n: int, total: Any) -> None:
    share = splat(np.float32(1) / total)
    for i in range(0, n, 16):
        store(x + 4 * i, load(x + 4 * i) * share)
