"""Each equation against the same in float64, written another way."""

import math

import numpy as np
import pytest

from gemma_np import ops

EPS = 2.0**-24  # relative rounding error of one float32 operation
rng = np.random.default_rng(0)


def test_rms_norm_is_exact_but_for_rounding() -> None:
    for D in (1, 7, 64, 768):
        x = rng.standard_normal((5, D), dtype=np.float32) * np.float32(100)
        weight = rng.standard_normal(D, dtype=np.float32)
        x64, w64 = x.astype(np.float64), weight.astype(np.float64)
        expected = x64 / np.sqrt((x64 * x64).mean(axis=-1, keepdims=True) + 1e-6) * (1 + w64)
        # a sum of D squares errs by at most D roundings, its root by half of that, and six operations follow; but
        # 1 + w cancels where w is near -1, so the error is relative to 1 + |w|
        bound = (D / 2 + 6) * EPS * np.abs(expected / (1 + w64)) * (1 + np.abs(w64))
        error = np.abs(ops.rms_norm(x, weight, 1e-6) - expected)
        assert (error <= bound).all(), f"D = {D}: worst at {np.unravel_index((error - bound).argmax(), error.shape)}"


def test_epsilon_counts_where_the_mean_square_is_as_small_as_in_late_layers() -> None:
    x = np.full((1, 4), 1e-3, dtype=np.float32)
    expected = 1e-3 / math.sqrt(1e-6 + 1e-6)
    # four squares, a division, a root and two products: at most 8 roundings of 2^-24, 5e-7
    np.testing.assert_allclose(ops.rms_norm(x, np.zeros(4, np.float32), 1e-6), expected, rtol=1e-6)


def test_rope_turns_each_half_pair_by_position_times_frequency() -> None:
    T, H, theta = 300, 8, 1e4
    x = rng.standard_normal((T, 2, H), dtype=np.float32)
    turned = ops.rotate(x, *ops.rope_table(T, H, theta))
    assert turned.dtype == np.float32
    as_complex = x[..., : H // 2] + 1j * x[..., H // 2 :].astype(np.float64)
    angle = np.arange(T)[:, None, None] * theta ** (-2.0 * np.arange(H // 2) / H)
    expected = as_complex * np.exp(1j * angle)
    # the angle is a float32 of at most 300: half a unit in its last place is 1.5e-5, so is its frequency's rounding; an
    # entry moves by that times its partner, which is a normal random number, 4 at most
    np.testing.assert_allclose(turned[..., : H // 2], expected.real, atol=3e-5 * 4)
    np.testing.assert_allclose(turned[..., H // 2 :], expected.imag, atol=3e-5 * 4)


def test_position_zero_is_not_turned() -> None:
    x = rng.standard_normal((1, 3, 16), dtype=np.float32)
    np.testing.assert_array_equal(ops.rotate(x, *ops.rope_table(1, 16, 1e6)), x)


def test_gelu_is_the_tanh_form() -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001, dtype=np.float32), np.float32([0, -0.0, 1e-30, 88, -88, 1e18])])
    x64 = x.astype(np.float64)
    expected = 0.5 * x64 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x64 + 0.044715 * x64**3)))
    # 1 + tanh(...) is between 0 and 2 and has a few float32 roundings, and all of it is multiplied by x / 2
    with np.errstate(over="ignore"):  # x^3 at 1e18: tanh(inf) is 1
        error = np.abs(ops.gelu_tanh(x) - expected)
    assert (error <= 6 * EPS * np.abs(x64)).all(), (
        f"worst at x = {x[(error / np.maximum(np.abs(x64), 1e-30)).argmax()]}"
    )
    # the erf form differs by up to 5e-4, so it would be seen
    erf = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x64])
    assert np.abs(erf - expected).max() > 1e-4


def test_gelu_leaves_its_input_alone() -> None:
    x = np.ones(3, dtype=np.float32)
    ops.gelu_tanh(x)
    np.testing.assert_array_equal(x, np.ones(3, dtype=np.float32))


def test_softmax_sums_to_one_and_survives_large_scores() -> None:
    scores = np.float32([[1e4, 1e4 - 1, -1e4], [0, 0, -np.inf]])
    expected = [[1 / (1 + math.exp(-1)), math.exp(-1) / (1 + math.exp(-1)), 0], [0.5, 0.5, 0]]
    # exp is off by 2 units in the last place at most, the sum by one for each of its few terms: 8 * 2^-24, 5e-7
    np.testing.assert_allclose(ops.softmax(scores), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("queries", "keys"), [(range(5), range(5)), (range(3, 7), range(1, 9)), (range(0, 1), range(9))]
)
@pytest.mark.parametrize("radius", [0, 1, 2, 100])
def test_the_window_reaches_radius_tokens_to_both_sides(queries: range, keys: range, radius: int) -> None:
    mask = ops.window_mask(queries, keys, radius)
    for row, i in enumerate(queries):
        for column, j in enumerate(keys):
            assert mask[row, column] == (abs(i - j) <= radius), (i, j)


def test_normalising_zeros_gives_zeros() -> None:
    x = np.zeros((2, 3), dtype=np.float32)
    x[1] = 3, 4, 0
    # the length is 5 exactly, and a quotient is rounded once
    np.testing.assert_allclose(ops.l2_normalize(x), [[0, 0, 0], [0.6, 0.8, 0]], rtol=EPS)
