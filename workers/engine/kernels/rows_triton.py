"""Norms, rotary embedding and activation on a GPU, in Triton. Each row is independent of the others.

Sums are float32 for every dtype and have a fixed order, so a row has the same bits in any batch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rms_norm(x, residual, weight, out, eps, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Add x, if given, to one row of residual in place, and store the weighted norm of the sum in out."""
    columns = tl.arange(0, WIDTH)
    inside = columns < SIZE
    here = tl.program_id(0).to(tl.int64) * SIZE + columns
    row = tl.load(residual + here, mask=inside, other=0).to(tl.float32)
    if x is not None:
        row = (row + tl.load(x + here, mask=inside, other=0).to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(residual + here, row, mask=inside)
        row = row.to(tl.float32)
    normed = (row * tl.rsqrt(tl.sum(row * row) / SIZE + eps)).to(weight.dtype.element_ty).to(tl.float32)
    scaled = normed * tl.load(weight + columns, mask=inside, other=0).to(tl.float32)
    tl.store(out + here, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate(
    gate_up,
    out,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STEEPNESS: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """Compute an `Activation` for WIDTH columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + columns, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + columns, mask=inside, other=0).to(tl.float32)
    inner = gate
    if ACTIVATION == 1:
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 sqrt(2 / pi)
    if ACTIVATION == 2:
        gate = tl.where(gate > LIMIT, LIMIT, gate)
        up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up)) + 1
        inner = gate * STEEPNESS
    if ACTIVATION != 0:
        inner = tl.where(inner < -80, -80.0, inner)  # e^80 is a float32
    activated = (gate / (1 + tl.exp(-inner))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * SIZE + columns, (activated * up).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["table_width"])
def rope_and_cache(
    qkv,
    query_norm,
    key_norm,
    eps,
    cos,
    sin,
    positions,
    sequences,
    tables,
    table_width,
    queries,
    keys,
    values,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Normalize (if norms are given) and rotate one head of a row, in two halves of DIM / 2; store it.

    Queries go to `queries`, keys and values to the cache. The function is long because a launch per part would cost
    more than the work, and a third of it is the list of arguments.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = DIM // 2
    at = tl.arange(0, WIDTH)
    inside = at < half
    here = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * DIM + at
    first = tl.load(here, mask=inside, other=0).to(tl.float32)
    second = tl.load(here + half, mask=inside, other=0).to(tl.float32)
    position = tl.load(positions + row).to(tl.int64)
    dtype = queries.dtype.element_ty
    if head < HEADS + KV_HEADS:
        if query_norm is not None:
            scale = tl.rsqrt((tl.sum(first * first) + tl.sum(second * second)) / DIM + eps)
            if head < HEADS:
                low = tl.load(query_norm + at, mask=inside, other=0)
                high = tl.load(query_norm + half + at, mask=inside, other=0)
            else:
                low = tl.load(key_norm + at, mask=inside, other=0)
                high = tl.load(key_norm + half + at, mask=inside, other=0)
            first = (first * scale).to(low.dtype).to(tl.float32) * low.to(tl.float32)
            second = (second * scale).to(high.dtype).to(tl.float32) * high.to(tl.float32)
        turn = position * half + at
        c = tl.load(cos + turn, mask=inside, other=0)
        s = tl.load(sin + turn, mask=inside, other=0)
        first, second = first * c - second * s, second * c + first * s
    if head < HEADS:
        there = queries + (row * HEADS + head) * DIM + at
        tl.store(there, first.to(dtype), mask=inside)
        tl.store(there + half, second.to(dtype), mask=inside)
    else:
        block = tl.load(tables + tl.load(sequences + row) * table_width + position // SLOTS).to(tl.int64)
        slot = position % SLOTS
        if head < HEADS + KV_HEADS:
            there = keys + (block * KV_HEADS + head - HEADS) * DIM * SLOTS + at * SLOTS + slot
            tl.store(there, first.to(dtype), mask=inside)
            tl.store(there + half * SLOTS, second.to(dtype), mask=inside)
        else:
            kv_head = head - HEADS - KV_HEADS
            there = values + ((block * KV_HEADS + kv_head) * SLOTS + slot) * DIM + at
            tl.store(there, first.to(dtype), mask=inside)
            tl.store(there + half, second.to(dtype), mask=inside)
