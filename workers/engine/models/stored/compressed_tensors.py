"""Formats of compressed-tensors: integers of 4 and 8 bits, which stay packed, and FP8, which is expanded.

Activations are not rounded as W8A8 asks: they have 16 bits on the CPU, and their own type on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.models.stored.fp8 import Fp8
from workers.engine.models.stored.interface import (
    Plain,
    Tensors,
    make_grouped,
    read_of_shape,
    read_scales,
    unpack,
)
from workers.engine.quantization.grouped_weight import Bits, GroupedWeight

FORMATS = ("pack-quantized", "int-quantized", "float-quantized")


@dataclass(frozen=True)
class CompressedIntegers:
    """Integers with a scale for each output or group; see `StoredFormat`.

    Attributes:
        group_size: -1 for one scale for each output.
        is_packed: several integers are in each word.
    """

    scales: ClassVar[tuple[str, ...]] = (".weight_scale",)
    bits: Bits
    group_size: int
    is_packed: bool

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        stored = f"{name}.weight_packed" if self.is_packed else f"{name}.weight"
        if stored not in tensors or f"{name}.weight_scale" not in tensors:
            return Plain().matrix(tensors, name, outputs, inputs)
        tensors.unread.difference_update({f"{name}.weight_shape", f"{name}.input_scale"})
        size = inputs if self.group_size == -1 else self.group_size
        groups = -(-inputs // size)
        if self.is_packed:
            words = -(-inputs * self.bits // 32)
            packed = read_of_shape(tensors, stored, (outputs, words), torch.int32)
            codes = unpack(packed, self.bits)[:, :inputs]
        else:
            codes = read_of_shape(tensors, stored, (outputs, inputs), torch.int8).int() + 2 ** (self.bits - 1)
        scales = read_scales(tensors, f"{name}.weight_scale", (outputs, groups))
        zeros = self._zeros(tensors, f"{name}.weight_zero_point", (outputs, groups), codes.device) + 2 ** (
            self.bits - 1
        )
        if self.bits == 8:
            codes, zeros = codes - 128, zeros - 128
        if f"{name}.weight_g_idx" in tensors:
            raise ConfigError(
                f"{tensors.file(stored)}: layer {name} has an order of inputs (weight_g_idx), which is "
                "not supported",
                param="model",
            )
        found = make_grouped(self.bits, codes, scales, zeros)
        if found is not None:
            return found
        index = torch.arange(inputs, device=codes.device) // size
        expanded: Tensor = scales[:, index] * (codes - zeros.expand_as(scales)[:, index])
        return expanded

    def _zeros(self, tensors: Tensors, name: str, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Return the signed zeros, of shape [outputs, groups], or a single one."""
        if name not in tensors:
            return torch.zeros(1, 1, dtype=torch.int32, device=device)
        if not self.is_packed:
            return read_of_shape(tensors, name, shape, torch.int8).int()
        outputs, groups = shape
        words = -(-outputs * self.bits // 32)
        packed = read_of_shape(tensors, name, (words, groups), torch.int32)
        zeros: Tensor = unpack(packed.T, self.bits)[:, :outputs].T - 2 ** (self.bits - 1)
        return zeros


def parse_compressed_tensors(raw: dict[str, Any]) -> CompressedIntegers | Fp8:
    """Parse quantization_config. Raises ConfigError."""
    groups = raw.get("config_groups")
    kind = raw.get("format")
    if kind not in FORMATS:
        raise _unsupported(f"format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _unsupported("config_groups must have one group of layers")
    [group] = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise _unsupported("the group of layers must describe its weights")
    bits, strategy, size = weights.get("num_bits"), weights.get("strategy"), weights.get("group_size")
    if kind == "float-quantized":
        if bits != 8 or weights.get("type") != "float" or strategy not in ("tensor", "channel", "block"):
            raise _unsupported(f"floats of {bits!r} bits with the strategy {strategy!r}; supported: 8 bits")
        return Fp8.parse({"weight_block_size": weights.get("block_structure")})
    if (
        isinstance(bits, float)
        or bits not in (4, 8)
        or weights.get("type") != "int"
        or strategy not in ("channel", "group")
    ):
        raise _unsupported(f"integers of {bits!r} bits with the strategy {strategy!r}; supported: 4 and 8 bits")
    group_size = size if strategy == "group" else -1
    if type(group_size) is not int or group_size == 0 or group_size < -1:
        raise _unsupported(f"group_size must be positive, got {size!r}")
    return CompressedIntegers(bits, group_size, kind == "pack-quantized")


def _unsupported(reason: str) -> ConfigError:
    return ConfigError(f"config.json: compressed-tensors: {reason}", param="model")
