"""Attention over the paged cache on a GPU, in Triton. The input of a row is its sequence and its position.

A program computes one key-value head for up to ROWS consecutive rows of one sequence, as many as fill the smallest
matrix product. Positions are summed in tiles that begin at 0, so that for a given ROWS, a row has the same bits
whatever rows are beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_seen(at, is_ours, begin, window, TILE: tl.constexpr):
    """Return the start of the first tile from `begin` on of which a row of the program sees a position."""
    found = begin
    if window is not None:
        lowest = tl.min(tl.where(is_ours, at, 2**31 - 1)) - window + 1
        found = tl.maximum(begin, tl.maximum(lowest, 0) // TILE * TILE)
    return found


@triton.jit
def cap_and_mask(scores, seen, at, softcap, window):
    """Apply the soft cap, and replace scores of positions that a row does not see by -infinity."""
    if softcap is not None:
        steep = 2 * 1.4426950408889634 / softcap  # times log2(e)
        scores = softcap * (1 - 2 / (tl.exp2(scores * steep) + 1))  # softcap * tanh(score / softcap)
    is_seen = seen[None, :] <= at[:, None]
    if window is not None:
        is_seen &= seen[None, :] > at[:, None] - window
    return tl.where(is_seen, scores, float("-inf"))


@triton.jit
def exponentiate(scores, most):
    """Return the weights of scores, the factor on earlier weights, and the largest score so far.

    The largest score of a row that has not seen a position yet is -infinity.
    """
    higher = tl.maximum(most, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return tl.exp2(scores - base[:, None]), tl.exp2(most - base), higher


@triton.jit(do_not_specialize=["table_width", "num_rows", "span"])
def attend(
    queries,
    keys,
    values,
    positions,
    sequences,
    tables,
    table_width,
    num_rows,
    span,
    scale,
    softcap,
    window,
    sinks,
    out,
    peaks,
    totals,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    RUN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compute attention, or one split of it that `merge` completes.

    `queries` and `out` are [rows, KV_HEADS * GROUP, DIM]; `scale` and `softcap` are those of scores times log2(e),
    for exp2. Without `softcap`, `window` or `sinks`, [heads], the layer has none; see `AttentionForm`.

    A program covers the `span` positions selected by its third program id. If `peaks` and `totals`, [rows, heads,
    splits], are given, `out` is [rows, heads, splits, DIM] float32 and has to be merged.

    RUN is the largest power of 2 that divides SLOTS: this many adjacent slots are in one block.

    The function is long because a kernel is one loop over state that Triton keeps in registers.
    """
    row, kv_head = tl.program_id(0), tl.program_id(1)
    sequence, position = tl.load(sequences + row), tl.load(positions + row)
    is_follower = row > 0 and position % ROWS > 0
    if is_follower:
        is_follower = tl.load(sequences + row - 1) == sequence
    if is_follower:
        return  # the program of an earlier row computes this one

    lane = tl.arange(0, ROWS * GROUP_WIDTH)
    nth, member = lane // GROUP_WIDTH, lane % GROUP_WIDTH
    rows, at = row.to(tl.int64) + nth, position + nth
    is_ours = (rows < num_rows) & (position % ROWS + nth < ROWS)
    is_ours &= tl.load(sequences + rows, mask=is_ours, other=-1) == sequence
    is_ours &= tl.load(positions + rows, mask=is_ours, other=-1) == at
    end = tl.max(tl.where(is_ours, at, 0)) + 1
    begin = tl.program_id(2) * span
    first = first_seen(at, is_ours, begin, window, TILE)
    if first >= tl.minimum(end, begin + span):
        return
    dims = tl.arange(0, DIM_WIDTH)
    here = ((rows * KV_HEADS + kv_head) * GROUP + member)[:, None] * DIM + dims[None, :]
    wanted = (is_ours & (member < GROUP))[:, None] & (dims < DIM)[None, :]
    query = tl.load(queries + here, mask=wanted, other=0)

    most = tl.full([ROWS * GROUP_WIDTH], float("-inf"), tl.float32)
    total = tl.zeros([ROWS * GROUP_WIDTH], tl.float32)
    mixed = tl.zeros([ROWS * GROUP_WIDTH, DIM_WIDTH], tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + kv_head * GROUP + member, mask=member < GROUP, other=0).to(tl.float32)
        most, total = sink * 1.4426950408889634, total + 1  # log2(e)
    for start in range(first, tl.minimum(end, begin + span), TILE):
        seen = start + tl.arange(0, TILE)
        block = tl.load(tables + sequence * table_width + seen // SLOTS, mask=seen < end, other=0).to(tl.int64)
        head = (block * KV_HEADS + kv_head) * DIM * SLOTS
        slot = seen % SLOTS
        # not masked by length, since the other slots' scores are unused and RUN slots are read at once
        key_at = tl.multiple_of(tl.max_contiguous(head + slot, RUN), RUN)
        key_at = key_at[None, :] + dims[:, None] * SLOTS
        key = tl.load(keys + key_at, mask=(dims < DIM)[:, None], other=0)
        scores = tl.dot(query, key, input_precision="ieee") * scale
        weights, kept, most = exponentiate(cap_and_mask(scores, seen, at, softcap, window), most)
        value_at = (head + slot * DIM)[:, None] + dims[None, :]
        # an unwritten slot may hold NaN, which a weight of 0 would not hide
        written = (seen < end)[:, None] & (dims < DIM)[None, :]
        value = tl.load(values + value_at, mask=written, other=0)
        mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
    if peaks is None:
        tl.store(out + here, (mixed / total[:, None]).to(out.dtype.element_ty), mask=wanted)
    else:
        place = ((rows * KV_HEADS + kv_head) * GROUP + member) * tl.num_programs(2) + tl.program_id(2)
        tl.store(out + place[:, None] * DIM + dims[None, :], mixed, mask=wanted)
        tl.store(peaks + place, most, mask=is_ours & (member < GROUP))
        tl.store(totals + place, total, mask=is_ours & (member < GROUP))


@triton.jit(do_not_specialize=["splits", "span"])
def merge(
    mixed,
    peaks,
    totals,
    positions,
    splits,
    span,
    window,
    sinks,
    out,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_WIDTH: tl.constexpr,
    SPLITS_WIDTH: tl.constexpr,
):
    """Merge the splits of one head of one row, weighted by their totals."""
    head = tl.program_id(0) * HEADS + tl.program_id(1)
    nth, dims = tl.arange(0, SPLITS_WIDTH), tl.arange(0, DIM_WIDTH)
    position = tl.load(positions + tl.program_id(0))
    seen = nth <= position // span
    if window is not None:
        seen &= nth >= tl.maximum(position - window + 1, 0) // span
    place = head * splits + nth
    peak = tl.load(peaks + place, mask=seen, other=float("-inf"))
    most = tl.max(peak, 0)
    if sinks is not None:
        sink = tl.load(sinks + tl.program_id(1)).to(tl.float32) * 1.4426950408889634  # log2(e)
        most = tl.maximum(most, sink)
    weights = tl.exp2(peak - most)
    total = tl.sum(tl.load(totals + place, mask=seen, other=0) * weights, 0)
    if sinks is not None:
        total += tl.exp2(sink - most)
    there = seen[:, None] & (dims < DIM)[None, :]
    parts = tl.load(mixed + place[:, None] * DIM + dims[None, :], mask=there, other=0) * weights[:, None]
    tl.store(out + head * DIM + dims, (tl.sum(parts, 0) / total).to(out.dtype.element_ty), mask=dims < DIM)
