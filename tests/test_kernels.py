"""Every kernel, in every column that this machine can run, against its meaning in kernels/reference.py.

Whole numbers are equal. Floats stay within bounds that are derived here: U is the relative error of one float32
operation, and `fma` counts as two of them, because some machines round in between. `Kernels.room` puts bytes around
each array, and a call that changes them fails.

With NUMBA_DISABLE_JIT=1 the same tests run the plain kernels as Python, on smaller shapes, see test_emulated.py; with
GEMMA_NP_TEST_ARM=OBJECT those of Arm under qemu, see test_arm.py.
"""

import math
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exported
import numpy as np
import pytest
from exported import Kernels, Record
from gemma_np.kernels import reference
from gemma_np.kernels.choice import lacking
from gemma_np.kernels.columns import BY_NAME, COLUMNS
from gemma_np.kernels.plan import ENCODE, FORMATS, FORWARD, MATRIX, PLAN, UNPACKED

from gemma_np.arrays import AnyArray
from gemma_np.weights.packed import Packed, pack

EMULATED = os.environ.get("NUMBA_DISABLE_JIT") == "1"
ARM = os.environ.get("GEMMA_NP_TEST_ARM")
HERE = ["python"] if EMULATED else ["neon"] if ARM else [column.name for column in COLUMNS if not lacking(column)]
U = 2.0**-24  # half a unit in the last place, relative
TINY = 2.0**-148  # what a result in the denormal range may lose on top
NOTHING = math.exp(-87)  # what exp gives as 0, at most: 1.6e-38
SIZES = (32, 96, 160) if EMULATED else (32, 64, 96, 160, 768, 1152)  # of rows: multiples of 32, not all of 64
QUANTISED = FORMATS[1:]
MAX_TILE = 16  # rows, at most


@pytest.fixture(scope="session")
def objects() -> dict[str, Any]:
    """Compilers of all columns at once, each in its process."""
    return {} if EMULATED or ARM else {name: exported.start(BY_NAME[name]) for name in HERE}


@pytest.fixture(scope="session", params=HERE)
def kernels(
    request: pytest.FixtureRequest, objects: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Kernels:
    if EMULATED:
        return Kernels(None)
    if ARM:
        from qemu import ArmKernels

        return ArmKernels(Path(ARM), tmp_path_factory.mktemp("arm"))
    return Kernels(BY_NAME[request.param], exported.finished(objects[request.param]))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def close(found: AnyArray, expected: AnyArray, bound: Any, what: object = "") -> None:
    """|found - expected| <= bound, everywhere; else the worst element."""
    error, allowed = np.abs(found - expected), np.broadcast_to(bound, np.shape(expected))
    wrong = ~(error <= allowed)
    if wrong.any():
        i = np.unravel_index((np.where(wrong, error, 0) / np.maximum(allowed, 1e-300)).argmax(), error.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} wrong; element {[int(j) for j in i]} is {found[i]!r} "
            f"for {expected[i]!r}, off by {error[i]:.2e}, allowed {allowed[i]:.2e}"
        )


