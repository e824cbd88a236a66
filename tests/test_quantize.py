"""The formats' values are llama.cpp's, their errors stay in the bounds that are written beside them, and every byte
lies where kernels look for it."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from gemma_np.kernels.plan import FORMATS, GROUP
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gemma_np import InputError, WeightsError
from gemma_np.arrays import AnyArray, Float32
from gemma_np.config import read_config
from gemma_np.weights.blocks import BLOCK_BYTES, to_blocks
from gemma_np.weights.names import trunk_shapes
from gemma_np.weights.packed import Packed, aligned_empty, pack
from gemma_np.weights.quantize import STEPS, ZERO, decode, encode, format_of, quantized_rows

QUANTISED = FORMATS[1:]
OVERFLOW = {"q8_0": 65520 * 127, "q4_0": 65520 * 8}  # the first magnitude whose scale is infinite in float16
rng = np.random.default_rng(0)


def golden_blocks() -> Float32:  # -> [7, 32]
    """Blocks made of integers, so that no generator's version counts: wide, ties of q8_0, a negative maximum with
    ties of q4_0, one outlier, float16 denormal scales, zeros, near-ties that tell / 127 from * (1 / 127)."""
    i = np.arange(GROUP)
    d = np.float32(16971) / np.float32(127)
    return np.float32(
        [
            (i * 37 % 101 - 50) / 1024,
            np.where(i, i * 7 % 32 - 15.5, 127),  # d = 1: halves, of both signs
            np.where(i == 9, -8, (i - 16) / 2),  # d = 1: halves, and 7.5 at the top
            np.where(i == 31, 38, (i % 5 - 2) / 7),
            (i * i % 29 - 14) * 2.0**-20,
            np.zeros(GROUP),
            np.where(i, np.float32(i - 15.5) * d, 16971),
        ]
    )


# Made by gguf 0.19.0 with NumPy 2.4.6; printed again by `PYTHONPATH=. python tests/test_quantize.py`.
GOLDENS = {
    "q8_0": [
        "4d0e81df3d9af856b41270cd2b89e745a2005ebb1977d53390ee4caa0866c3217fdc",
        "003c7ff7fe060df3fa020910f6fd050cf2f901080ff5fc040bf1f8ff070ef4fb030a",
        "082c81899199a1a9b1b9c081d0d8e0e8f0f8000810182028303840474f575f676f77",
        "ca34ff00000001ff00000001ff00000001ff00000001ff00000001ff00000001ff7f",
        "0200818aa5d31264c036b752f7ae7f5b49495b7faef752b736c06412d3a58a818aa5",
        "00000000000000000000000000000000000000000000000000000000000000000000",
        "2d587ff2f2f3f5f5f6f7f8f9fafcfdfdffff0101030304060708090a0b0b0d0e0e10",
    ],
    "q4_0": [
        "401ee046acf258bd1379df358be046acf268",
        "f0cb80897898878978988787897898878978",
        "003c809191a2a2b3b3c4c4d0d5e6e6f7f7f8",
        "c0c488888888888888888888888888888808",
        "1c00e0f13275d93eb44be39d57231f0e1d2d",
        "008088888888888888888888888888888888",
        "25e880898989898989897878787878787878",
    ],
}


def block_bytes(x: Float32, format: str) -> list[str]:
    """Our codes and scales as llama.cpp's files have them, block by block, in hexadecimal."""
    blocks = to_blocks(*encode(x.reshape(1, -1), format), format)
    return [block.tobytes().hex() for block in blocks.reshape(-1, BLOCK_BYTES[format])]


def gguf_bytes(x: Float32, format: str) -> list[str]:
    """What gguf makes of the same values."""
    import gguf

    kind = gguf.GGMLQuantizationType[format.upper()]
    return [block.tobytes().hex() for block in gguf.quants.quantize(x.reshape(-1, GROUP), kind)]


