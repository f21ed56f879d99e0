"""FP8: matrices of float8 with one scale, a scale for each output, or one for each block. They are expanded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.models.stored.interface import Plain, Tensors, read_of_shape, read_scales


@dataclass(frozen=True)
class Fp8:
    """FP8; see `StoredFormat`. Activations are not rounded, so scales of activations are not used.

    Attributes:
        block: outputs and inputs of a block; None with a scale for the whole matrix, or for each output.
    """

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

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor:
        kinds = ("weight_scale_inv", "weight_scale")  # both are multiplied with the matrix
        scale = next((f"{name}.{kind}" for kind in kinds if f"{name}.{kind}" in tensors), None)
        if scale is None:
            return Plain().matrix(tensors, name, outputs, inputs)
        tensors.unread.discard(f"{name}.input_scale")
        types = (torch.float8_e4m3fn, torch.float8_e5m2)
        stored = read_of_shape(tensors, f"{name}.weight", (outputs, inputs), *types)
        return stored.float().mul_(_scales(tensors, scale, stored, self.block))


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
