"""Sixteen lanes at a time: vector types and instructions for Numba, the alphabet that all kernels are written in.

A kernel is a Numba function over addresses (int64) and vectors of 16 float32 or int32. LLVM turns 16 lanes into one
register of AVX-512, two of AVX2 or four of Neon, so one source serves every machine; only the dot product of bytes
(tiles.py) has a form for each instruction set.

Every instruction is here with two bodies: the LLVM instructions that it becomes, and its meaning in NumPy. With
NUMBA_DISABLE_JIT=1 the meanings run, kernels are plain Python, and an access outside the arrays that were lent
(`lend`) is an IndexError. The file is long because an alphabet is best read in one place.
"""

import bisect
import ctypes
import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .target import EMULATED

LANES = 16

I8, I32, I64, F16, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()
BYTES = ir.VectorType(I8, 4 * LANES)
INTS = ir.VectorType(I32, LANES)
FLOATS = ir.VectorType(F32, LANES)
HALVES = ir.VectorType(F16, LANES)


class Vector(types.Type):
    """A Numba type that is one LLVM vector."""

    def __init__(self, name: str, llvm: ir.VectorType) -> None:
        super().__init__(name=name)
        self.llvm = llvm


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


floats = Vector("floats", FLOATS)
ints = Vector("ints", INTS)
address = types.int64


def instruction(result: Any, *operands: Any, meaning: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make an instruction of a function (builder, values) -> value that emits LLVM; `meaning` is its twin in Python."""

    def make(emit: Callable[..., Any]) -> Any:
        if EMULATED:
            return meaning

        def typed(context: Any, *arguments: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                made = emit(builder, *values)
                return context.get_dummy_value() if result is types.void else made

            return result(*operands), generate

        names = ["context", *(f"operand_{i}" for i in range(len(operands)))]
        typed.__signature__ = inspect.Signature(  # Numba must not see a starred argument
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        typed.__name__ = emit.__name__
        typed.__doc__ = emit.__doc__
        return intrinsic(typed)

    return make


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function of numbers and vectors. Division by zero is the processor's, not an exception: code that can
    raise needs Python's and Numba's libraries, and these kernels need nothing but the C library."""
    return njit(function, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


# ---- memory lent to emulated kernels

_lent: list[tuple[int, int, Any]] = []


def lend(*arrays: Any) -> None:
    """Let emulated kernels read and write these arrays, and nothing else, from now on."""
    _lent[:] = sorted((array.ctypes.data, array.ctypes.data + array.nbytes, array) for array in arrays)


def _at(place: int, dtype: Any, count: int) -> Any:
    """The array of `count` elements at an address; IndexError unless it is within one array that was lent."""
    size = count * np.dtype(dtype).itemsize
    i = bisect.bisect_right(_lent, place, key=operator.itemgetter(0)) - 1
    if i < 0 or place + size > _lent[i][1]:
        where = f"{place - _lent[i][0]} bytes into an array of {_lent[i][2].nbytes}" if i >= 0 else "below all arrays"
        raise IndexError(f"{count} x {np.dtype(dtype)} {where}: outside of what was lent")
    return np.frombuffer((ctypes.c_char * size).from_address(place), dtype)


def _get(dtype: Any, count: int, convert: Callable[..., Any]) -> Callable[[int], Any]:
    return lambda place: convert(_at(place, dtype, count))


def _set(dtype: Any, count: int) -> Callable[[int, Any], None]:
    def write(place: int, value: Any) -> None:
        _at(place, dtype, count)[:] = value

    return write


# ---- for emitters: loads, stores, calls of LLVM's own functions


def emit_load(b: Any, place: Any, kind: Any, align: int) -> Any:
    """The value of an LLVM type at an address."""
    loaded = b.load(b.inttoptr(place, kind.as_pointer()))
    loaded.align = align
    return loaded


def emit_store(b: Any, place: Any, value: Any, align: int) -> None:
    b.store(value, b.inttoptr(place, value.type.as_pointer())).align = align


def emit_call(b: Any, name: str, result: Any, *values: Any) -> Any:
    """Call a function of LLVM (llvm.*) or of the C library by name."""
    function = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(result, [value.type for value in values]), name
    )
    return b.call(function, values)


def emit_splat(b: Any, scalar: Any, kind: ir.VectorType) -> Any:
    first = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))


