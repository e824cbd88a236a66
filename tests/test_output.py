"""Truncation, renormalisation and fewer bits; sentence-transformers' quantize_embeddings is the judge."""

import numpy as np
import pytest
from numpy.typing import ArrayLike

from gemma_np import InputError, output
from gemma_np.arrays import AnyArray, Float32
from gemma_np.ops import l2_normalize

rng = np.random.default_rng(0)
unit = l2_normalize(rng.standard_normal((20, 768), dtype=np.float32))


def codes_of(vectors: Float32, precision: str, ranges: ArrayLike | None, *, normalized: bool) -> AnyArray:
    """Full vectors of a model in fewer bits."""
    return output.Wanted(vectors.shape[1], normalized, precision=precision, ranges=ranges).of(vectors)


def test_a_cut_vector_of_a_normalised_model_has_length_one() -> None:
    for dim in (1, 100, 128, 767):
        cut = output.truncate(unit, dim, normalized=True, normalize=False)
        assert cut.shape == (20, dim)
        # sums of up to 767 squares, added in pairs: about log2(767) = 10 roundings of 2^-24, 6e-7
        np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(cut, unit[:, :dim] / np.linalg.norm(unit[:, :dim], axis=1, keepdims=True), rtol=1e-6)


def test_a_model_without_normalize_is_cut_only_unless_asked() -> None:
    long = unit * np.float32(3)
    np.testing.assert_array_equal(output.truncate(long, 64, normalized=False, normalize=False), long[:, :64])
    np.testing.assert_allclose(  # as above, with 64 squares
        np.linalg.norm(output.truncate(long, 64, normalized=False, normalize=True), axis=1), 1, rtol=1e-6
    )


def test_full_vectors_of_a_normalised_model_are_not_touched() -> None:
    np.testing.assert_array_equal(output.truncate(unit, None, normalized=True, normalize=True), unit)
    np.testing.assert_array_equal(output.truncate(unit, 768, normalized=True, normalize=False), unit)


def test_int8_codes_are_the_entries_over_a_fixed_step_rounded() -> None:
    step = 10 / np.sqrt(768) / 127
    codes = codes_of(unit, "int8", None, normalized=True)
    assert codes.dtype == np.int8
    # within float32's rounding of a tie either neighbour is right: the step's and the quotient's, of up to 127
    assert np.abs(codes - unit / step).max() <= 0.5 + 2 * 127 * 2**-24
    assert codes_of(np.zeros((1, 768), np.float32), "int8", None, normalized=True).max() == 0


def test_codes_do_not_depend_on_the_other_texts() -> None:
    for precision in ("int8", "uint8", "binary", "ubinary"):
        together = codes_of(unit, precision, None, normalized=True)
        alone = np.concatenate([codes_of(row[None], precision, None, normalized=True) for row in unit])
        np.testing.assert_array_equal(together, alone)


def test_int8_cosines_stay_close() -> None:
    codes = codes_of(unit, "int8", None, normalized=True).astype(np.float32)
    cosines = (l2_normalize(codes) * unit).sum(axis=1)
    # a step is 10/127 standard deviations: uniform rounding errors of variance step^2/12 cost half of that, 2.6e-4, the
    # mean of 768 of them a little more or less
    assert cosines.min() > 1 - 4e-4


def test_codes_outside_the_range_are_clipped_not_wrapped() -> None:
    peak = np.zeros((2, 768), np.float32)
    peak[0, 0], peak[1, 0] = 1, -1
    assert codes_of(peak, "int8", None, normalized=True)[:, 0].tolist() == [127, -128]
    assert codes_of(peak, "uint8", None, normalized=True)[:, 0].tolist() == [255, 0]


def test_signs_are_packed_eight_to_a_byte() -> None:
    vector = np.float32([[1, -1, 0, 2, -2, 3, -3, 4, 5]])
    assert codes_of(vector, "ubinary", None, normalized=True).tolist() == [[0b10010101, 0b10000000]]
    assert codes_of(vector, "binary", None, normalized=True).tolist() == [[0b10010101 - 128, 0]]


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_with_ranges_codes_equal_those_of_sentence_transformers(precision: str, sentence_transformers: object) -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    ranges = np.stack([unit.min(axis=0), unit.max(axis=0)])
    ranges[1, 5] = ranges[0, 5]  # a dimension that never varies
    expected = quantize_embeddings(unit, precision, ranges=ranges)
    ours = codes_of(unit, precision, ranges, normalized=True)
    assert ours.dtype == expected.dtype
    np.testing.assert_array_equal(ours, expected)


def test_without_a_fixed_length_there_is_no_fixed_scale() -> None:
    with pytest.raises(InputError, match="pass ranges"):
        codes_of(unit, "int8", None, normalized=False)
    with pytest.raises(InputError, match=r"shape \(2, 3\), expected \(2, 768\)"):
        codes_of(unit, "int8", np.zeros((2, 3)), normalized=True)
