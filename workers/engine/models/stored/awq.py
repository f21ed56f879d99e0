"""AWQ's format: 4 bits in groups of adjacent inputs (https://arxiv.org/abs/2306.00978; the version "gemm")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from shared.errors import ConfigError
from workers.engine.models.stored.interface import (
    Plain,
    Tensors,
    make_grouped,
    read_of_shape,
    read_scales,
    unpack,
)
from workers.engine.quantization.grouped_weight import GroupedWeight

PER_WORD = 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word of 32 bits, of the eight outputs that it holds


@dataclass(frozen=True)
class Awq:
    """AWQ's format; see `StoredFormat`."""

    scales: ClassVar[tuple[str, ...]] = (".scales",)
    group_size: int

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Awq:
        """Parse quantization_config. Raises ConfigError."""
        bits = raw.get("bits", raw.get("w_bit"))
        if bits != 4:
            raise ConfigError(f"config.json: AWQ with bits {bits!r} is not supported; supported: 4", param="model")
        version = str(raw.get("version", "gemm")).lower()
        if version != "gemm":
            raise ConfigError(f"config.json: version of AWQ must be gemm, got {version}", param="model")
        group = raw.get("group_size", raw.get("q_group_size", 128))
        if type(group) is not int or group == 0 or group < -1:
            raise ConfigError(
                f"config.json: group_size of AWQ must be -1 or positive, got {group!r}", param="model"
            )
        return cls(group)

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        if f"{name}.qweight" not in tensors:
            return Plain().matrix(tensors, name, outputs, inputs)
        size = inputs if self.group_size == -1 else self.group_size
        groups, words = -(-inputs // size), outputs // PER_WORD
        packed = read_of_shape(tensors, f"{name}.qweight", (inputs, words), torch.int32)
        zeros = _in_order(read_of_shape(tensors, f"{name}.qzeros", (groups, words), torch.int32))
        scales = read_scales(tensors, f"{name}.scales", (groups, outputs)).T
        codes = _in_order(packed)
        found = make_grouped(4, codes, scales, zeros)
        if found is not None:
            return found
        index = torch.arange(inputs, device=codes.device) // size
        return scales[:, index] * (codes - zeros[:, index])


def _in_order(packed: Tensor) -> Tensor:
    """Return the integers in [n, outputs / 8] int32 as [outputs, n]."""
    found = unpack(packed, 4).view(len(packed), -1, PER_WORD)
    return found[:, :, PLACES].flatten(1).T
