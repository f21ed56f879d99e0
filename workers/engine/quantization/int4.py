"""int4 format: linear layers of 4 bits with a scale and a zero for each group of inputs, made from float weights.

On the CPU, activations have 16 bits with a scale for each row; on a GPU, they keep their type.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.quantization.cpp_linear import OutputBuffers
from workers.engine.quantization.grouped_linear import CppGroupedLinear, TorchGroupedLinear
from workers.engine.quantization.grouped_weight import Bits, GroupedWeight, quantize_groups
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.packed_arrays import PackedArrays

GROUP = 16  # of integers of 4 bits, with a scale and a zero of 8 bits
WIDE_GROUP = 64  # of integers of 8 bits, with a scale and a zero of 16 bits
_VALUES_AT_ONCE = 2**21  # rounding needs several copies of them


class GroupedIntegers:
    """Integers of so many bits in groups; see `Quantization`.

    With 4 bits, the output head and other sensitive layers have 8: docs/weights.md has what each costs.
    """

    cost_without_cpp = "int4 without its speed"

    def __init__(self, bits: Bits) -> None:
        self._bits = bits
        self._group = GROUP if bits == 4 else WIDE_GROUP
        self.identity = f"int{bits}"

    @property
    def head(self) -> GroupedIntegers:
        return GroupedIntegers(8)

    def torch_linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> Linear:
        return TorchGroupedLinear(self._quantize(weights), bias)

    def grouped(self, weights: Sequence[Tensor]) -> GroupedWeight:
        return self._quantize(weights)

    def cpp_linear(
        self,
        library: ctypes.CDLL,
        buffers: OutputBuffers | None,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        arrays: PackedArrays,
    ) -> Linear:
        weight = self._shape_of(weights) if arrays.filled else self._quantize(weights)
        return CppGroupedLinear(library, buffers, weight, bias, arrays)

    def _quantize(self, weights: Sequence[Tensor]) -> GroupedWeight:
        """Return the joined weights in groups, a few rows at a time."""
        found = self._shape_of(weights).empty_on(weights[0].device)
        rows, begin = max(1, _VALUES_AT_ONCE // weights[0].shape[1]), 0
        for part in (part for weight in weights for part in torch.split(weight, rows)):
            found.set_rows(begin, self._round(part))
            begin += len(part)
        return found

    def _shape_of(self, weights: Sequence[Tensor]) -> GroupedWeight:
        """Return a weight without values, of the form that `_quantize` gives."""
        outputs, inputs = sum(map(len, weights)), weights[0].shape[1]
        return self._round(torch.empty(outputs, inputs, device="meta"))

    def _round(self, weight: Tensor) -> GroupedWeight:
        return quantize_groups(weight, self._bits, self._group, narrow=self._bits == 4)
