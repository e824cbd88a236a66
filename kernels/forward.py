"""model.py once more, over arrays that exist already: every thread runs it from the first layer to the last.

A step's work is split by rows, or drawn item by item where items differ; `meet` ends each step. Steps are fused where
an array between them would be written only to be read once: norm and rounding; attention and rounding; gate, up, GELU
and rounding; residual, norm, the next norm and rounding. plan.py says what the fields of a plan and a layer are.
"""

from typing import Any

import numpy as np

from .attention import attend
from .barrier import draw, meet
from .plan import LAYER, MATRIX, PLAN, POSITIONS
from .products import geglu_product, matrix_field, product, row_size
from .rows import add_norm_row, norm_rotate, norm_row, put_row
from .simd import get_float, get_int, kernel, load, record, set_float, splat, store, zeros

LAYER_BYTES, MATRIX_BYTES = 8 * len(LAYER), 8 * len(MATRIX)
MEAN_BLOCK = 16  # tokens that are added up before they join the rest: errors grow with T / 16, not with T

plan_field, plan_float = record(PLAN)
layer_field, layer_float = record(LAYER)


@kernel
def forward(plan: int, thread: int) -> None:
    """Tokens' embeddings -> each text's vector. Called by all threads at once, with their numbers from 0 on."""
    threads, shared = plan_field(plan, "threads"), plan_field(plan, "shared")
    T, L, D = plan_field(plan, "T"), plan_field(plan, "L"), plan_field(plan, "D")
    mine = range(T * thread // threads, T * (thread + 1) // threads)
    x, h, layer = plan_field(plan, "x"), plan_field(plan, "h"), plan_field(plan, "layers")
    norm_rows(plan, mine, layer, layer_field(layer, "input_layernorm"), layer_field(layer, "qkv"))
    meet(shared, threads)
    for i in range(L):
        left = plan_field(plan, "last") - 8 * i
        block(plan, layer, thread, mine, left)
        if 0 <= left < 8:
            return
        layer += LAYER_BYTES
        if i + 1 < L:
            norm_rows(plan, mine, layer, layer_field(layer, "input_layernorm"), layer_field(layer, "qkv"))
        else:  # the trunk's last norm
            for t in mine:
                norm_row(x + 4 * t * D, D, plan_field(plan, "norm"), plan_float(plan, "eps"), h + 4 * t * D, 0)
        meet(shared, threads)
    pool(plan, thread)
    heads(plan, thread)


@kernel
def block(plan: int, layer: int, thread: int, mine: Any, left: int) -> None:
    """A layer, after its input_layernorm. Steps have their numbers from plan.STEPS; it ends after step `left`."""
    if left == 0:
        return
    attention(plan, layer, thread, left)
    if 0 <= left <= 4:
        return
    # x += post_attention_layernorm(h); pre_feedforward_layernorm
    add_norm_rows(plan, mine, layer, layer_field(layer, "post_attention_layernorm"))
    norm_rows(plan, mine, layer, layer_field(layer, "pre_feedforward_layernorm"), layer_field(layer, "gate_up"))
    meet(plan_field(plan, "shared"), plan_field(plan, "threads"))
    if left == 5:
        return
    mlp(plan, layer, thread, left)
    if 0 <= left <= 7:
        return
    # x += post_feedforward_layernorm(h)
    add_norm_rows(plan, mine, layer, layer_field(layer, "post_feedforward_layernorm"))


@kernel
def norm_rows(plan: int, mine: Any, layer: int, weight: int, following: int) -> None:
    """a = rms_norm(x) of some rows, as the matrix that follows reads them."""
    D, x, a = plan_field(plan, "D"), plan_field(plan, "x"), plan_field(plan, "a")
    rounded, eps = matrix_field(following, "rounded"), layer_float(layer, "eps")
    size = row_size(D, rounded)
    for t in mine:
        norm_row(x + 4 * t * D, D, weight, eps, a + t * size, rounded)


@kernel
def add_norm_rows(plan: int, mine: Any, layer: int, weight: int) -> None:
    """x += rms_norm(h), some rows."""
    D, x, h = plan_field(plan, "D"), plan_field(plan, "x"), plan_field(plan, "h")
    for t in mine:
        add_norm_row(x + 4 * t * D, h + 4 * t * D, D, weight, layer_float(layer, "eps"))


@kernel
def scratch_of(plan: int, thread: int) -> int:
    """The scratch memory of a thread."""
    return plan_field(plan, "scratch") + thread * plan_field(plan, "scratch_bytes")


@kernel
def linear(plan: int, thread: int, a: int, rows: int, matrix: int, out: int) -> None:
    """out[rows, outputs] = a @ w.T, by all threads; they meet after it."""
    threads, shared = plan_field(plan, "threads"), plan_field(plan, "shared")
    product(shared, threads, a, rows, matrix, out, scratch_of(plan, thread), plan_field(plan, "ones"))
    meet(shared, threads)


@kernel
def attention(plan: int, layer: int, thread: int, left: int) -> None:
    """h = o_proj(softmax(q k^T * scale) v)"""
    threads, shared, T, a = (
        plan_field(plan, "threads"),
        plan_field(plan, "shared"),
        plan_field(plan, "T"),
        plan_field(plan, "a"),
    )
    items, scratch = layer_field(layer, "K") * plan_field(plan, "blocks"), scratch_of(plan, thread)
    # q_proj, k_proj, v_proj
    linear(plan, thread, a, T, layer_field(layer, "qkv"), plan_field(plan, "qkv"))
    if left == 1:
        return
    # q_norm, k_norm, RoPE
    item = draw(shared, 1)
    while item < items:
        rotate_block(plan, layer, item, scratch)
        item = draw(shared, 1)
    meet(shared, threads)
    if left == 2:
        return
    # softmax(q k^T * scale) v
    item = draw(shared, 1)
    while item < items:
        attend_block(plan, layer, item, scratch)
        item = draw(shared, 1)
    meet(shared, threads)
    if left == 3:
        return
    # o_proj
    linear(plan, thread, a, T, layer_field(layer, "o_proj"), plan_field(plan, "h"))


@kernel
def attend_block(plan: int, layer: int, item: int, scratch: int) -> None:
    """attend for one block of the table and one key/value head."""
    K, G, H = layer_field(layer, "K"), layer_field(layer, "G"), layer_field(layer, "H")
    T, slots, blocks = plan_field(plan, "T"), plan_field(plan, "slots"), plan_field(plan, "blocks")
    k, place = item // blocks, plan_field(plan, "block_table") + 24 * (item % blocks)
    text = plan_field(plan, "text_table") + 32 * get_int(place)
    first, slot = get_int(text), get_int(text + 16)
    rounded = matrix_field(layer_field(layer, "o_proj"), "rounded")
    row = row_size(K * G * H, rounded)
    attend(
        plan_field(plan, "q") + (k * T + first) * G * H * 4,
        plan_field(plan, "keys") + (k * slots + slot) * H * 4,
        plan_field(plan, "values") + (k * T + first) * H * 4,
        get_int(text + 8),
        G,
        H,
        get_int(place + 8),
        get_int(place + 16),
        layer_field(layer, "radius"),
        scratch,
        plan_field(plan, "a") + first * row + k * row_size(G * H, rounded),
        row,
        rounded,
    )


@kernel
def rotate_block(plan: int, layer: int, item: int, scratch: int) -> None:
    """rotate_token for the 16 positions that a block of the table begins with, if it begins at a multiple of 16. Their
    keys fill cache lines that no other thread writes."""
    blocks = plan_field(plan, "blocks")
    k, place = item // blocks, plan_field(plan, "block_table") + 24 * (item % blocks)
    text, start = plan_field(plan, "text_table") + 32 * get_int(place), get_int(place + 8)
    first, tokens = get_int(text), get_int(text + 8)
    if start % POSITIONS == 0:
        for t in range(first + start, first + min(start + POSITIONS, tokens)):
            rotate_token(plan, layer, t, k, scratch)


@kernel
def rotate_token(plan: int, layer: int, t: int, k: int, scratch: int) -> None:
    """Norms and RoPE of a token's queries and its key for a key/value head; the key goes to its slot, 32 of them
    interleaved, the value to its place."""
    T, slots = plan_field(plan, "T"), plan_field(plan, "slots")
    eps, scale = layer_float(layer, "eps"), layer_float(layer, "scale")
    K, G, H = layer_field(layer, "K"), layer_field(layer, "G"), layer_field(layer, "H")
    position = get_int(plan_field(plan, "token_table") + 16 * t)
    slot = get_int(plan_field(plan, "token_table") + 16 * t + 8)
    cos, sin = layer_field(layer, "cos") + 2 * H * position, layer_field(layer, "sin") + 2 * H * position
    row = plan_field(plan, "qkv") + 4 * t * (K * G + 2 * K) * H
    for g in range(G):
        place = plan_field(plan, "q") + ((k * T + t) * G + g) * H * 4
        norm_rotate(row + (k * G + g) * H * 4, H, layer_field(layer, "q_norm"), eps, cos, sin, scale, place)
    row_k, row_v = row + (K * G + k) * H * 4, row + (K * G + K + k) * H * 4
    norm_rotate(row_k, H, layer_field(layer, "k_norm"), eps, cos, sin, np.float32(1), scratch)
    place = plan_field(plan, "keys") + ((k * slots + slot // 32 * 32) * H + slot % 32) * 4
    for i in range(H):
        set_float(place + i * 128, get_float(scratch + 4 * i))
    place = plan_field(plan, "values") + (k * T + t) * H * 4
    for i in range(0, 4 * H, 64):
        store(place + i, load(row_v + i))


@kernel
def mlp(plan: int, layer: int, thread: int, left: int) -> None:
    """h = down_proj(gelu(gate_proj(a)) * up_proj(a))"""
    threads, shared, T = plan_field(plan, "threads"), plan_field(plan, "shared"), plan_field(plan, "T")
    a, b, down = plan_field(plan, "a"), plan_field(plan, "b"), layer_field(layer, "down_proj")
    scratch, ones = scratch_of(plan, thread), plan_field(plan, "ones")
    # gate_proj, up_proj, act_fn
    geglu_product(shared, threads, a, T, layer_field(layer, "gate_up"), b, matrix_field(down, "rounded"), scratch, ones)
    meet(shared, threads)
    if left == 6:
        return
    # down_proj
    linear(plan, thread, b, T, down, plan_field(plan, "h"))


@kernel
def pool(plan: int, thread: int) -> None:
    """Each text's mean over its tokens; zeros if none counts."""
    threads, shared, D = plan_field(plan, "threads"), plan_field(plan, "shared"), plan_field(plan, "D")
    for item in range(thread, plan_field(plan, "B") * D // 16, threads):
        text, column = item // (D // 16), item % (D // 16) * 64
        place = plan_field(plan, "text_table") + 32 * text
        first, stop = get_int(place) + get_int(place + 24), get_int(place) + get_int(place + 8)
        total = zeros()
        for start in range(first, stop, MEAN_BLOCK):
            part = zeros()
            for t in range(start, min(start + MEAN_BLOCK, stop)):
                part = part + load(plan_field(plan, "h") + 4 * t * D + column)
            total = total + part
        store(plan_field(plan, "pooled") + 4 * text * D + column, total / splat(np.float32(max(stop - first, 1))))
    meet(shared, threads)


@kernel
def heads(plan: int, thread: int) -> None:
    """The Dense heads, one after the other. Their results are in head_b and in pooled in turn; the last one's is in
    head_b if their number is odd."""
    threads, shared, B = plan_field(plan, "threads"), plan_field(plan, "shared"), plan_field(plan, "B")
    mine = range(B * thread // threads, B * (thread + 1) // threads)
    e, out, a = plan_field(plan, "pooled"), plan_field(plan, "head_b"), plan_field(plan, "head_a")
    matrix = plan_field(plan, "head_table")
    for _ in range(plan_field(plan, "heads")):
        inputs, rounded = matrix_field(matrix, "inputs"), matrix_field(matrix, "rounded")
        size = row_size(inputs, rounded)
        for text in mine:
            put_row(e + 4 * text * inputs, inputs, a + text * size, rounded)
        meet(shared, threads)
        linear(plan, thread, a, B, matrix, out)
        e, out = out, e
        matrix += MATRIX_BYTES