def emit_fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z: one instruction where the machine has it, else two."""
    return emit_call(b, "llvm.fmuladd.v16f32", FLOATS, x, y, z)


def emit_lanes(b: Any, vector: Any, start: int, width: int) -> Any:
    """Lanes start to start + width."""
    lanes = ir.Constant(ir.VectorType(I32, width), list(range(start, start + width)))
    return b.shuffle_vector(vector, vector, lanes)


def emit_halves(b: Any, vector: Any, join: Callable[[Any, Any, Any], Any]) -> Any:
    """Join the two halves of a vector until one lane is left: the order of additions is the same on every machine."""
    width = vector.type.count
    while width > 1:
        width //= 2
        first, second = (emit_lanes(b, vector, start, width) for start in (0, width))
        vector = join(b, first, second)
    return b.extract_element(vector, ir.Constant(I32, 0))


def _halves(vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    while len(vector) > 1:
        vector = join(*np.split(vector, 2))
    return vector[0]


# ---- scalars in memory


@instruction(types.int64, address, meaning=_get(np.int64, 1, lambda array: int(array[0])))
def get_int(b: Any, place: Any) -> Any:
    """The int64 at an address."""
    return emit_load(b, place, I64, 8)


@instruction(types.void, address, types.int64, meaning=_set(np.int64, 1))
def set_int(b: Any, place: Any, value: Any) -> None:
    emit_store(b, place, value, 8)


@instruction(types.int64, address, meaning=_get(np.int32, 1, lambda array: int(array[0])))
def get_int32(b: Any, place: Any) -> Any:
    return b.sext(emit_load(b, place, I32, 4), I64)


def _set_int32(place: int, value: int) -> None:
    _at(place, np.int32, 1)[:] = np.int64(value).astype(np.int32)


@instruction(types.void, address, types.int64, meaning=_set_int32)
def set_int32(b: Any, place: Any, value: Any) -> None:
    """The low half of an int64."""
    emit_store(b, place, b.trunc(value, I32), 4)


@instruction(types.int64, address, meaning=_get(np.uint8, 1, lambda array: int(array[0])))
def get_unsigned_byte(b: Any, place: Any) -> Any:
    return b.zext(emit_load(b, place, I8, 1), I64)


@instruction(types.int64, address, meaning=_get(np.int8, 1, lambda array: int(array[0])))
def get_signed_byte(b: Any, place: Any) -> Any:
    return b.sext(emit_load(b, place, I8, 1), I64)


@instruction(types.float32, address, meaning=_get(np.float32, 1, lambda array: array[0]))
def get_float(b: Any, place: Any) -> Any:
    return emit_load(b, place, F32, 4)


@instruction(types.void, address, types.float32, meaning=_set(np.float32, 1))
def set_float(b: Any, place: Any, value: Any) -> None:
    emit_store(b, place, value, 4)


@instruction(types.float32, address, meaning=_get(np.float16, 1, lambda array: np.float32(array[0])))
def get_half(b: Any, place: Any) -> Any:
    """A float16 as float32, by its bits: exponents differ by 112, also for denormals. Not for infinity or NaN."""
    bits = b.zext(emit_load(b, place, ir.IntType(16), 2), I32)
    magnitude = b.shl(b.and_(bits, ir.Constant(I32, 0x7FFF)), ir.Constant(I32, 13))
    scaled = b.fmul(b.bitcast(magnitude, F32), ir.Constant(F32, 2.0**112))
    sign = b.shl(b.and_(bits, ir.Constant(I32, 0x8000)), ir.Constant(I32, 16))
    return b.bitcast(b.or_(b.bitcast(scaled, I32), sign), F32)


# ---- elements of arrays


def _element(dtype: Any) -> Callable[[int, int], int]:
    return lambda array, i: int(_at(array + i * np.dtype(dtype).itemsize, dtype, 1)[0])


def _set_element(dtype: Any) -> Callable[[int, int, int], None]:
    def write(array: int, i: int, value: int) -> None:
        _at(array + i * np.dtype(dtype).itemsize, dtype, 1)[:] = np.int64(value).astype(dtype)

    return write


def emit_place(b: Any, array: Any, i: Any, size: int) -> Any:
    return b.add(array, b.mul(i, ir.Constant(I64, size)))


@instruction(types.int64, address, types.int64, meaning=_element(np.int64))
def int_at(b: Any, array: Any, i: Any) -> Any:
    """The i-th int64 of an array."""
    return emit_load(b, emit_place(b, array, i, 8), I64, 8)


@instruction(types.void, address, types.int64, types.int64, meaning=_set_element(np.int64))
def set_int_at(b: Any, array: Any, i: Any, value: Any) -> None:
    emit_store(b, emit_place(b, array, i, 8), value, 8)


@instruction(types.int64, address, types.int64, meaning=_element(np.int32))
def int32_at(b: Any, array: Any, i: Any) -> Any:
    return b.sext(emit_load(b, emit_place(b, array, i, 4), I32, 4), I64)


@instruction(types.void, address, types.int64, types.int64, meaning=_set_element(np.int32))
def set_int32_at(b: Any, array: Any, i: Any, value: Any) -> None:
    """The low half of an int64."""
    emit_store(b, emit_place(b, array, i, 4), b.trunc(value, I32), 4)


@instruction(types.int64, address, types.int64, meaning=_element(np.uint8))
def byte_at(b: Any, array: Any, i: Any) -> Any:
    return b.zext(emit_load(b, b.add(array, i), I8, 1), I64)


@instruction(types.void, address, types.int64, types.int64, meaning=_set_element(np.uint8))
def set_byte_at(b: Any, array: Any, i: Any, value: Any) -> None:
    """The low byte of an int64."""
    emit_store(b, b.add(array, i), b.trunc(value, I8), 1)


@instruction(types.float32, types.float32, meaning=lambda x: np.sqrt(np.float32(x)))
def square_root(b: Any, x: Any) -> Any:
    return emit_call(b, "llvm.sqrt.f32", F32, x)


def record(names: list[str]) -> tuple[Any, Any]:
    """Readers of a record of int64 fields: `field(place, "name")`, and one for fields that hold a float32's bits."""
    offsets = {name: 8 * i for i, name in enumerate(names)}
    if EMULATED:
        return (
            lambda place, name: int(_at(place + offsets[name], np.int64, 1)[0]),
            lambda place, name: _at(place + offsets[name], np.float32, 1)[0],
        )

    def reader(result: Any, kind: Any) -> Any:
        def read(context: Any, place: Any, name: Any) -> Any:
            offset = offsets[name.literal_value]

            def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
                return emit_load(b, b.add(values[0], ir.Constant(I64, offset)), kind, 8)

            return result(place, name), generate

        return intrinsic(prefer_literal=True)(read)

    return reader(types.int64, I64), reader(types.float32, F32)


