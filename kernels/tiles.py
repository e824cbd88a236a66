"""The innermost loops: a few rows of activations times a few vectors of 16 outputs, all sums in registers.

Three tiles, one idea: load each vector of weights once and use it for every row of the tile. A tile's instructions are
emitted by Python loops inside one Numba intrinsic, so its shape is a number of the column, not a body of code, and it
compiles in a fifth of a second.

    tile_floats   out = out * factor + a @ b      float32
    tile_q8_0     out = a @ w.T                   int8 activations, q8_0 weights: blocks of 32, a scale each
    tile_q4_0     the same with 4-bit weights, once first_q4_0 has unpacked them

Bytes are multiplied by the column's own instruction (`dot`); a row's sums are added in the same order in every tile
shape, so a row's result does not depend on its neighbours. The file is long because an emitter is one thought: cut, its
registers could no longer be counted.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from . import simd
from .plan import ACTIVATIONS, GROUP
from .simd import (
    BYTES,
    F32,
    FLOATS,
    HALVES,
    I8,
    I32,
    I64,
    INTS,
    LANES,
    address,
    emit_call,
    emit_fma,
    emit_lanes,
    emit_load,
    emit_splat,
    emit_store,
    get_float,
    get_int32,
    get_signed_byte,
    get_unsigned_byte,
    instruction,
    kernel,
    set_float,
    set_int32,
)
from .target import COLUMN

ROWS, VECTORS = COLUMN.tile
FEW = COLUMN.few
FLOAT_ROWS, FLOAT_VECTORS = COLUMN.floats

LINE = 64  # bytes of a cache line
LINES = 4  # that a tile fetches ahead while it computes a group
BLOCK_BYTES = 512  # codes of a group for 16 outputs, a byte each
PACKED_BYTES = 256  # the same in q4_0
Body = Callable[[Any, list[Any]], list[Any]]


def constant(value: int) -> Any:
    return ir.Constant(I64, value)


def emit_loop(b: Any, count: Any, carried: list[Any], body: Body) -> list[Any]:
    """`carried = body(i, carried)` for i below `count` (one at least), values in registers."""
    before = b.block
    head, after = b.append_basic_block("loop"), b.append_basic_block("after")
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(I64)
    i.add_incoming(constant(0), before)
    values = []
    for value in carried:
        phi = b.phi(value.type)
        phi.add_incoming(value, before)
        values.append(phi)
    made = body(i, values)
    following = b.add(i, constant(1))
    i.add_incoming(following, b.block)
    for phi, value in zip(values, made, strict=True):
        phi.add_incoming(value, b.block)
    b.cbranch(b.icmp_signed("<", following, count), head, after)
    b.position_at_end(after)
    return made


def emit_steps(b: Any, first: Any, stride: Any, count: int) -> list[Any]:
    """Addresses first, first + stride, ..."""
    places = [first]
    while len(places) < count:
        places.append(b.add(places[-1], stride))
    return places


def emit_joined(b: Any, places: list[list[Any]], totals: list[Any], factors: Any) -> None:
    """Store sums at their places [rows][vectors], plus what is there times its row's factor unless `factors` is 0."""
    add, put = b.append_basic_block("add"), b.append_basic_block("put")
    before = b.block
    b.cbranch(b.icmp_signed("==", factors, constant(0)), put, add)
    b.position_at_end(add)
    sums = []
    for r in range(FLOAT_ROWS):
        factor = emit_splat(b, emit_load(b, b.add(factors, constant(4 * r)), F32, 4), FLOATS)
        for place, total in zip(places[r], totals[r * FLOAT_VECTORS :], strict=False):
            sums.append(emit_fma(b, emit_load(b, place, FLOATS, 4), factor, total))
    b.branch(put)
    b.position_at_end(put)
    values: list[Any] = []
    for place, total, more in zip([place for row in places for place in row], totals, sums, strict=True):
        value = b.phi(FLOATS)
        value.add_incoming(total, before)
        value.add_incoming(more, add)
        values.append((place, value))
    for place, value in values:
        emit_store(b, place, value, 4)


# ---- float32


def _floats(a: int, lda: int, w: int, across: int, down: int, depth: int, out: int, ldo: int, factors: int) -> None:
    for row in range(FLOAT_ROWS):
        for column in range(FLOAT_VECTORS * LANES):
            place = out + row * ldo + 4 * column
            total = np.float32(0)
            v = w + column // LANES * across + column % LANES * 4
            for k in range(depth):
                total += get_float(a + row * lda + 4 * k) * get_float(v + k * down)
            if factors != 0:
                total += get_float(place) * get_float(factors + 4 * row)
            set_float(place, total)


