"""Values of GGUF's blocks in torch.

transformers has most types; its module is pinned, and tested against the reference in the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shared.models.gguf_header import BLOCK_TYPES

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_VALUES_AT_ONCE = 2**22  # some types need 8 bytes for each value in between


def dequantize(data: Tensor, kind: int, shape: tuple[int, ...]) -> Tensor:
    """Return the values of a tensor of that type and shape.

    Args:
        data: its bytes, [size] uint8.
    """
    block = BLOCK_TYPES[kind]
    if block.name in _PLAIN:
        return data.view(_PLAIN[block.name]).view(shape)
    blocks = data.view(-1, block.size)
    expand = _OWN.get(block.name) or _of_transformers(kind)
    out = torch.empty(len(blocks), block.values)
    step = _VALUES_AT_ONCE // block.values
    for begin in range(0, len(blocks), step):
        out[begin : begin + step] = expand(blocks[begin : begin + step])
    return out.view(shape)


def _of_transformers(kind: int) -> Callable[[Tensor], Tensor]:
    from transformers.integrations.gguf.dequant import dequantize as expand  # noqa: PLC0415  slow to import

    return lambda blocks: expand(blocks.reshape(-1), kind).view(len(blocks), -1)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_five_bits(blocks[:, 2:6], blocks[:, 6:]) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _five_bits(blocks[:, 4:8], blocks[:, 8:]) + _half(blocks, 2)


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    """Return [n, 32] integers from [n, 4] bytes of fifth bits and [n, 16] bytes of two values each."""
    bits = (high[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return (torch.cat([low & 15, low >> 4], dim=1) | (bits.reshape(len(high), 32) << 4)).float()


_OWN = {"Q5_0": _q5_0, "Q5_1": _q5_1}
