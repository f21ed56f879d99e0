"""Product with integers of 4 or 8 bits, or floats of 8, in groups on a GPU. Weights are expanded in registers.

Each row is summed over the groups in order, so that for a given ROWS, it has the same bits in any batch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def grouped_product(
    x,
    packed,
    scales,
    zeros,
    factors,
    bias,
    out,
    num_rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    FLOATS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute ROWS rows and COLUMNS outputs.

    `x` is [rows, INPUTS]; `packed` is, for 4 bits, [GROUPS * GROUP / 8, OUTPUTS] int32 with the integers of 8
    adjacent inputs in each, and for 8 bits, [GROUPS * GROUP, OUTPUTS] int8, with FLOATS the bits of float8_e4m3fn;
    `scales` and `zeros` are [GROUPS, OUTPUTS].
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < OUTPUTS
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for group in range(GROUPS):
        inputs = group * GROUP + tl.arange(0, GROUP)
        wanted = (rows < num_rows)[:, None] & (inputs < INPUTS)[None, :]
        tile = tl.load(x + rows[:, None] * INPUTS + inputs[None, :], mask=wanted, other=0)
        if BITS == 4:
            eight = (inputs // 8).to(tl.int64)[:, None] * OUTPUTS + columns[None, :]
            codes = tl.load(packed + eight, mask=inside[None, :], other=0)
            codes = (codes >> (inputs % 8 * 4)[:, None]) & 15
        else:
            one = inputs.to(tl.int64)[:, None] * OUTPUTS + columns[None, :]
            codes = tl.load(packed + one, mask=inside[None, :], other=0)
        if FLOATS:  # not every GPU has the type; float16 has one more bit of exponent, with a bias 8 higher
            wide = codes.to(tl.int16)
            half = ((wide & 0x7F) << 7) | ((wide & 0x80) << 8)
            codes = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        scale = tl.load(scales + group * OUTPUTS + columns, mask=inside, other=0).to(tl.float32)
        zero = tl.load(zeros + group * OUTPUTS + columns, mask=inside, other=0).to(tl.float32)
        weights = (codes.to(tl.float32) - zero[None, :]) * scale[None, :]
        total += tl.dot(tile, weights.to(tile.dtype), input_precision="ieee")
    total *= tl.load(factors + columns, mask=inside, other=0)[None, :]
    if bias is not None:
        total += tl.load(bias + columns, mask=inside, other=0).to(tl.float32)[None, :]
    there = rows[:, None] * OUTPUTS + columns[None, :]
    tl.store(out + there, total.to(out.dtype.element_ty), mask=(rows < num_rows)[:, None] & inside[None, :])