@instruction(types.void, *[address] * 9, meaning=_floats)
def tile_floats(
    b: Any, a: Any, lda: Any, w: Any, across: Any, down: Any, depth: Any, out: Any, ldo: Any, factors: Any
) -> None:
    """out[r, c] = out[r, c] * factors[r] + sum_k a[r, k] w[k, c] for FLOAT_ROWS rows, FLOAT_VECTORS * 16 columns.

    a, lda        float32 rows, and the bytes from one to the next
    w             16 columns at a time: `across` bytes to the next 16, `down` bytes to the next k
    depth         number of k
    out, ldo      float32 rows
    factors       float32 [rows], or address 0: `out` is not read

    The sum over k is complete before it joins `out`: products in blocks have rounding errors of a block's length.

    Bound by the multiply-add units: rows * vectors of them for rows + vectors loads.
    """
    rows, outs = emit_steps(b, a, lda, FLOAT_ROWS), emit_steps(b, out, ldo, FLOAT_ROWS)
    panels = emit_steps(b, w, across, FLOAT_VECTORS)
    places = [[b.add(place, constant(64 * j)) for j in range(FLOAT_VECTORS)] for place in outs]

    def body(k: Any, totals: list[Any]) -> list[Any]:
        offset = b.mul(k, down)
        vectors = [emit_load(b, b.add(panel, offset), FLOATS, 4) for panel in panels]
        made = []
        for r in range(FLOAT_ROWS):
            x = emit_splat(b, emit_load(b, b.add(rows[r], b.mul(k, constant(4))), F32, 4), FLOATS)
            made += [
                emit_fma(b, x, vector, total)
                for vector, total in zip(vectors, totals[r * FLOAT_VECTORS :], strict=False)
            ]
        return made

    totals = emit_loop(b, depth, [ir.Constant(FLOATS, [0.0] * LANES)] * (FLOAT_ROWS * FLOAT_VECTORS), body)
    emit_joined(b, places, totals, factors)


# ---- bytes