def c_block(x: Float32, format: str) -> tuple[list[int], np.float16]:
    """One block as ggml-quants.c has it, value by value: each step one float32 operation, rounding in exact numbers."""
    largest = max(x, key=abs)  # the first of equals
    d = np.float32(abs(largest)) / np.float32(127) if format == "q8_0" else largest / np.float32(-8)
    with np.errstate(over="ignore"):
        inverse = np.float32(1) / d if d else np.float32(0)
    codes = []
    for value in x:
        scaled = value * inverse if np.isfinite(inverse) else np.float32(0)  # C leaves the infinite case undefined
        if format == "q8_0":
            rounded = int(abs(Fraction(float(scaled))) + Fraction(1, 2))  # half away from zero
            codes.append(128 + (rounded if scaled >= 0 else -rounded))
        else:
            codes.append(min(15, int(scaled + np.float32(8.5))))
    return codes, np.float16(d)


def magnitudes(largest: float) -> st.SearchStrategy[float]:
    return st.floats(-largest, largest, width=32, exclude_min=True, exclude_max=True)


@st.composite
def block(draw: st.DrawFn, format: str) -> Float32:  # -> [32]
    """A block that the format can hold, of the kinds that go wrong: zeros, outliers, ties, denormals, the largest."""
    limit = OVERFLOW[format]
    kind = draw(st.sampled_from(["any", "sparse", "ties", "denormal", "small", "huge"]))
    if kind == "ties":  # a step of exactly 2^e, and multiples of its half
        x = draw(arrays(np.float32, GROUP, elements=st.integers(-2 * STEPS[format], 2 * STEPS[format])))
        x[draw(st.integers(0, GROUP - 1))] = draw(st.sampled_from([-2, 2])) * STEPS[format]
        return x * np.float32(2.0 ** draw(st.integers(-40, 14)))
    largest = {"any": limit, "sparse": limit, "denormal": 2.0**-120, "small": 2.0**-7, "huge": limit}[kind]
    x = draw(arrays(np.float32, GROUP, elements=magnitudes(float(np.float32(largest))), fill=st.just(0.0)))
    if kind == "sparse":
        x[1:] = 0
        x = np.roll(x, draw(st.integers(0, GROUP - 1)))
    if kind == "huge":
        x[draw(st.integers(0, GROUP - 1))] = np.nextafter(np.float32(limit), np.float32(0))
    return x


def error_bound(x: Float32, format: str) -> AnyArray:  # [32] -> float64 [32]
    """What `encode_q8_0` and `encode_q4_0` promise, in float64."""
    x64 = x.astype(np.float64)
    if format == "q8_0":
        d = float(np.abs(x).max() / np.float32(127))
        return np.full(GROUP, d * (1 / 2 + 2.0**-15) + 127 * max(d * 2.0**-11, 2.0**-25))
    d = float(x[np.abs(x).argmax()] / np.float32(-8))
    beyond = np.maximum(1 / 2, x64 / d - 7) if d else np.zeros(GROUP)
    return abs(d) * (beyond + 2.0**-19) + 8 * max(abs(d) * 2.0**-11, 2.0**-25)


@pytest.mark.parametrize("format", QUANTISED)
def test_blocks_are_those_that_gguf_made(format: str) -> None:
    assert block_bytes(golden_blocks(), format) == GOLDENS[format]


@pytest.mark.parity
@pytest.mark.parametrize("format", QUANTISED)
def test_the_goldens_are_what_gguf_makes_today(format: str) -> None:
    pytest.importorskip("gguf", reason="needs the extra `parity`")
    assert gguf_bytes(golden_blocks(), format) == GOLDENS[format]


