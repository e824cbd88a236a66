"""Products of many rows with a matrix: rows in blocks that stay in the second cache, weights in panels of 64 outputs.

A block's rows pass a panel while the panel is in the first cache; every panel is read from memory once per block. Items
(a block and a panel) are drawn by the threads as they come; who computes an item does not change its result.
"""

from typing import Any

from .barrier import draw
from .plan import ACTIVATIONS, BLOCK, GROUP, MATRIX, PANEL, UNPACKED
from .rows import geglu_row
from .simd import kernel, record
from .target import WITH_F32, WITH_Q4_0, WITH_Q8_0
from .tiles import (
    BLOCK_BYTES,
    FEW,
    FLOAT_ROWS,
    FLOAT_VECTORS,
    LINE,
    LINES,
    PACKED_BYTES,
    ROWS,
    VECTORS,
    few_q4_0,
    few_q8_0,
    first_q4_0,
    tile_floats,
    tile_q4_0,
    tile_q8_0,
)

FEW_ROWS = 64  # up to here reading weights counts, see chunk_of
SMALL = 4 * FEW  # up to here all tiles are small, so that there are enough of them to fetch all of the next part
DEPTH = 192  # inputs of a float32 product at a time: half of the rounding error of one sum, for 1 % of the time

matrix_field, _ = record(MATRIX)


@kernel
def row_size(inputs: int, rounded: int) -> int:
    """The size of a row of activations."""
    return inputs // GROUP * ACTIVATIONS if rounded else 4 * inputs


def bytes_panel(first: Any, tile: Any, few: Any, block: int) -> Any:
    """product_panel for a format of bytes.

    first       the tile of FEW rows that goes ahead; where it unpacks, the others read what it made
    tile, few   of ROWS rows, and of FEW, which share out the rest with little left over
    block       bytes in memory of a group's codes for 16 outputs
    """

    @kernel
    def run(a: int, rows: int, codes: int, scales: int, groups: int, out: int, ldo: int, unpacked: int) -> None:
        lda, across, s_across = groups * ACTIVATIONS, groups * BLOCK_BYTES, groups * 32
        piece = groups * LINES * LINE  # of the weights for the next part: each tile fetches one
        for part in range(0, 4, VECTORS):
            packed, s, place = codes + part * groups * block, scales + part * s_across, out + part * 64
            ahead, end = packed + VECTORS * groups * block, packed + 2 * VECTORS * groups * block - piece
            w, source = (packed, 0) if block == BLOCK_BYTES else (unpacked, packed)
            first(a, lda, w, across, s, s_across, groups, place, ldo, ahead, source)
            row = FEW
            while row < rows:
                ahead, left = min(ahead + piece, end), rows - row
                x, y = a + row * lda, place + row * ldo
                if rows <= SMALL or left <= FEW or ROWS < left <= 2 * FEW:
                    few(x, lda, w, across, s, s_across, groups, y, ldo, ahead, 0)
                    row += FEW
                else:
                    tile(x, lda, w, across, s, s_across, groups, y, ldo, ahead, 0)
                    row += ROWS

    return run


panel_q8_0 = bytes_panel(few_q8_0, tile_q8_0, few_q8_0, BLOCK_BYTES)
panel_q4_0 = bytes_panel(first_q4_0, tile_q4_0, few_q4_0, PACKED_BYTES)


@kernel
def floats_panel(a: int, rows: int, codes: int, inputs: int, out: int, ldo: int, ones: int) -> None:
    """product_panel for float32."""
    across = inputs * 64
    for part in range(0, 4, FLOAT_VECTORS):
        w, place = codes + part * across, out + part * 64
        for k in range(0, inputs, DEPTH):
            depth, factors = min(DEPTH, inputs - k), ones if k > 0 else 0
            for row in range(0, rows, FLOAT_ROWS):
                x = a + (row * inputs + k) * 4
                tile_floats(x, inputs * 4, w + k * 64, across, 64, depth, place + row * ldo, ldo, factors)


@kernel
def product_panel(a: int, rows: int, matrix: int, panel: int, out: int, ldo: int, scratch: int, ones: int) -> None:
    """out[rows, 64] = a @ w.T for one panel. Writes up to a tile's rows more than asked for."""
    inputs, kind, codes = matrix_field(matrix, "inputs"), matrix_field(matrix, "format"), matrix_field(matrix, "codes")
    groups = inputs // GROUP
    scales = matrix_field(matrix, "scales") + panel * 4 * groups * 32
    if WITH_F32 and kind == 0:
        floats_panel(a, rows, codes + panel * 4 * inputs * 64, inputs, out, ldo, ones)
    if WITH_Q8_0 and kind == 1:
        panel_q8_0(a, rows, codes + panel * 4 * groups * BLOCK_BYTES, scales, groups, out, ldo, scratch)
    if WITH_Q4_0 and kind == 2:
        panel_q4_0(a, rows, codes + panel * 4 * groups * PACKED_BYTES, scales, groups, out, ldo, scratch)


@kernel
def chunk_of(items: int, rows: int, threads: int) -> int:
    """How many items a thread takes at a time: for a short text all its share, so that it reads memory in one sweep and
    what it fetches ahead is its own; for longer ones a single item, so that nobody waits long for the last."""
    return (items + threads - 1) // threads if rows <= FEW_ROWS else 1


@kernel
def product(shared: int, threads: int, a: int, rows: int, matrix: int, out: int, scratch: int, ones: int) -> None:
    """out[rows, outputs] = a @ w.T in float32, by all threads together.

    scratch   of this thread: UNPACKED bytes for each input
    """
    panels, outputs = matrix_field(matrix, "outputs") // PANEL, matrix_field(matrix, "outputs")
    lda = row_size(matrix_field(matrix, "inputs"), matrix_field(matrix, "rounded"))
    items = panels * ((rows + BLOCK - 1) // BLOCK)
    chunk = chunk_of(items, rows, threads)
    first = draw(shared, chunk)
    while first < items:
        for item in range(first, min(first + chunk, items)):
            block, panel = item // panels * BLOCK, item % panels
            place = out + (block * outputs + panel * PANEL) * 4
            product_panel(a + block * lda, min(BLOCK, rows - block), matrix, panel, place, outputs * 4, scratch, ones)
        first = draw(shared, chunk)


@kernel
def geglu_product(
    shared: int, threads: int, a: int, rows: int, matrix: int, out: int, rounded: int, scratch: int, ones: int
) -> None:
    """gelu(a @ gate.T) * (a @ up.T), rounded for the next product: the [rows, 2F] array of both never exists.

    matrix    16 rows of gate_proj and 16 of up_proj in turn, so that a panel gives 32 finished values
    scratch   of this thread: UNPACKED bytes for each input, and after them float32 [BLOCK + a tile's rows, 64]
    """
    both = scratch + UNPACKED * matrix_field(matrix, "inputs")
    panels = matrix_field(matrix, "outputs") // PANEL
    lda = row_size(matrix_field(matrix, "inputs"), matrix_field(matrix, "rounded"))
    ldo = row_size(panels * GROUP, rounded)
    items = panels * ((rows + BLOCK - 1) // BLOCK)
    chunk = chunk_of(items, rows, threads)
    first = draw(shared, chunk)
    while first < items:
        for item in range(first, min(first + chunk, items)):
            block, panel = item // panels * BLOCK, item % panels
            n = min(BLOCK, rows - block)
            product_panel(a + block * lda, n, matrix, panel, both, PANEL * 4, scratch, ones)
            for row in range(n):
                geglu_row(both + row * PANEL * 4, out + (block + row) * ldo, panel, rounded)
        first = draw(shared, chunk)
