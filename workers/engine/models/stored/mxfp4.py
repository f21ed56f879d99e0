"""Experts of gpt-oss: stacked in one tensor, as floats or in MXFP4 (the OCP Microscaling format with 4-bit floats).

MXFP4 has blocks of 32 inputs with a power of 2 as their scale. Twice its values are integers up to 12, so that it
becomes a weight in groups with codes of 8 bits, without rounding; only a block whose scale is below 2^-24 of its
output's largest becomes 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.models.stored.interface import (
    Plain,
    Tensors,
    make_grouped,
    read_floats,
    read_of_shape,
    refuse_infinite,
)
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.join import join

GROUP = 32
DOUBLED_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
EXPONENT_BIAS = 127
NOT_A_NUMBER = 255  # the exponent that the format gives to NaN


class Mxfp4(Plain):
    """Format of a checkpoint with experts in MXFP4; its other matrices are floats. See `StoredFormat`."""

    @classmethod
    def parse(cls, config: dict[str, Any]) -> Mxfp4:
        return cls()


def read_stacked(tensors: Tensors, name: str, shape: tuple[int, int, int]) -> Callable[..., Tensor | GroupedWeight]:
    """Return a function from an expert's number to its matrix [outputs, inputs]. Raises ConfigError.

    With `alternating`, it returns the even rows before the odd ones.

    Args:
        shape: [experts, outputs, inputs]. Floats are stored with inputs before outputs.
    """
    experts, outputs, inputs = shape
    if f"{name}_blocks" not in tensors:
        floats = read_floats(tensors, name, (experts, inputs, outputs))
        refuse_infinite(tensors.file(name), name, floats)
        return lambda number, *, alternating=False: _ordered(floats[number].t(), alternating=alternating)
    if inputs % GROUP:
        raise ConfigError(f"{tensors.file(name)}: {name} has {inputs} inputs; MXFP4 needs a multiple of {GROUP}")
    groups = inputs // GROUP
    blocks = read_of_shape(tensors, f"{name}_blocks", (experts, outputs, groups, GROUP // 2), torch.uint8)
    exponents = read_of_shape(tensors, f"{name}_scales", (experts, outputs, groups), torch.uint8)
    if exponents.device.type != "meta" and int(exponents.max()) == NOT_A_NUMBER:
        raise ConfigError(
            f"{tensors.file(name)}: tensor {name}_scales has values that are not finite", param="model"
        )
    return lambda number, *, alternating=False: _expanded(
        _ordered(blocks[number], alternating=alternating), _ordered(exponents[number], alternating=alternating)
    )


def _ordered(rows: Tensor, *, alternating: bool) -> Tensor:
    return join((rows[0::2], rows[1::2])) if alternating else rows.contiguous()


def _expanded(blocks: Tensor, exponents: Tensor) -> Tensor | GroupedWeight:
    """Return the weight of blocks [outputs, groups, GROUP / 2], whose low bits hold the even inputs."""
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(1).int()
    values = torch.tensor(DOUBLED_VALUES, dtype=torch.int32, device=codes.device)[codes]
    scales = torch.exp2(exponents.float() - (EXPONENT_BIAS + 1))
    zeros = torch.zeros_like(scales)
    found = make_grouped(8, values, scales, zeros)
    return values * scales.repeat_interleave(GROUP, 1) if found is None else found
