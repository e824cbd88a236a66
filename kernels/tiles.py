"""The innermost loops: a few rows of activations times a few vectors of 16 outputs, all sums in registers.

Three tiles, one idea: load each vector of weights once and use it for every row of the tile. A tile's instructions are
emitted by Python loops inside one Numba intrinsic, so its shape is a number of the column, not a body of code, and it
compiles in a fifth of a second.

    tile_floats   out = out * factor + a @ b      float32
    tile_q8_0     out = a @ w.T                   int8 activations, q8_0 weights: blocks of 32, a scale each
    tile_q4_0     the same with 4-bit weights

Bytes are multiplied by the column's own instruction (`dot`); a row's sums are added in the same order in every tile
shape, so a row's result does not depend on its neighbours.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from . import simd
from .columns import BY_NAME
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
)

COLUMN = BY_NAME["plain" if simd.EMULATED else os.environ.get("GEMMA_NP_BUILD", "plain")]
ROWS, VECTORS = COLUMN.tile
FLOAT_ROWS, FLOAT_VECTORS = COLUMN.floats

LINE = 64  # bytes of a cache line
BLOCK_BYTES = {"q8_0": 512, "q4_0": 256}  # codes of a group for 16 outputs
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

    The sum over k stands alone before it joins `out`: products in blocks have rounding errors of a block's length.

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


# ---- bytes


def emit_dot(b: Any, totals: Any, weights: Any, codes: Any, signed: bool) -> Any:
    """totals[lane] += sum of 4 products of bytes: `weights` are unsigned, or signed ones + 128, `codes` are signed."""
    if COLUMN.dot == "vpdpbusd.512":
        return emit_call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, totals, weights, codes)
    width = 16 if COLUMN.dot == "sdot" else 32
    numbers = ir.VectorType(I32, width // 4)
    parts = []
    for part in range(64 // width):
        t = emit_part(b, totals, part, width // 4)
        w, c = emit_part(b, weights, part, width), emit_part(b, codes, part, width)
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
            ones = ir.Constant(shorts, [1] * 16)
            parts.append(b.add(t, emit_call(b, "llvm.x86.avx2.pmadd.wd", numbers, pairs, ones)))
    while len(parts) > 1:
        order = ir.Constant(ir.VectorType(I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [b.shuffle_vector(parts[i], parts[i + 1], order) for i in range(0, len(parts), 2)]
    return parts[0]


def emit_part(b: Any, vector: Any, part: int, width: int) -> Any:
    """Lanes part * width to (part + 1) * width: one register of the machine's."""
    lanes = ir.Constant(ir.VectorType(I32, width), list(range(part * width, (part + 1) * width)))
    return b.shuffle_vector(vector, vector, lanes)