def emit_dot(b: Any, totals: Any, weights: Any, codes: Any, signed: bool, factor: int = 1) -> Any:
    """totals[lane] += sum of 4 products of bytes: `weights` are unsigned, or signed ones + 128, `codes` are signed.

    factor   pmaddubsw only: the sum is multiplied by it, for nothing
    """
    if COLUMN.dot == "vpdpbusd.512":
        return emit_call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, totals, weights, codes)
    width = 16 if COLUMN.dot == "sdot" else 32
    numbers = ir.VectorType(I32, width // 4)
    parts = []
    for part in range(64 // width):
        t = emit_lanes(b, totals, part * (width // 4), width // 4)
        w, c = emit_lanes(b, weights, part * width, width), emit_lanes(b, codes, part * width, width)
        if COLUMN.dot == "vpdpbusd.256":
            parts.append(emit_call(b, "llvm.x86.avx512.vpdpbusd.256", numbers, t, w, c))
        elif COLUMN.dot == "sdot":
            parts.append(emit_call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", numbers, t, w, c))
        else:  # pairs of products are summed in int16: 2 * 127 * 127 and 2 * 15 * 127 fit, 2 * 255 * 127 would not
            if signed:
                c = emit_call(b, "llvm.x86.avx2.psign.b", c.type, c, w)
                w = emit_call(b, "llvm.abs.v32i8", w.type, w, ir.Constant(ir.IntType(1), 0))
            shorts = ir.VectorType(ir.IntType(16), 16)
            pairs = emit_call(b, "llvm.x86.avx2.pmadd.ub.sw", shorts, w, c)
            factors = ir.Constant(shorts, [factor] * 16)
            parts.append(b.add(t, emit_call(b, "llvm.x86.avx2.pmadd.wd", numbers, pairs, factors)))
    while len(parts) > 1:
        order = ir.Constant(ir.VectorType(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [b.shuffle_vector(parts[i], parts[i + 1], order) for i in range(0, len(parts), 2)]
    return parts[0]


# pmaddubsw cannot add 255 * 127 twice, but 15 * 127: there nibbles stay as they are; else they become codes of q8_0.
NIBBLE_ZERO = 8 if COLUMN.dot == "pmaddubsw" else 128


def _unpack(packed: int, out: int) -> None:
    """A block of q4_0, 32 inputs of 16 outputs in 256 bytes, becomes a byte for each, as q8_0 has them."""
    more = (NIBBLE_ZERO - 8) * 0x01010101
    for place in range(0, 256, 4):
        nibbles = get_int32(packed + place)
        set_int32(out + place, (nibbles & 0x0F0F0F0F) + more)
        set_int32(out + 256 + place, (nibbles >> 4 & 0x0F0F0F0F) + more)


def emit_unpack(b: Any, packed: Any, out: Any) -> None:
    low, more = ir.Constant(BYTES, [15] * 64), ir.Constant(BYTES, [NIBBLE_ZERO - 8] * 64)
    for k in range(4):
        pair = emit_load(b, b.add(packed, constant(64 * k)), BYTES, 64)
        shifted = b.bitcast(b.lshr(b.bitcast(pair, INTS), ir.Constant(INTS, [4] * LANES)), BYTES)
        for step, nibbles in ((k, pair), (k + 4, shifted)):
            emit_store(b, b.add(out, constant(64 * step)), b.add(b.and_(nibbles, low), more), 64)


def _bytes(
    a: int,
    lda: int,
    w: int,
    across: int,
    s: int,
    s_across: int,
    groups: int,
    out: int,
    ldo: int,
    ahead: int,
    packed: int,
) -> None:
    """A tile in plain loops: one row, 16 outputs."""
    if packed != 0:
        for group in range(groups):
            _unpacked(packed + group * PACKED_BYTES, w + group * BLOCK_BYTES)
    for lane in range(LANES):
        total = np.float32(0)
        for group in range(groups):
            codes, weights = a + group * ACTIVATIONS, w + group * BLOCK_BYTES + 4 * lane
            products = 0
            for i in range(GROUP):
                code = get_signed_byte(codes + i)
                if i // 4 * 64 == get_int32(codes + 44):
                    code += 128 * get_signed_byte(codes + 40 + i % 4)
                products += (get_unsigned_byte(weights + i // 4 * 64 + i % 4) - 128) * code
            scale = simd.get_half(s + group * 32 + 2 * lane) * get_float(codes + 32)
            total += np.float32(products) * scale
        set_float(out + 4 * lane, total)


_unpacked = kernel(_unpack)


# One thought: a tile in the order in which its instructions are emitted. Cut in two, its registers would have no names.
def _emitted_bytes(count: int, zero: int, unpacks: bool) -> Any:
    """The tile for `count` rows and VECTORS vectors of 16 outputs, whose codes mean code - zero.

    a, lda        activations, ACTIVATIONS bytes a group, and the bytes from one row to the next
    w, across     codes of 16 outputs, and the bytes to those of the next 16
    s, s_across   float16 scales of 16 outputs, 32 bytes a group, and the bytes to those of the next 16
    groups        inputs / 32
    out, ldo      float32 rows
    ahead         what will be wanted soon, LINES cache lines for each group: they are fetched on the way, and so are
                  the scales that follow these
    packed        where the tile unpacks: q4_0's codes; it writes them to `w` before it reads them there

    A group's sum begins with -sum(codes) and the excess's product, both times 128: that takes the weights' offset of
    128 off for nothing. Bound by the multipliers: for each group 9 of bytes, one of scales and one multiply-add.
    """
    signed = zero == 128 and COLUMN.dot in ("pmaddubsw", "sdot")

    def weights_at(b: Any, place: Any) -> Any:
        vector = emit_load(b, place, BYTES, 64)
        return b.xor(vector, ir.Constant(BYTES, [-128] * 64)) if signed else vector

    def emit_start(b: Any, start: Any, vector: Any, excess: Any) -> Any:
        """128 * excess's product - zero * sum(codes); signed weights need no offset."""
        if signed:
            start = ir.Constant(INTS, [0] * LANES)
        if COLUMN.dot == "pmaddubsw":
            start = b.shl(start, ir.Constant(INTS, [3] * LANES))
            return emit_dot(b, start, vector, excess, signed, factor=128)
        return b.shl(emit_dot(b, start, vector, excess, signed), ir.Constant(INTS, [7] * LANES))

    def emit(
        b: Any,
        a: Any,
        lda: Any,
        w: Any,
        across: Any,
        s: Any,
        s_across: Any,
        groups: Any,
        out: Any,
        ldo: Any,
        ahead: Any,
        packed: Any,
    ) -> None:
        rows, outs = emit_steps(b, a, lda, count), emit_steps(b, out, ldo, count)
        weights, scales = emit_steps(b, w, across, VECTORS), emit_steps(b, s, s_across, VECTORS)
        sources = emit_steps(b, packed, b.mul(groups, constant(PACKED_BYTES)), VECTORS)
        more_scales = b.add(scales[-1], s_across)

        def body(group: Any, totals: list[Any]) -> list[Any]:
            here = [b.add(row, b.mul(group, constant(ACTIVATIONS))) for row in rows]
            panels = [b.add(place, b.mul(group, constant(BLOCK_BYTES))) for place in weights]
            if unpacks:
                for source, place in zip(sources, panels, strict=True):
                    emit_unpack(b, b.add(source, b.mul(group, constant(PACKED_BYTES))), place)
            products = []
            for place in here:
                start = emit_splat(b, emit_load(b, b.add(place, constant(36)), I32, 4), INTS)
                excess = b.bitcast(emit_splat(b, emit_load(b, b.add(place, constant(40)), I32, 4), INTS), BYTES)
                offset = b.zext(emit_load(b, b.add(place, constant(44)), I32, 4), I64)
                chosen = [weights_at(b, b.add(panel, offset)) for panel in panels]
                products.append([emit_start(b, start, vector, excess) for vector in chosen])
            emit_prefetch(b, b.add(more_scales, b.mul(group, constant(32 * VECTORS))))
            first = b.add(ahead, b.mul(group, constant(LINES * LINE)))
            for line in range(LINES):
                emit_prefetch(b, b.add(first, constant(line * LINE)))
            for k in range(GROUP // 4):
                vectors = [weights_at(b, b.add(place, constant(64 * k))) for place in panels]
                for r, place in enumerate(here):
                    code = emit_splat(b, emit_load(b, b.add(place, constant(4 * k)), I32, 4), INTS)
                    codes = b.bitcast(code, BYTES)
                    products[r] = [
                        emit_dot(b, total, vector, codes, signed)
                        for total, vector in zip(products[r], vectors, strict=True)
                    ]
            steps = [
                b.fpext(emit_load(b, b.add(place, b.mul(group, constant(32))), HALVES, 32), FLOATS) for place in scales
            ]
            made = []
            for r, place in enumerate(here):
                scale = emit_splat(b, emit_load(b, b.add(place, constant(32)), F32, 4), FLOATS)
                for j in range(VECTORS):
                    product = b.sitofp(products[r][j], FLOATS)
                    made.append(emit_fma(b, product, b.fmul(steps[j], scale), totals[r * VECTORS + j]))
            return made

        none = ir.Constant(FLOATS, [0.0] * LANES)
        totals = emit_loop(b, groups, [none] * (count * VECTORS), body)
        for r, place in enumerate(outs):
            for j in range(VECTORS):
                emit_store(b, b.add(place, constant(64 * j)), totals[r * VECTORS + j], 4)

    return emit


def emit_prefetch(b: Any, place: Any) -> None:
    """Bring a cache line into the second cache; an address that cannot be read does no harm."""
    pointer = b.inttoptr(place, I8.as_pointer())
    read, second, data = (ir.Constant(I32, number) for number in (0, 2, 1))
    emit_call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, read, second, data)


def byte_tile(rows: int, zero: int = 128, unpacks: bool = False) -> Any:
    """A tile of bytes, in the column that is built."""
    if COLUMN.name == "plain":
        return kernel(_bytes)
    emit = _emitted_bytes(rows, zero, unpacks)
    emit.__name__ = f"tile_{rows}_{zero}_{unpacks}"
    return instruction(types.void, *[address] * 11, meaning=_bytes)(emit)


if COLUMN.name == "plain":
    tile_floats = kernel(_floats)
tile_q8_0, few_q8_0 = byte_tile(ROWS), byte_tile(FEW)
# q4_0's first tile of some rows unpacks the weights for the others.
first_q4_0 = byte_tile(FEW, NIBBLE_ZERO, unpacks=True)
tile_q4_0, few_q4_0 = byte_tile(ROWS, NIBBLE_ZERO), byte_tile(FEW, NIBBLE_ZERO)