@pytest.mark.parity
@pytest.mark.parametrize("format", QUANTISED)
@settings(deadline=None)
@given(data=st.data())
def test_every_block_is_gguf_s_bit_for_bit(format: str, data: st.DataObject) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra `parity`")
    x = data.draw(block(format))
    if np.abs(x).max() < 2.0**-118:  # 1/d overflows: gguf casts infinities to integers, which has no defined result
        x[0] = 2.0**-110
    assert block_bytes(x, format) == gguf_bytes(x, format)
    kind = gguf.GGMLQuantizationType[format.upper()]
    values = gguf.quants.dequantize(gguf.quants.quantize(x[None], kind), kind)
    np.testing.assert_array_equal(quantized_rows(x[None], format).view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("format", QUANTISED)
def test_a_heavy_tailed_matrix_is_what_the_c_code_says(format: str) -> None:
    x = (rng.standard_t(3, (64, 1024)) * 0.01).astype(np.float32)
    codes, scales = encode(x, format)
    expected = [c_block(block, format) for block in x.reshape(-1, GROUP)]
    np.testing.assert_array_equal(codes.reshape(-1, GROUP), [codes for codes, _ in expected])
    np.testing.assert_array_equal(scales.ravel(), [d for _, d in expected])


@pytest.mark.parity
@pytest.mark.parametrize("format", QUANTISED)
def test_a_heavy_tailed_matrix_is_gguf_s_bit_for_bit(format: str) -> None:
    pytest.importorskip("gguf", reason="needs the extra `parity`")
    x = (rng.standard_t(3, (4096, 128)) * 0.01).astype(np.float32)
    assert block_bytes(x, format) == gguf_bytes(x, format)


@pytest.mark.parametrize("format", QUANTISED)
@settings(deadline=None)
@given(data=st.data())
def test_a_block_is_what_the_c_code_says_and_within_its_bound(format: str, data: st.DataObject) -> None:
    x = data.draw(block(format))
    codes, scales = encode(x[None], format)
    expected, d = c_block(x, format)
    np.testing.assert_array_equal(codes[0], expected)
    assert scales[0, 0] == d
    values = decode(codes, scales, format)[0].astype(np.float64)
    np.testing.assert_array_equal(values, (codes[0].astype(np.float64) - ZERO[format]) * float(d))  # not rounded
    error = np.abs(values - x)
    worst = int((error - error_bound(x, format)).argmax())
    assert (error <= error_bound(x, format)).all(), f"value {worst}: {x[worst]!r} in {x!r}"


def test_halves_go_away_from_zero_in_q8_0_and_what_lies_just_below_does_not() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    x = np.zeros((1, GROUP), np.float32)
    x[0, :8] = 127, 0.5, -0.5, 1.5, 2.5, -2.5, below, -below
    codes, scales = encode(x, "q8_0")
    assert scales[0, 0] == 1
    assert (codes[0, :8].astype(int) - 128).tolist() == [127, 1, -1, 2, 3, -3, 0, 0]


def test_q4_0_has_eight_steps_towards_its_largest_value_and_seven_away_from_it() -> None:
    x = np.zeros((1, GROUP), np.float32)
    x[0, :6] = -8, 8, 7.4, 7.6, -7.6, 0.5
    codes, scales = encode(x, "q4_0")
    assert scales[0, 0] == 1
    assert (codes[0, :6].astype(int) - 8).tolist() == [-8, 7, 7, 7, -8, 1]
    codes, scales = encode(-x, "q4_0")  # the scale turns round, the codes stay
    assert scales[0, 0] == -1
    assert (codes[0, :6].astype(int) - 8).tolist() == [-8, 7, 7, 7, -8, 1]


@pytest.mark.parametrize("format", QUANTISED)
def test_values_on_the_grid_come_back_as_they_were(format: str) -> None:
    """Checkpoints trained for a format lie on its grid, and lose nothing: the largest value is a whole number of steps,
    127 or -8, so the scale comes out as it was."""
    once = quantized_rows((rng.standard_normal((64, 256)) * 0.02).astype(np.float32), format)
    np.testing.assert_array_equal(quantized_rows(once, format), once)


@pytest.mark.parametrize("format", QUANTISED)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_magnitude_is_held_and_the_next_one_refused(format: str, sign: int) -> None:
    x = np.ones((2, 64), np.float32)
    x[1, 40] = sign * np.nextafter(np.float32(OVERFLOW[format]), np.float32(0))
    assert np.isfinite(quantized_rows(x, format)).all()
    x[1, 40] = sign * OVERFLOW[format]
    with pytest.raises(WeightsError, match=rf"layers\.3\.mlp\.up_proj\.weight: .* {OVERFLOW[format]}, but {format}"):
        encode(x, format, "layers.3.mlp.up_proj.weight")


@pytest.mark.parametrize("format", QUANTISED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(format: str, value: float) -> None:
    w = np.ones((96, 64), np.float32)
    w[80, 63] = value
    with pytest.raises(WeightsError, match=r"norm me: the largest magnitude is (nan|inf), but .* quantization=None"):
        pack(w, format, name="norm me")


SHAPES = [(0, 32), (16, 32), (48, 96), (64, 32), (80, 768), (16, 1152), (144, 64)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_matrix_unpacks_to_the_values_of_its_rows(format: str, shape: tuple[int, int]) -> None:
    w = (rng.standard_normal(shape) * 0.02).astype(np.float32)
    packed = pack(w, format)
    expected = quantized_rows(w, format)
    np.testing.assert_array_equal(packed.dequantize(), expected)
    start, stop = shape[0] // 32 * 16, shape[0]
    rows = packed.rows(start, stop)
    np.testing.assert_array_equal(rows, expected[start:stop])
    rows += 1  # a copy
    np.testing.assert_array_equal(packed.dequantize(), expected)


@pytest.mark.parametrize("inputs", [1, 3, 33])
def test_float32_takes_any_number_of_inputs(inputs: int) -> None:
    w = rng.standard_normal((32, inputs), dtype=np.float32)
    np.testing.assert_array_equal(pack(w, "f32").dequantize(), w)


def positions(shape: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Every row and input, with the row's panel and lane."""
    for o in range(shape[0]):
        for i in range(shape[1]):
            yield o, i, o // 16, o % 16


def test_each_code_lies_where_the_layout_says() -> None:
    """Byte by byte, counted by hand from the start of the buffer: what a kernel's pointers will do."""
    shape = (32, 64)
    w = rng.standard_normal(shape, dtype=np.float32)
    f32 = pack(w, "f32").codes.ravel()
    q8, (codes8, scales8) = pack(w, "q8_0"), encode(w, "q8_0")
    q4, (codes4, scales4) = pack(w, "q4_0"), encode(w, "q4_0")
    bytes8, bytes4 = q8.codes.ravel(), q4.codes.ravel()
    for o, i, panel, lane in positions(shape):
        assert f32[panel * 64 * 16 + i * 16 + lane] == w[o, i]
        assert bytes8[panel * 1024 + i // 4 * 64 + lane * 4 + i % 4] == codes8[o, i]  # 16 rows * 64 inputs a panel
        byte = bytes4[panel * 512 + i // 32 * 256 + i // 4 % 4 * 64 + lane * 4 + i % 4]  # two codes in each
        assert (byte & 15 if i // 4 % 8 < 4 else byte >> 4) == codes4[o, i]
        for packed, scales in ((q8, scales8), (q4, scales4)):
            assert packed.scales is not None
            assert packed.scales.ravel()[panel * 32 + i // 32 * 16 + lane] == scales[o, i // 32]


@pytest.mark.parametrize("format", FORMATS)
def test_two_matrices_may_take_turns_in_one_buffer(format: str) -> None:
    """As gate and up do: panel by panel, each in its own half of the buffer's second axis."""
    gate, up = rng.standard_normal((2, 80, 64), dtype=np.float32)
    both = Packed.empty((160, 64), format)
    halves = []
    for i, w in enumerate((gate, up)):
        scales = None if both.scales is None else both.scales[i::2]
        out = Packed(format, (80, 64), both.codes[i::2], scales)
        assert pack(w, format, out) is out
        halves.append(out)
    for out, w in zip(halves, (gate, up), strict=True):
        np.testing.assert_array_equal(out.dequantize(), quantized_rows(w, format))
    turns = np.stack([gate.reshape(5, 16, 64), up.reshape(5, 16, 64)], axis=1).reshape(160, 64)
    np.testing.assert_array_equal(both.codes, pack(turns, format).codes)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_that_are_not_contiguous_are_packed_all_the_same(format: str) -> None:
    w = rng.standard_normal((64, 96), dtype=np.float32)
    np.testing.assert_array_equal(pack(w.T, format).codes, pack(w.T.copy(), format).codes)


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_start_at_a_multiple_of_64_bytes(format: str) -> None:
    for rows in range(16, 160, 16):
        packed = Packed.empty((rows, 96), format)
        assert packed.codes.ctypes.data % 64 == 0
        assert packed.scales is None or packed.scales.ctypes.data % 64 == 0
    for size in range(1, 100):
        array = aligned_empty((size, 3), np.float16)
        assert (array.ctypes.data % 64, array.shape, array.dtype) == (0, (size, 3), np.float16)


def test_the_size_is_codes_and_scales() -> None:
    w = np.zeros((768, 768), np.float32)
    assert [pack(w, format).nbytes * 8 / w.size for format in FORMATS] == [32, 8.5, 4.5]


@pytest.mark.parametrize(
    ("shape", "format", "block"),
    [
        ((8, 32), "f32", 1),
        ((24, 32), "q8_0", 32),
        ((16, 48), "q8_0", 32),
        ((16, 16), "q4_0", 32),
        ((1, 32), "q4_0", 32),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(shape: tuple[int, int], format: str, block: int) -> None:
    message = (
        rf"up_proj has shape \({shape[0]}, {shape[1]}\); {format} needs two axes, multiples of 16 and of {block}\."
    )
    with pytest.raises(InputError, match=message):
        pack(np.zeros(shape, np.float32), format, name="up_proj")


def test_rows_of_an_embedding_table_need_only_whole_blocks() -> None:
    assert quantized_rows(np.ones((3, 64), np.float32), "q8_0").shape == (3, 64)
    with pytest.raises(InputError, match=r"embed_tokens has shape \(3, 40\); q4_0 needs .* multiples of 1 and of 32"):
        quantized_rows(np.ones((3, 40), np.float32), "q4_0", "embed_tokens")
    rows = np.ones((3, 40), np.float32)
    assert quantized_rows(rows, "f32") is rows


def test_unknown_formats_are_refused() -> None:
    w = np.ones((16, 32), np.float32)
    for call in (lambda: pack(w, "q5_0"), lambda: encode(w, "int8"), lambda: Packed.empty((16, 32), "")):
        with pytest.raises(InputError, match="is not known; expected f32, q8_0, q4_0"):
            call()


def test_arrays_of_another_layout_are_our_own_mistake() -> None:
    w = np.ones((32, 64), np.float32)
    q8 = pack(w, "q8_0")
    for wrong in (
        lambda: Packed("q4_0", (32, 64), q8.codes, q8.scales),
        lambda: Packed("q8_0", (32, 64), q8.codes, None),
        lambda: pack(w, "q8_0", Packed.empty((16, 64), "q8_0")),
        lambda: pack(w, "q4_0", q8),
        lambda: pack(w.astype(np.float64), "q8_0"),
        lambda: q8.rows(8, 16),
        lambda: q8.rows(0, 48),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_each_matrix_of_a_model_has_its_format(small: object) -> None:
    names = [name for name, shape in trunk_shapes(read_config(small)).items() if len(shape) == 2]
    names.append("2_Dense/linear.weight")
    for name in names:
        assert format_of(None, name) == "f32"
        assert (format_of("q8_0", name), format_of("q4_0", name)) == ("q8_0", "q4_0")
        assert format_of("mixed", name) == ("q8_0" if "self_attn" in name else "q4_0"), name
    assert sum(format_of("mixed", name) == "q8_0" for name in names) == 6 * 4  # q, k, v and o of six layers


@pytest.mark.parametrize("quantization", ["int8", "Q8_0", "", "f32"])
def test_unknown_quantizations_are_refused_with_the_choices(quantization: str) -> None:
    with pytest.raises(InputError, match=f"'{quantization}' is not known; expected None, q8_0, q4_0, mixed"):
        format_of(quantization, "layers.0.mlp.up_proj.weight")


if __name__ == "__main__":
    for each in QUANTISED:
        print(each, *gguf_bytes(golden_blocks(), each), sep="\n")