def rows(n: int, rng: np.random.Generator) -> Iterator[tuple[str, AnyArray]]:
    """Rows of n float32 of the kinds that go wrong."""
    normal = rng.standard_normal(n, dtype=np.float32)
    yield "normal", normal
    yield "zeros", np.zeros(n, np.float32)
    outlier = normal.copy()
    outlier[n // 2] = 75_936  # as in the real model's residual
    yield "one outlier", outlier
    yield "equal", np.where(np.arange(n) % 3, np.float32(-5), np.float32(5))
    yield "denormal", normal * np.float32(1e-39)
    yield "small", normal * np.float32(1e-20)
    yield "huge", normal * np.float32(1e16)
    mixed = normal.reshape(-1, 32) * np.float32(10) ** (np.arange(n // 32) * 5 % 17 - 8).astype(np.float32)[:, None]
    yield "a scale for each group", mixed.reshape(-1)


# ---- the objects

C_LIBRARY = {"usleep", "memset", "memcpy", "memmove"}
MATHS = {"sqrtf", "fabsf", "fmaf", "expf"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects")
def test_objects_ask_for_nothing_but_the_c_library(kernels: Kernels) -> None:
    """That lets them run without Numba. All kernels and the forward pass of all formats are in one object; that of a
    single format is a part of it."""
    if EMULATED:
        return
    code = kernels.code
    assert exported.undefined(code) <= C_LIBRARY | MATHS
    assert "usleep" in exported.undefined(code), "else the symbols were not read"
    for name in (*exported.EXPORTED, FORWARD, ENCODE, "PyErr_Format"):
        assert (name.encode() in code) == (name != "PyErr_Format"), name


@pytest.mark.skipif(platform.machine() not in BY_NAME["avx2"].machine, reason="reads x86-64 code")
def test_functions_begin_their_stack_at_a_cache_line(kernels: Kernels) -> None:
    """Else spilled vectors lie across two, or do not, by the thread that calls. The code is `and rsp, -64`."""
    if not EMULATED and not ARM:
        assert kernels.code.count(b"\x48\x83\xe4\xc0") >= 3


# ---- functions of vectors


def ulps(found: AnyArray, expected: AnyArray) -> AnyArray:
    """Distances in units in the last place of the expected float32."""
    return np.abs(found - expected) / np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)


def swept(kernel: Any, kernels: Kernels, x: AnyArray) -> AnyArray:
    """A function of vectors over an array of any length."""
    padded = kernels.room(-(-len(x) // 16) * 16, fill=0)
    padded[: len(x)] = x
    out = kernels.room(len(padded))
    kernel(padded, len(padded), out)
    return out[: len(x)]


def test_exp_is_within_two_units_in_the_last_place(kernels: Kernels) -> None:
    """A polynomial's error of at most one unit, and the roundings of r (which is below 0.35), p and their sum."""
    x = np.linspace(-87, 88, 4_000 if EMULATED else 4_000_000, dtype=np.float32)
    near_zero = np.geomspace(1e-30, 1, 1000, dtype=np.float32)
    x = np.concatenate([x, near_zero, -near_zero])
    found = swept(kernels.exp_row, kernels, x)
    error = ulps(found, reference.exp(x))
    print(f"{kernels.name}: exp is off by {error.max():.2f} units in the last place at most")
    assert error.max() <= 2, f"exp({x[error.argmax()]!r}) is off by {error.max():.2f} units"


def test_exp_at_its_edges(kernels: Kernels) -> None:
    """Exactly 0 below -87, e^88 from 88 on, NaN for NaN; never a denormal."""
    edge, top = np.float32(-87), np.float32(88)
    x = np.array(
        [edge, np.nextafter(edge, -np.float32(100)), -88, -1e30, -np.inf, 0, -0.0, top, 89, 1e30, np.inf, np.nan]
    )
    found = swept(kernels.exp_row, kernels, x.astype(np.float32))
    expected = reference.exp(x.astype(np.float32))
    assert found[1:5].tolist() == [0, 0, 0, 0]
    assert found[5:7].tolist() == [1, 1]
    assert np.isnan(found[-1])
    close(found[:-1], expected[:-1], 4 * U * expected[:-1])


def gelu_bound(x: AnyArray) -> AnyArray:
    """How far gelu_tanh may be off: x / (1 + e^m), where m has 6 roundings, so that e^m is off by 6 U |m|, and by 4 U
    of exp's own; only its share of the sum counts. Two operations follow. Above e^88 the sum stays as it is."""
    x64 = x.astype(np.float64)
    with np.errstate(over="ignore"):
        m = np.clip(-2 * math.sqrt(2 / math.pi) * (x64 + 0.044715 * x64**3), -700, 88)
    share = 1 / (1 + np.exp(-m))
    with np.errstate(invalid="ignore"):
        bound = (
            np.abs(x64) / (1 + np.exp(m)) * U * (share * (6 * np.abs(m) + 4) + 3) + np.abs(x64) * math.exp(-88) + TINY
        )
    return np.asarray(bound)


def test_gelu(kernels: Kernels) -> None:
    x = np.linspace(-12, 12, 1_000 if EMULATED else 200_000, dtype=np.float32)
    x = np.concatenate([x, np.float32([0, 1e-40, -1e-40, 1e-20, 50, -50, 1e4, -1e4, 1e18, -1e18])])
    found = swept(kernels.gelu_row, kernels, x)
    close(found, reference.gelu_tanh(x), gelu_bound(x), kernels.name)
    assert np.isnan(swept(kernels.gelu_row, kernels, np.float32([np.nan]))).all()


def test_every_float16_is_read_as_it_is(kernels: Kernels) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)][:: 63 if EMULATED else 1]
    x, out = kernels.room(len(halves), np.float16), kernels.room(len(halves))
    x[:] = halves
    kernels.half_row(x, len(x), out)
    np.testing.assert_array_equal(out.view(np.uint32), halves.astype(np.float32).view(np.uint32))


# ---- rows


def norm_error(n: int) -> float:
    """The relative error of inverse_rms: n / 64 + 6 products and sums, the mean and eps, of which the root halves the
    error; a root and a quotient follow."""
    return (2 * (n / 64 + 8) / 2 + 2) * U


def test_inverse_rms(kernels: Kernels, rng: np.random.Generator) -> None:
    for n in SIZES:
        for kind, x in rows(n, rng):
            out = kernels.room(1)
            kernels.inverse_rms_of(x, n, 1e-6, out)
            expected = reference.inverse_rms(x, 1e-6)
            close(out, expected, norm_error(n) * expected, f"{n} {kind}")


def rounded(kernels: Kernels, x: AnyArray) -> AnyArray:
    out = kernels.room(len(x) // 32, reference.ROUNDED)
    kernels.put_row(x, len(x), out, 1)
    return out


def test_rounding_is_exact(kernels: Kernels, rng: np.random.Generator) -> None:
    cases = [case for n in SIZES for case in rows(n, rng)]
    ties = np.append(np.arange(31) - 15.5, 127).astype(np.float32)  # a scale of exactly 1
    most = np.append(np.zeros(31), 3.4e38).astype(np.float32)
    cases += [("ties", ties), ("the largest float", most), ("below 1e-30", ties * np.float32(1e-33))]
    for kind, x in cases:
        found, expected = rounded(kernels, x), reference.put_row(x)
        for field in reference.ROUNDED.names or ():
            np.testing.assert_array_equal(found[field], expected[field], f"{len(x)} {kind}: {field}")


def test_rows_that_stay_float32_are_copied(kernels: Kernels, rng: np.random.Generator) -> None:
    for n in SIZES:
        for _, x in rows(n, rng):
            out = kernels.room(n)
            kernels.put_row(x, n, out, 0)
            np.testing.assert_array_equal(out, x)


def test_norm_row_and_its_rounding(kernels: Kernels, rng: np.random.Generator) -> None:
    """Two products follow inverse_rms. Rounded output is put_row's of the float32 one, bit for bit."""
    for n in SIZES:
        weight = rng.standard_normal(n, dtype=np.float32) * np.float32(30)
        for kind, x in rows(n, rng):
            out = kernels.room(n)
            kernels.norm_row(x, n, weight, 1e-6, out, 0)
            expected = reference.norm_row(x, weight, 1e-6)
            close(out, expected, (norm_error(n) + 2 * U) * np.abs(expected) + TINY, f"{n} {kind}")
            codes = kernels.room(n // 32, reference.ROUNDED)
            kernels.norm_row(x, n, weight, 1e-6, codes, 1)
            np.testing.assert_array_equal(codes, reference.put_row(out), f"{n} {kind}")


def test_epsilon_counts_where_the_mean_square_is_as_small(kernels: Kernels) -> None:
    """Late layers' outputs are 0.002: eps = 1e-6 carries a good part."""
    x, weight, out = np.full(64, 1e-3, np.float32), np.ones(64, np.float32), kernels.room(64)
    for eps in (1e-6, 1e-3):
        kernels.norm_row(x, 64, weight, eps, out, 0)
        expected = np.full(64, 1e-3 / math.sqrt(1e-6 + eps))
        close(out, expected, (norm_error(64) + 2 * U) * expected, eps)


def test_add_norm_row(kernels: Kernels, rng: np.random.Generator) -> None:
    for n in SIZES:
        weight, before = rng.standard_normal((2, n), dtype=np.float32)
        for kind, h in rows(n, rng):
            x = kernels.room(n, fill=before)
            kernels.add_norm_row(x, h, n, weight, 1e-6)
            expected = reference.add_norm_row(before, h, weight, 1e-6)
            normed = np.abs(expected - before)
            bound = (norm_error(n) + 2 * U) * normed + U * np.abs(expected) + TINY
            close(x, expected, bound * (1 + n * U), f"{n} {kind}")  # errors of errors


def test_norm_and_rope(kernels: Kernels, rng: np.random.Generator) -> None:
    """The norm, two products and their difference, and the scale: of the size of |a cos| + |b sin|."""
    for n in SIZES:
        if n % 32:
            continue
        weight = rng.standard_normal(n, dtype=np.float32)
        angle = rng.uniform(-100, 100, n // 2)
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        for kind, x in rows(n, rng):
            for scale in (1.0, 0.0625, 0.7):
                out = kernels.room(n)
                kernels.norm_rotate(x, n, weight, 1e-6, cos, sin, scale, out)
                expected = reference.norm_rotate(x, weight, 1e-6, cos, sin, scale)
                plain = np.abs(reference.norm_row(x, weight, 1e-6))
                size = np.tile(plain[: n // 2] * np.abs(cos) + plain[n // 2 :] * np.abs(sin), 2)
                other = np.tile(plain[n // 2 :] * np.abs(cos) + plain[: n // 2] * np.abs(sin), 2)
                bound = (norm_error(n) + 5 * U) * np.maximum(size, other) * scale + 4 * TINY
                close(out, expected, bound, f"{n} {kind}")


def test_geglu_row_and_its_rounding(kernels: Kernels, rng: np.random.Generator) -> None:
    """One product follows gelu."""
    for kind, gate_up in rows(64, rng):
        gate_up[:16] = np.clip(gate_up[:16], -1e6, 1e6)
        gate_up[32:48] = np.clip(gate_up[32:48], -1e6, 1e6)
        out = kernels.room((3, 32), fill=7)
        kernels.geglu_row(gate_up, out, 1, 0)
        expected = reference.geglu_row(gate_up)
        gate, up = gate_up.reshape(2, 2, 16).transpose(1, 0, 2).reshape(2, 32)
        close(out[1], expected, gelu_bound(gate) * np.abs(up) * (1 + U) + U * np.abs(expected) + TINY, kind)
        assert (out[::2] == 7).all()  # group 1 alone is written
        codes = kernels.room(3, reference.ROUNDED)
        kernels.geglu_row(gate_up, codes, 2, 1)
        np.testing.assert_array_equal(codes[2], reference.put_row(out[1])[0], kind)


# ---- tiles


def sum_bound(terms: int, size: AnyArray) -> AnyArray:
    """A sum of products, added one after the other: each is rounded, and so is each sum; `size` is the sum of all
    magnitudes."""
    bound: AnyArray = (terms + 2) * U * size + (terms + 1) * TINY
    return bound


@pytest.mark.parametrize("resume", [False, True], ids=["from nothing", "onto sums"])
@pytest.mark.parametrize("depth", [1, 2, 7, 32, 100] if EMULATED else [1, 2, 7, 32, 100, 384, 1000])
@pytest.mark.parametrize("packing", ["panels", "keys"])
def test_tile_of_floats(kernels: Kernels, rng: np.random.Generator, packing: str, depth: int, resume: bool) -> None:
    """Weights as products have them, and as attention has its keys; the rows of `a` and `out` lie apart."""
    R, wide = kernels.floats
    for kind, scale in (("normal", 1), ("denormal", 1e-20), ("huge", 1e15), ("zeros", 0)):
        w = rng.standard_normal((depth, wide), dtype=np.float32) * np.float32(scale)
        if packing == "panels":
            across, down = 64 * depth, 64
            panels = kernels.room((wide // 16, depth, 16))
            panels[...] = w.reshape(depth, wide // 16, 16).transpose(1, 0, 2)
        else:
            across, down = 64, 128
            panels = kernels.room((depth, 32), fill=np.nan)
            panels[:, :wide] = w
        a = kernels.room((R, depth + 5), fill=np.nan)
        a[:, :depth] = rng.standard_normal((R, depth), dtype=np.float32) * np.float32(scale)
        before = rng.standard_normal((R, wide + 16), dtype=np.float32)
        out, factors = kernels.room((R, wide + 16), fill=before), rng.standard_normal(R, dtype=np.float32)
        if not resume:
            out[:, :wide] = np.nan  # not read
        kernels.tile_f32(a, a.strides[0], panels, across, down, depth, out, out.strides[0], factors if resume else 0)
        start = (before[:, :wide], factors) if resume else (None, None)
        expected = reference.tile_floats(a[:, :depth], w, *start)
        size = np.abs(a[:, :depth]).astype(np.float64) @ np.abs(w)
        if resume:
            size += np.abs(before[:, :wide] * factors[:, None])
        close(out[:, :wide], expected, sum_bound(2 * depth, size), f"{depth} {kind}")
        np.testing.assert_array_equal(out[:, wide:], before[:, wide:], "the tile wrote beside its columns")


def test_tile_of_floats_adds_whole_numbers_exactly(kernels: Kernels, rng: np.random.Generator) -> None:
    R, wide = kernels.floats
    depth = 40
    a = rng.integers(-99, 100, (R, depth)).astype(np.float32)
    w = rng.integers(-99, 100, (wide // 16, depth, 16)).astype(np.float32)
    out = kernels.room((R, wide))
    kernels.tile_f32(a, 4 * depth, w, 64 * depth, 64, depth, out, 4 * wide, 0)
    np.testing.assert_array_equal(out, reference.tile_floats(a, w.transpose(1, 0, 2).reshape(depth, wide)))


CODES = ["random", "all the lowest", "all the highest", "alternating", "zero"]
ACTIVATIONS = ["random", "all 127", "all -127", "alternating", "zeros"]


def extreme(kind: str, shape: Any, low: int, high: int, rng: np.random.Generator) -> AnyArray:
    """Codes between two ends, of a kind of CODES or ACTIVATIONS."""
    if kind == "random":
        return rng.integers(low, high + 1, shape)
    if kind == "alternating":
        return np.where(np.arange(np.prod(shape)) % 2, low, high).reshape(shape)
    return np.full(
        shape, {"all 127": high, "all the highest": high, "zero": (low + high + 1) // 2, "zeros": 0}.get(kind, low)
    )


def packed_codes(format: str, outputs: int, inputs: int, kind: str, rng: np.random.Generator) -> Packed:
    """A matrix of the codes themselves, extreme ones, which rounding would never give, included; scales of 1."""
    packed = Packed.empty((outputs, inputs), format)
    highest = 255 if format == "q8_0" else 15
    codes = extreme(kind, packed.codes.shape, 0, highest, rng)
    if format == "q4_0":
        codes = codes | extreme(kind, packed.codes.shape, 0, highest, rng) << 4
    packed.codes[...] = codes
    assert packed.scales is not None
    packed.scales[...] = 1
    return packed


def activations(kernels: Kernels, R: int, groups: int, kind: str, rng: np.random.Generator) -> AnyArray:
    """Rounded activations, with scales of 1."""
    a = kernels.room((R, groups), reference.ROUNDED)
    a["codes"] = extreme(kind, (R, groups, 32), -127, 127, rng)
    a["scale"] = 1
    a["excess"] = np.where(rng.integers(4, size=(R, groups, 1)) == np.arange(4), a["codes"][..., :1], 0)
    a["offset"] = 64 * rng.integers(8, size=(R, groups))
    a["start"] = -reference.numbers_of(a).sum(axis=-1)
    return a


def run_tiles(kernels: Kernels, packed: Packed, a: AnyArray) -> AnyArray:
    """Both tiles of a format, and the one that unpacks, which goes ahead; what they have in common is the same."""
    R, wide = kernels.tile
    groups, results, codes, scales = a.shape[1], [], packed.codes, packed.scales
    assert scales is not None
    unpacked = kernels.room((wide // 16, groups, 512), np.uint8) if packed.format == "q4_0" else codes
    names = ["few_q8_0", "tile_q8_0"] if packed.format == "q8_0" else ["first_q4_0", "few_q4_0", "tile_q4_0"]
    for name in names:
        rows = R if name.startswith("tile") else kernels.few
        out = kernels.room((rows, wide + 16), fill=7)
        w, source = (unpacked, codes if name.startswith("first") else 0) if packed.format == "q4_0" else (codes, 0)
        getattr(kernels, name)(
            a, a.strides[0], w, 512 * groups, scales, scales.strides[0], groups, out, out.strides[0], codes, source
        )
        assert (out[:, wide:] == 7).all(), f"{name} wrote beside its columns"
        results.append(out[:, :wide])
    for result in results[:-1]:
        np.testing.assert_array_equal(result, results[-1][: kernels.few])
    return results[-1]


def meaning(packed: Packed, a: AnyArray) -> AnyArray:
    """The reference of a product with a packed matrix."""
    assert packed.scales is not None
    steps = packed.scales.transpose(0, 2, 1).reshape(packed.shape[0], -1)
    return reference.tile_bytes(a, reference.whole_numbers(packed.codes, packed.format), steps)


def product_sizes(packed: Packed, a: AnyArray) -> AnyArray:
    """The magnitude of each group's whole number, [R, outputs, groups]."""
    w = reference.whole_numbers(packed.codes, packed.format)
    return np.abs(np.einsum("rgi,ogi->rog", reference.numbers_of(a), w))


@pytest.mark.parametrize("groups", [1, 2, 3] if EMULATED else [1, 2, 3, 24, 36])
@pytest.mark.parametrize("format", QUANTISED)
def test_tiles_of_bytes_add_whole_numbers_exactly(
    kernels: Kernels, rng: np.random.Generator, format: str, groups: int
) -> None:
    """All scales are 1, so every sum is a whole number, in most cases below 2^24: no instruction may saturate."""
    for weights in CODES:
        packed = packed_codes(format, kernels.tile[1], 32 * groups, weights, rng)
        for kind in ACTIVATIONS:
            a = activations(kernels, kernels.tile[0], groups, kind, rng)
            expected = meaning(packed, a)
            if product_sizes(packed, a).sum(axis=-1).max() < 2**24:
                np.testing.assert_array_equal(run_tiles(kernels, packed, a), expected, f"{weights}, {kind}")


SCALES = {"one": (1, 1), "many": (None, None), "denormal": (2.0**-24, 1e-41), "huge": (65504, 1e26), "zero": (0, 0)}


@pytest.mark.parametrize("groups", [1, 3] if EMULATED else [1, 2, 24, 36])
@pytest.mark.parametrize("format", QUANTISED)
def test_tiles_of_bytes_with_scales(kernels: Kernels, rng: np.random.Generator, format: str, groups: int) -> None:
    """For each group the product of both scales is rounded, and one product and sum: groups + 2 terms of sum_bound. A
    product of scales in the denormal range loses TINY, times the whole number."""
    for kind, (step, scale) in SCALES.items():
        packed = packed_codes(format, kernels.tile[1], 32 * groups, "random", rng)
        a = activations(kernels, kernels.tile[0], groups, "random", rng)
        assert packed.scales is not None
        shape = packed.scales.shape
        packed.scales[...] = rng.uniform(-2, 2, shape) * 2.0 ** rng.integers(-20, 10, shape) if step is None else step
        if kind != "zero":
            packed.scales[...] *= np.where(rng.random(shape) < 0.5, -1, 1).astype(np.float16)  # q4_0 has such
        a["scale"] = rng.uniform(0, 2, a.shape) * 10.0 ** rng.integers(-6, 6, a.shape) if scale is None else scale
        found, expected = run_tiles(kernels, packed, a), meaning(packed, a)
        steps = np.abs(packed.scales.transpose(0, 2, 1).reshape(packed.shape[0], -1).astype(np.float64))
        products = product_sizes(packed, a)
        size = (products * (a["scale"].astype(np.float64)[:, None] * steps)).sum(axis=-1)
        close(found, expected, sum_bound(2 * groups + 2, size) + products.sum(axis=-1) * TINY, f"{groups} {kind}")


def test_whole_numbers_are_the_values_of_a_packed_matrix(rng: np.random.Generator) -> None:
    """reference.py reads codes by itself; quantize.py must agree."""
    for format in QUANTISED:
        packed = packed_codes(format, 48, 96, "random", rng)
        np.testing.assert_array_equal(
            reference.whole_numbers(packed.codes, format).reshape(48, 96), packed.dequantize()
        )


# ---- products


def matrix(packed: Packed) -> Record:
    return Record(
        MATRIX,
        format=FORMATS.index(packed.format),
        codes=packed.codes,
        scales=0 if packed.scales is None else packed.scales,
        outputs=packed.shape[0],
        inputs=packed.shape[1],
        rounded=int(packed.format != "f32"),
    )


def together(threads: int, kernel: Any, *arguments: Any) -> None:
    """Call a kernel by several threads at once."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            kernel(*arguments)
        except BaseException as error:
            failed.append(error)

    others = [threading.Thread(target=run) for _ in range(threads)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]


def touched(kernels: Kernels, R: int, format: str) -> int:
    """Rows that a product may read and write: tiles are computed whole."""
    tile = kernels.floats[0]
    return -(-R // tile) * tile if format == "f32" else R + kernels.few - 1


def inputs(kernels: Kernels, R: int, deep: int, format: str, rng: np.random.Generator) -> AnyArray:
    """Activations as a product with a format's matrix reads them, and NaN in the rows that complete a tile."""
    rows = touched(kernels, R, format)
    x = rng.standard_normal((R, deep), dtype=np.float32) * rng.lognormal(0, 2, deep).astype(np.float32)
    if format == "f32":
        a = kernels.room((rows, deep), fill=np.nan)
        a[:R] = x
    else:
        a = kernels.room((rows, deep // 32), reference.ROUNDED)
        a.view(np.uint8)[...] = 0
        a["codes"], a["scale"] = 127, np.nan
        a[:R] = reference.put_row(x)
    return a


def expected_product(packed: Packed, a: AnyArray) -> tuple[AnyArray, AnyArray]:
    """The product's reference and its bound."""
    deep = packed.shape[1]
    if packed.format == "f32":
        w = packed.dequantize()
        return reference.product(a, w), sum_bound(2 * deep, np.abs(a).astype(np.float64) @ np.abs(w.T))
    assert packed.scales is not None
    absolute = np.abs(packed.dequantize()).astype(np.float64)
    size = (np.abs(reference.numbers_of(a)) * a["scale"].astype(np.float64)[..., None]).reshape(len(a), -1) @ absolute.T
    return meaning(packed, a), sum_bound(2 * deep // 32 + 2, size)


SHAPES = [(1, 32, 64), (3, 64, 128)] if EMULATED else [
    (1, 32, 64),
    (2, 64, 64),
    (5, 96, 128),
    (33, 160, 192),
    (255, 64, 128),
    (256, 64, 64),
    (259, 416, 128),  # more inputs than a float32 product takes at a time
    (7, 1152, 768),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_product(kernels: Kernels, rng: np.random.Generator, format: str, shape: tuple[int, int, int]) -> None:
    """By one thread and by many, and each row alone: the same bits."""
    R, deep, wide = shape
    packed = pack((rng.standard_t(3, (wide, deep)) * 0.05).astype(np.float32), format)
    a, ones = inputs(kernels, R, deep, format, rng), np.ones(MAX_TILE, np.float32)

    def run(first: int, R: int, threads: int) -> AnyArray:
        out = kernels.room((touched(kernels, R, format), wide))
        shared = kernels.room(32, np.int64, fill=0)
        part = kernels.room((len(out), *a.shape[1:]), a.dtype)
        part[...] = a[first : first + 1]
        part[:R] = a[first : first + R]

        def one() -> None:
            scratch = kernels.room(UNPACKED * deep, np.uint8)
            kernels.product(shared, threads, part, R, matrix(packed), out, scratch, ones)

        together(threads, one)
        return out[:R]

    found = run(0, R, 1)
    expected, bound = expected_product(packed, a[:R])
    close(found, expected, bound, format)
    if not EMULATED:
        np.testing.assert_array_equal(run(0, R, 3), found, "three threads")
        np.testing.assert_array_equal(run(0, R, 5), found, "five threads")
    for row in {0, R // 2, R - 1}:
        np.testing.assert_array_equal(run(row, 1, 1)[0], found[row], f"row {row} alone")


@pytest.mark.parametrize(
    "shape", [(1, 32, 32), (2, 32, 64)] if EMULATED else [(1, 32, 32), (5, 64, 96), (258, 128, 64)]
)
@pytest.mark.parametrize("format", FORMATS)
def test_gelu_product(kernels: Kernels, rng: np.random.Generator, format: str, shape: tuple[int, int, int]) -> None:
    """gelu's slope is below 1.13, so errors of both products go through; then one product. Rounded output is put_row's
    of the float32 one, bit for bit; one thread and three."""
    R, deep, F = shape
    gate, up = (rng.standard_normal((2, F, deep)) * 0.1).astype(np.float32)
    turns = np.stack([gate.reshape(-1, 16, deep), up.reshape(-1, 16, deep)], axis=1).reshape(2 * F, deep)
    packed, a = pack(turns, format), inputs(kernels, R, deep, format, rng)

    def run(rounded: int, threads: int) -> AnyArray:
        shared, ones = kernels.room(32, np.int64, fill=0), np.ones(MAX_TILE, np.float32)
        out = kernels.room((R, F // 32), reference.ROUNDED) if rounded else kernels.room((R, F))

        def one() -> None:
            scratch = kernels.room(UNPACKED * deep + 4 * (256 + MAX_TILE) * 64, np.uint8)
            kernels.geglu_product(shared, threads, a, R, matrix(packed), out, rounded, scratch, ones)

        together(threads, one)
        return out

    both, bound = (array.reshape(R, F // 16, 2, 16) for array in expected_product(packed, a[:R]))
    g, u = (both[:, :, i].reshape(R, F) for i in (0, 1))
    dg, du = (bound[:, :, i].reshape(R, F) for i in (0, 1))
    expected = reference.geglu_product(g, u)
    allowed = (
        (1.13 * dg + gelu_bound(g)) * (np.abs(u) + du) + np.abs(reference.gelu_tanh(g)) * du + 2 * U * np.abs(expected)
    )
    found = run(0, 1)
    close(found, expected, allowed + TINY, format)
    np.testing.assert_array_equal(run(1, 1), reference.put_row(found))
    if not EMULATED:
        np.testing.assert_array_equal(run(0, 3), found, "three threads")


# ---- attention


def test_mask_row(kernels: Kernels, rng: np.random.Generator) -> None:
    for first, last in [(0, 63), (0, 0), (63, 63), (17, 16), (-500, 500), (5, 40), (-3, 15), (64, 99), (-9, -1)]:
        before = rng.standard_normal(64, dtype=np.float32)
        scores = kernels.room(64, fill=before)
        kernels.mask_row(scores, first, last)
        np.testing.assert_array_equal(scores, reference.mask_row(before, first, last), f"{first}..{last}")


def test_softmax_step(kernels: Kernels, rng: np.random.Generator) -> None:
    """score - maximum is off by U of itself, and so is e^ of it, relatively; exp's own 4 U, and for the total 8 sums, a
    product and one sum more. Below -87 exp is 0: NOTHING is lost."""
    cases = [
        (rng.standard_normal(64, dtype=np.float32) * np.float32(scale), m)
        for scale in (0, 1, 30, 1e4)
        for m in (-1e30, 0, 50)
    ]
    cases.append((np.full(64, -1e30, np.float32), -1e30))  # a row with no key so far: forgotten at the first real score
    for before, maximum in ((before, float(np.float32(maximum))) for before, maximum in cases):
        scores, state = kernels.room(64, fill=before), kernels.room((3, 16), fill=[[maximum], [2.5], [np.nan]])
        kernels.softmax_step(scores, state[0], state[1], state[2])
        weights, now, total, factor = reference.softmax_step(before, maximum, 2.5)
        distance = np.minimum(now - before.astype(np.float64), 100)
        close(scores, weights, weights * U * (distance + 4) + NOTHING, maximum)
        assert state[0, 0] == np.float32(now)
        close(state[2, :1], np.array([factor]), factor * U * (min(now - maximum, 100) + 4) + NOTHING, "factor")
        close(state[1, :1], np.array([total]), total * U * (100 + 4 + 10), "total")


def attended(
    kernels: Kernels, q: AnyArray, k: AnyArray, v: AnyArray, radius: int, rounded: int = 0, size: int = 16
) -> AnyArray:
    """All blocks of `size` positions of a text; what lies behind its keys and queries is NaN."""
    T, G, H = q.shape
    R = kernels.floats[0]
    queries = kernels.room((T * G + R - 1, H), fill=np.nan)
    queries[: T * G] = q.reshape(T * G, H)
    panels = kernels.room((2 * -(-T // 64), H, 32), fill=np.nan)
    for t in range(T):
        panels[t // 32, :, t % 32] = k[t]
    values = kernels.room((T, H), fill=v)
    out = kernels.room((T, G * H // 32), reference.ROUNDED) if rounded else kernels.room((T, G * H))
    scratch = kernels.room((3 + 64 + H) * (16 * G + R - 1), fill=np.nan)
    for start in range(0, T, size):
        stop = min(start + size, T)
        kernels.attend(queries, panels, values, T, G, H, start, stop, radius, scratch, out, out.strides[0], rounded)
    return out


def attention_bound(q: AnyArray, k: AnyArray, v: AnyArray, radius: int) -> AnyArray:
    """Scores are sums of H products; an error of theirs is the relative error of e^score, above and below the line.
    So are U |score - maximum| (at most 100: beyond that the weight is nothing), the 4 U of exp and, for each 64 keys,
    those of a factor; then come T products and sums. All of it is of the size of the mean of |v|. Of each key exp may
    lose NOTHING, too."""
    T, _, H = q.shape
    size = np.einsum("tgh,sh->tgs", np.abs(q).astype(np.float64), np.abs(k)).max(axis=-1)  # [T, G]
    relative = 2 * (sum_bound(2 * H, size) + (100 + 4 + 110 * (T // 64 + 1)) * U) + (2 * T + 4) * U
    mean = reference.attend(q, k, np.abs(v), radius).reshape(T, q.shape[1], H)
    return (relative[..., None] * mean).reshape(T, -1) + T * NOTHING * float(np.abs(v).max())


@pytest.mark.parametrize(
    "T", [1, 3, 17] if EMULATED else [1, 17, 64, 65, 130] if ARM else [1, 2, 15, 16, 17, 33, 63, 64, 65, 130, 300]
)
@pytest.mark.parametrize(("G", "H"), [(1, 32), (2, 32)] if EMULATED else [(1, 32), (2, 32), (3, 96), (3, 256), (8, 64)])
def test_attention(kernels: Kernels, rng: np.random.Generator, G: int, H: int, T: int) -> None:
    q = rng.standard_normal((T, G, H), dtype=np.float32) * np.float32(3 / math.sqrt(H))
    k, v = rng.standard_normal((2, T, H), dtype=np.float32)
    for radius in {0, 1, 8, 16, 31, 64, 100, T}:
        if EMULATED and radius not in (1, T):
            continue
        found = attended(kernels, q, k, v, radius)
        close(found, reference.attend(q, k, v, radius), attention_bound(q, k, v, radius), f"radius {radius}")
        np.testing.assert_array_equal(attended(kernels, q, k, v, radius, size=8), found, "blocks of 8")
        np.testing.assert_array_equal(
            attended(kernels, q, k, v, radius, 1), reference.put_row(found), f"radius {radius}"
        )


def test_attention_with_sharp_and_equal_scores(kernels: Kernels, rng: np.random.Generator) -> None:
    """Scores of thousands, where one key takes all, growing along the text so that every step has a new maximum; and
    keys of zeros, where the result is the mean."""
    T, G, H = (20, 1, 32) if EMULATED else (200, 2, 32)
    q, k, v = np.ones((T, G, H), np.float32), np.ones((T, H), np.float32), rng.standard_normal((T, H), dtype=np.float32)
    for scale in (0, 30, -30):
        keys = k * (scale * np.arange(T, dtype=np.float32) / T)[:, None]
        for radius in (9, T):
            found = attended(kernels, q, keys, v, radius)
            close(found, reference.attend(q, keys, v, radius), attention_bound(q, keys, v, radius), f"{scale} {radius}")


# ---- the pool and threads


def test_pool(kernels: Kernels, rng: np.random.Generator) -> None:
    """Up to 16 tokens are added up, then the sums of 16: 16 + T / 16 sums, and a quotient."""
    D = 64
    texts = [(1, 0), (3, 1), (16, 0), (17, 16), (5, 5)] if EMULATED else [
        (1, 0), (3, 1), (16, 0), (17, 16), (5, 5), (31, 2), (600, 7)
    ]  # fmt: skip
    lengths = np.array([T for T, _ in texts])
    starts = np.cumsum(lengths) - lengths
    h = rng.standard_normal((lengths.sum(), D), dtype=np.float32) * np.float32(20)
    table = np.array([(start, T, 0, skip) for start, (T, skip) in zip(starts, texts, strict=True)], np.int64)
    pooled = kernels.room((len(texts), D))
    shared = kernels.room(32, np.int64, fill=0)
    plan = Record(PLAN, threads=1, shared=shared, D=D, B=len(texts), text_table=table, h=h, pooled=pooled)
    kernels.pool(plan, 0)
    for i, (T, skip) in enumerate(texts):
        rows = h[starts[i] : starts[i] + T]
        size = np.abs(rows[skip:]).astype(np.float64).sum(axis=0) / max(T - skip, 1)
        close(pooled[i], reference.pool(rows, skip), (16 + T / 16 + 2) * U * size, f"{T} tokens, {skip} left out")


@pytest.mark.parametrize("threads", [1] if EMULATED or ARM else [1, 2, 3, 5, 16])
def test_threads_share_out_every_item_once_and_wait_for_each_other(kernels: Kernels, threads: int) -> None:
    for items in (0, 1, 7, 1000):
        shared, out = kernels.room(32, np.int64, fill=0), kernels.room((3, items), np.int64, fill=0)
        together(threads, kernels.draw_and_meet, shared, threads, items, out)
        assert (out == 1).all()
