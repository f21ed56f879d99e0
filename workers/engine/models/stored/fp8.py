"""FP8: matrices of float8 with one scale, a scale for each output, or one for each block.

They stay packed on a GPU, and are expanded on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from shared.errors import ConfigError
from workers.engine.models.stored.interface import (
    KERNEL_GROUPS,
    Plain,
    Tensors,
    read_of_shape,
    read_scales,
    refuse_infinite,
)
from workers.engine.quantization.grouped_weight import GroupedWeight


@dataclass(frozen=True)
class Fp8:
    """FP8; see `StoredFormat`. Activations are not rounded, so scales of activations are not used.

    Attributes:
        block: outputs and inputs of a block; None with a scale for the whole matrix, or for each output.
    """

    scales: ClassVar[tuple[str, ...]] = (".weight_scale_inv", ".weight_scale")
    block: tuple[int, int] | None

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Fp8:
        """Parse quantization_config. Raises ConfigError."""
        block = raw.get("weight_block_size")
        if block is None:
            return cls(None)
        if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise ConfigError(
                f"config.json: weight_block_size must be two positive integers, got {block!r}", param="model"
            )
        return cls((block[0], block[1]))

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        kinds = ("weight_scale_inv", "weight_scale")  # both are multiplied with the matrix
        scale = next((f"{name}.{kind}" for kind in kinds if f"{name}.{kind}" in tensors), None)
        if scale is None:
            return Plain().matrix(tensors, name, outputs, inputs)
        tensors.unread.discard(f"{name}.input_scale")
        types = (torch.float8_e4m3fn, torch.float8_e5m2)
        stored = read_of_shape(tensors, f"{name}.weight", (outputs, inputs), *types)
        scales = _scales(tensors, scale, stored, self.block)
        group = _group(self.block)
        if group is None or stored.dtype != torch.float8_e4m3fn:
            return stored.float().mul_(scales)
        refuse_infinite(tensors.file(f"{name}.weight"), f"{name}.weight", stored.float())
        codes = pad(stored.view(torch.int8), (0, -inputs % group))
        scales = scales.expand(outputs, inputs)[:, ::group].contiguous()
        ones = torch.ones(outputs, device=codes.device)
        return GroupedWeight(8, group, codes, scales, torch.zeros_like(scales), ones, inputs, is_float=True)


def _group(block: tuple[int, int] | None) -> int | None:
    """Return the size of groups with one scale; None if the kernels have no such groups."""
    return next((each for each in KERNEL_GROUPS if block is None or block[1] % each == 0), None)


def _scales(tensors: Tensors, name: str, stored: Tensor, block: tuple[int, int] | None) -> Tensor:
    """Return the scales of a matrix in a shape that can be multiplied with it."""
    outputs, inputs = stored.shape
    if block is not None:
        rows, columns = (-(-size // of) for size, of in zip((outputs, inputs), block, strict=True))
        scales = read_scales(tensors, name, (rows, columns))
        return scales.repeat_interleave(block[0], 0)[:outputs].repeat_interleave(block[1], 1)[:, :inputs]
    shape = tuple(tensors.read(name).shape)
    if shape not in ((), (1,), (outputs,), (outputs, 1)):
        raise ConfigError(
            f"{tensors.file(name)}: tensor {name} has shape {shape}; a scale, or one for each output, is supported",
            param="model",
        )
    return read_scales(tensors, name, shape).view(-1, 1)
