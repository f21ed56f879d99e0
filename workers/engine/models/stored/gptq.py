"""GPTQ's format: 4 or 8 bits in groups of adjacent inputs or, with desc_act, of inputs by their importance.

https://arxiv.org/abs/2210.17323; the tensors are those of AutoGPTQ and GPTQModel.
"""

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
from workers.engine.quantization.grouped_weight import Bits, GroupedWeight


@dataclass(frozen=True)
class Gptq:
    """GPTQ's format; see `StoredFormat`.

    Attributes:
        zero_offset: what is added to stored zeros: 1, or 0 in version 2 of the format.
    """

    scales: ClassVar[tuple[str, ...]] = (".scales",)
    bits: Bits
    group_size: int
    zero_offset: int

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Gptq:
        """Parse quantization_config. Raises ConfigError."""
        bits, group = raw.get("bits"), raw.get("group_size", -1)
        if isinstance(bits, float) or bits not in (4, 8):
            raise ConfigError(
                f"config.json: GPTQ with bits {bits!r} is not supported; supported: 4, 8", param="model"
            )
        if type(group) is not int or group == 0 or group < -1:
            raise ConfigError(
                f"config.json: group_size of GPTQ must be -1 or positive, got {group!r}", param="model"
            )
        if raw.get("dynamic"):
            raise ConfigError(
                "config.json: GPTQ with rules for single layers (dynamic) is not supported", param="model"
            )
        kind = raw.get("checkpoint_format", "gptq")
        if kind not in ("gptq", "gptq_v2"):
            raise ConfigError(
                f"config.json: checkpoint_format of GPTQ must be gptq or gptq_v2, got {kind!r}", param="model"
            )
        return cls(bits, group, int(kind == "gptq"))

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        if f"{name}.qweight" not in tensors:
            return Plain().matrix(tensors, name, outputs, inputs)
        per_word = 32 // self.bits
        size = inputs if self.group_size == -1 else self.group_size
        groups = -(-inputs // size)
        packed = read_of_shape(tensors, f"{name}.qweight", (inputs // per_word, outputs), torch.int32)
        zero_shape = (groups, outputs // per_word)
        zeros = unpack(read_of_shape(tensors, f"{name}.qzeros", zero_shape, torch.int32), self.bits).T
        zeros = (zeros + self.zero_offset) & (2**self.bits - 1)
        scales = read_scales(tensors, f"{name}.scales", (groups, outputs)).T
        codes = unpack(packed.T, self.bits)
        if self.bits == 8:
            codes, zeros = codes - 128, zeros - 128
        index = torch.arange(inputs, device=codes.device) // size
        if f"{name}.g_idx" in tensors:
            index = _group_of_input(tensors, f"{name}.g_idx", inputs, groups)
        return self._grouped(codes, scales, zeros, index)

    def _grouped(self, codes: Tensor, scales: Tensor, zeros: Tensor, index: Tensor) -> Tensor | GroupedWeight:
        """Return the packed weight; floats if the groups of `index` are not all of the same size."""
        order = torch.argsort(index, stable=True)
        places = torch.arange(len(index), device=index.device)
        size = -(-len(index) // scales.shape[1])
        if index.device.type == "meta" or torch.equal(index[order], places // size):
            is_plain = index.device.type == "meta" or torch.equal(order, places)
            found = make_grouped(self.bits, codes[:, order], scales, zeros, None if is_plain else order)
            if found is not None:
                return found
        return scales[:, index] * (codes - zeros[:, index])


def _group_of_input(tensors: Tensors, name: str, inputs: int, groups: int) -> Tensor:
    index = read_of_shape(tensors, name, (inputs,), torch.int32, torch.int64).long()
    if index.device.type != "meta" and not 0 <= int(index.min()) <= int(index.max()) < groups:
        raise ConfigError(f"{tensors.file(name)}: tensor {name} must have values below {groups}", param="model")
    return index