def _bytes(kind: str) -> Callable[..., Any]:
    """The tile of a format in plain loops: one row, 16 outputs."""
    four_bits = kind == "q4_0"
    block, zero = BLOCK_BYTES[kind], 8 if four_bits else 128

    def tile(
        a: int, lda: int, w: int, across: int, s: int, s_across: int, groups: int, out: int, ldo: int, ahead: int
    ) -> None:
        for lane in range(LANES):
            total = np.float32(0)
            for group in range(groups):
                codes, weights = a + group * ACTIVATIONS, w + group * block + 4 * lane
                products = 0
                for i in range(GROUP):
                    if four_bits:
                        byte = get_unsigned_byte(weights + i // 4 % 4 * 64 + i % 4)
                        weight = byte >> 4 if i >= 16 else byte & 15
                    else:
                        weight = get_unsigned_byte(weights + i // 4 * 64 + i % 4)
                    code = get_signed_byte(codes + i)
                    place = i // 4 % 4 * 64 + i // 16 * 4096 if four_bits else i // 4 * 64
                    if place == get_int32(codes + 44) + get_int32(codes + 48) * 1024:
                        code += 128 * get_signed_byte(codes + 40 + i % 4)
                    products += (weight - zero) * code
                scale = simd.get_half(s + group * 32 + 2 * lane) * get_float(codes + 32)
                total += np.float32(products) * scale
            set_float(out + 4 * lane, total)

    return tile


def _emitted_bytes(kind: str) -> Any:
    """The tile of a format for ROWS rows and VECTORS vectors of 16 outputs.

    a, lda        activations, ACTIVATIONS bytes a group, and the bytes from one row to the next
    w, across     codes of 16 outputs, and the bytes to those of the next 16
    s, s_across   float16 scales of 16 outputs, 32 bytes a group, and the bytes to those of the next 16
    groups        inputs / 32
    out, ldo      float32 rows
    ahead         codes that will be wanted soon, a quarter of what this tile reads: they are fetched on the way

    A group's sum begins at 128 times the excess's product and -zero * sum(codes), which takes the weights' offset off
    for nothing. Bound by the multipliers: for each group 9 of bytes, one of scales and one multiply-add.
    """
    four_bits = kind == "q4_0"
    signed = not four_bits and COLUMN.dot in ("pmaddubsw", "sdot")

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
    ) -> None:
        rows, outs = emit_steps(b, a, lda, ROWS), emit_steps(b, out, ldo, ROWS)
        weights, scales = emit_steps(b, w, across, VECTORS), emit_steps(b, s, s_across, VECTORS)

        def body(group: Any, totals: list[Any]) -> list[Any]:
            here = [b.add(row, b.mul(group, constant(ACTIVATIONS))) for row in rows]
            panels = [b.add(place, b.mul(group, constant(BLOCK_BYTES[kind]))) for place in weights]
            products = []
            for place in here:
                start = emit_splat(b, emit_load(b, b.add(place, constant(36)), I32, 4), INTS)
                excess = b.bitcast(emit_splat(b, emit_load(b, b.add(place, constant(40)), I32, 4), INTS), BYTES)
                first = []
                for vector in emit_chosen(b, panels, place, four_bits, signed):
                    product = emit_dot(b, ir.Constant(INTS, [0] * LANES), vector, excess, signed)
                    product = b.shl(product, ir.Constant(INTS, [7] * LANES))
                    first.append(product if signed else b.add(product, start))
                products.append(first)
            lines = BLOCK_BYTES[kind] * VECTORS // 4 // LINE
            first = b.add(ahead, b.mul(group, constant(lines * LINE)))
            for line in range(lines):
                emit_prefetch(b, b.add(first, constant(line * LINE)))
            for k, vectors in emit_weights(b, panels, four_bits, signed):
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

        zero = ir.Constant(FLOATS, [0.0] * LANES)
        totals = emit_loop(b, groups, [zero] * (ROWS * VECTORS), body)
        for r, place in enumerate(outs):
            for j in range(VECTORS):
                emit_store(b, b.add(place, constant(64 * j)), totals[r * VECTORS + j], 4)

    return emit


def emit_chosen(b: Any, panels: list[Any], place: Any, four_bits: bool, signed: bool) -> list[Any]:
    """The weights, as emit_weights has them, for the four inputs that a row's group names."""
    offset = b.zext(emit_load(b, b.add(place, constant(44)), I32, 4), I64)
    vectors = [emit_load(b, b.add(panel, offset), BYTES, 64) for panel in panels]
    if not four_bits:
        return [b.xor(v, ir.Constant(BYTES, [-128] * 64)) for v in vectors] if signed else vectors
    shift = emit_splat(b, emit_load(b, b.add(place, constant(48)), I32, 4), INTS)
    low = ir.Constant(BYTES, [15] * 64)
    return [b.and_(b.bitcast(b.lshr(b.bitcast(v, INTS), shift), BYTES), low) for v in vectors]


def emit_prefetch(b: Any, place: Any) -> None:
    """Bring a cache line into the second cache; an address that cannot be read does no harm."""
    pointer = b.inttoptr(place, I8.as_pointer())
    read, second, data = (ir.Constant(I32, number) for number in (0, 2, 1))
    emit_call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, read, second, data)


def emit_weights(b: Any, panels: list[Any], four_bits: bool, signed: bool) -> Any:
    """Yields k and a vector for each panel: 16 outputs by inputs 4k to 4k + 3 of the group."""
    if four_bits:
        low = ir.Constant(BYTES, [15] * 64)
        for k in range(4):
            packed = [emit_load(b, b.add(place, constant(64 * k)), BYTES, 64) for place in panels]
            yield k, [b.and_(pair, low) for pair in packed]
            shifted = [b.lshr(b.bitcast(pair, INTS), ir.Constant(INTS, [4] * LANES)) for pair in packed]
            yield k + 4, [b.and_(b.bitcast(pair, BYTES), low) for pair in shifted]
    else:
        for k in range(8):
            vectors = [emit_load(b, b.add(place, constant(64 * k)), BYTES, 64) for place in panels]
            yield k, [b.xor(v, ir.Constant(BYTES, [-128] * 64)) for v in vectors] if signed else vectors


def byte_tile(kind: str) -> Any:
    """The tile of "q8_0" or "q4_0" in the column that is built."""
    if COLUMN.name == "plain":
        return kernel(_bytes(kind))
    emit = _emitted_bytes(kind)
    emit.__name__ = f"tile_{kind}"
    return instruction(types.void, *[address] * 10, meaning=_bytes(kind))(emit)


if COLUMN.name == "plain":
    tile_floats = kernel(_floats)
tile_q8_0, tile_q4_0 = byte_tile("q8_0"), byte_tile("q4_0")