# ---- vectors


@instruction(floats, address, meaning=_get(np.float32, LANES, np.array))
def load(b: Any, place: Any) -> Any:
    return emit_load(b, place, FLOATS, 4)


@instruction(types.void, address, floats, meaning=_set(np.float32, LANES))
def store(b: Any, place: Any, vector: Any) -> None:
    emit_store(b, place, vector, 4)


@instruction(floats, types.float32, meaning=lambda x: np.full(LANES, x, np.float32))
def splat(b: Any, x: Any) -> Any:
    """x in every lane."""
    return emit_splat(b, x, FLOATS)


@instruction(floats, meaning=lambda: np.zeros(LANES, np.float32))
def zeros(b: Any) -> Any:
    return ir.Constant(FLOATS, [0.0] * LANES)


@instruction(floats, meaning=lambda: np.arange(LANES, dtype=np.float32))
def lane_numbers(b: Any) -> Any:
    return ir.Constant(FLOATS, [float(i) for i in range(LANES)])


@instruction(floats, floats, floats, floats, meaning=lambda x, y, z: x * y + z)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return emit_fma(b, x, y, z)


@instruction(floats, floats, floats, meaning=lambda x, y: np.where(x > y, x, y))
def larger(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@instruction(floats, floats, meaning=np.abs)
def absolute(b: Any, x: Any) -> Any:
    return emit_call(b, "llvm.fabs.v16f32", FLOATS, x)


@instruction(floats, floats, floats, floats, floats, meaning=lambda x, y, then, other: np.where(x < y, then, other))
def where_less(b: Any, x: Any, y: Any, then: Any, other: Any) -> Any:
    """`then` in the lanes where x < y, else `other`."""
    return b.select(b.fcmp_ordered("<", x, y), then, other)


@instruction(types.float32, floats, meaning=lambda x: _halves(x, np.add))
def sum_of(b: Any, x: Any) -> Any:
    return emit_halves(b, x, lambda b, first, second: b.fadd(first, second))


@instruction(types.float32, floats, meaning=lambda x: _halves(x, np.maximum))
def largest(b: Any, x: Any) -> Any:
    return emit_halves(b, x, lambda b, first, second: b.select(b.fcmp_ordered(">", first, second), first, second))


@instruction(
    ints,
    floats,
    types.int64,
    meaning=lambda x, first: np.abs(x).view(np.int32) & -32 | np.arange(first, first + LANES, dtype=np.int32),
)
def magnitude_keys(b: Any, x: Any, first: Any) -> Any:
    """|x| as an integer that grows with it, its last five bits replaced by the lane's number, counted from `first`: the
    largest of them tells the largest magnitude (to 2^-18 of it) and where it is."""
    bits = b.and_(b.bitcast(x, INTS), ir.Constant(INTS, [0x7FFFFFE0] * LANES))
    numbers = b.add(ir.Constant(INTS, list(range(LANES))), emit_splat(b, b.trunc(first, I32), INTS))
    return b.or_(bits, numbers)


@instruction(types.float32, types.int64, meaning=lambda key: np.int32(key & -32).view(np.float32))
def magnitude(b: Any, key: Any) -> Any:
    """A key's magnitude, rounded down."""
    return b.bitcast(b.and_(b.trunc(key, I32), ir.Constant(I32, -32)), F32)


def _largest_two(x: Any, y: Any) -> int:
    second, first = np.sort(np.concatenate([x, y]))[-2:]
    return int(first) << 32 | int(second)


@instruction(types.int64, ints, ints, meaning=_largest_two)
def largest_two(b: Any, x: Any, y: Any) -> Any:
    """The largest of 32 positive int32 in the high half, the second largest in the low half. One tournament for both:
    the second is the best of those that lost to the first, and of those that came second so far."""

    def larger(x: Any, y: Any) -> Any:
        return b.select(b.icmp_signed(">", x, y), x, y)

    def smaller(x: Any, y: Any) -> Any:
        return b.select(b.icmp_signed(">", x, y), y, x)

    first, second, width = larger(x, y), smaller(x, y), LANES
    while width > 1:
        width //= 2
        (x, y), (x2, y2) = ([emit_lanes(b, v, start, width) for start in (0, width)] for v in (first, second))
        first, second = larger(x, y), larger(smaller(x, y), larger(x2, y2))
    first, second = (b.zext(b.extract_element(v, ir.Constant(I32, 0)), I64) for v in (first, second))
    return b.or_(b.shl(first, ir.Constant(I64, 32)), second)


@instruction(
    ints, ints, ints, types.int64, meaning=lambda x, keys, key: np.where(keys == key, x + 64 >> 7, np.int32(0))
)
def excess_of(b: Any, x: Any, keys: Any, key: Any) -> Any:
    """x / 128, rounded, in the lane where `keys` equals the key; 0 in the others."""
    same = b.icmp_signed("==", keys, emit_splat(b, b.trunc(key, I32), INTS))
    rounded = b.ashr(b.add(x, ir.Constant(INTS, [64] * LANES)), ir.Constant(INTS, [7] * LANES))
    return b.select(same, rounded, ir.Constant(INTS, [0] * LANES))


@instruction(ints, ints, ints, meaning=lambda x, excess: x - (excess << 7))
def less_excess(b: Any, x: Any, excess: Any) -> Any:
    """x - 128 * excess"""
    return b.sub(x, b.shl(excess, ir.Constant(INTS, [7] * LANES)))


@instruction(ints, ints, ints, meaning=lambda low, high: low + (high << 16))
def beside(b: Any, low: Any, high: Any) -> Any:
    """low + 65536 * high: two numbers of 16 bits in a lane, to be summed together."""
    return b.add(low, b.shl(high, ir.Constant(INTS, [16] * LANES)))


@instruction(ints, floats, meaning=lambda x: x.astype(np.int32))
def to_ints(b: Any, x: Any) -> Any:
    """Floats without a fraction, as int32."""
    return b.fptosi(x, INTS)


@instruction(types.int64, ints, meaning=lambda x: int(x.sum()))
def sum_of_ints(b: Any, x: Any) -> Any:
    return b.sext(emit_halves(b, x, lambda b, first, second: b.add(first, second)), I64)


@instruction(types.void, address, ints, meaning=_set(np.int8, LANES))
def store_bytes(b: Any, place: Any, x: Any) -> None:
    """The low bytes of 16 int32."""
    emit_store(b, place, b.trunc(x, ir.VectorType(I8, LANES)), 1)


@instruction(floats, floats, meaning=lambda n: np.ldexp(np.float32(1), n.astype(np.int32)).astype(np.float32))
def power_of_two(b: Any, n: Any) -> Any:
    """2^n for whole n from -126 to 127, put together from its bits."""
    exponent = b.add(b.fptosi(n, INTS), ir.Constant(INTS, [127] * LANES))
    return b.bitcast(b.shl(exponent, ir.Constant(INTS, [23] * LANES)), FLOATS)


def _operator(python: Any, vector: Vector, name: str) -> None:
    """Let kernels write x + y for vectors."""

    @infer_global(python)
    class Typed(ConcreteTemplate):
        cases = (signature(vector, vector, vector),)

    @lower_builtin(python, vector, vector)  # type: ignore[untyped-decorator]
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return getattr(builder, name)(*values)


if not EMULATED:
    for _python, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
        _operator(_python, floats, _name)
    _operator(operator.truediv, floats, "fdiv")
    _operator(operator.add, ints, "add")


# ---- threads


def _add_emulated(place: int, value: int) -> int:
    cell = _at(place, np.int64, 1)
    before = int(cell[0])
    cell[0] += value
    return before


@instruction(types.int64, address, types.int64, meaning=_add_emulated)
def atomic_add(b: Any, place: Any, value: Any) -> Any:
    """Add to an int64 that threads share; what it held before."""
    return b.atomic_rmw("add", b.inttoptr(place, I64.as_pointer()), value, "seq_cst")


@instruction(types.int64, address, meaning=_get(np.int64, 1, lambda array: int(array[0])))
def atomic_get(b: Any, place: Any) -> Any:
    return b.load_atomic(b.inttoptr(place, I64.as_pointer()), "acquire", 8)


@instruction(types.void, address, types.int64, meaning=_set(np.int64, 1))
def atomic_set(b: Any, place: Any, value: Any) -> None:
    b.store_atomic(value, b.inttoptr(place, I64.as_pointer()), "release", 8)
