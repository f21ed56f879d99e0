"""Blocks of a GGUF file as grouped weights, which stay packed; other types of blocks are expanded."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.models.gguf_header import BLOCK_TYPES
from workers.engine.quantization.grouped_weight import GroupedWeight

PACKED = ("Q8_0", "Q4_0", "Q4_1")


def grouped_weight(data: Tensor, kind: int, shape: tuple[int, ...]) -> GroupedWeight | None:
    """Return a matrix in groups of 32; None for a type that has no such form.

    Args:
        data: its bytes, [size] uint8.
    """
    block = BLOCK_TYPES[kind]
    if block.name not in PACKED:
        return None
    outputs, inputs = shape
    blocks = data.view(outputs, -1, block.size)
    scales = _half(blocks, 0)
    if block.name == "Q8_0":
        codes, zeros = blocks[..., 2:].contiguous().view(torch.int8), torch.zeros_like(scales)
    else:
        nibbles = blocks[..., 4 if block.name == "Q4_1" else 2 :]
        codes = torch.cat([nibbles & 15, nibbles >> 4], -1)
        zeros = torch.full_like(scales, 8)
        if block.name == "Q4_1":
            least = _half(blocks, 2)
            is_flat = scales <= least.abs() * 2.0**-12  # the zero would leave float16: one value for the block
            zeros = torch.where(is_flat, -least.sign(), -least / torch.where(is_flat, 1, scales))
            codes = torch.where(is_flat[..., None], 0, codes)
            scales = torch.where(is_flat, least.abs(), scales)
    factors = scales.abs().amax(-1).clamp_min(2.0**-24).log2().floor().exp2()
    halves = (scales / factors[:, None]).half()
    return GroupedWeight(
        8 if block.name == "Q8_0" else 4, block.values, codes.flatten(1), halves, zeros.half(), factors, inputs
    )


def _half(blocks: Tensor, at: int) -> Tensor:
    """Return the float16 at that byte of each block in float32, [outputs, blocks]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float()
