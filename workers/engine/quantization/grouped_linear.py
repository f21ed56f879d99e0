"""Linear layers with grouped weights on the CPU.

The torch and the C++ implementation compute the same bits; see kernels/grouped.cpp.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from workers.engine.quantization.cpp_linear import GROUPS, LinearForm, OutputBuffers, PackedLinear, address
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.packed_arrays import PackedArrays
from workers.engine.quantization.row_integers import MAX_ACTIVATION, quantize_rows


class TorchGroupedLinear:
    """Slow reference in plain torch, with float64 for sums of integers, which are exact in any order."""

    def __init__(self, weight: GroupedWeight, bias: Tensor | None) -> None:
        self._weight = weight
        self._codes = weight.codes.view(weight.outputs, weight.groups, -1).transpose(0, 1).double()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._weight
        ordered = x.float() if weight.order is None else x.float()[:, weight.order]
        integers, scales = quantize_rows(ordered, MAX_ACTIVATION)
        padded = pad(integers.double(), (0, weight.groups * weight.group - weight.inputs))
        rows = padded.view(len(x), weight.groups, weight.group).transpose(0, 1)
        total = x.new_zeros(len(x), weight.outputs, dtype=torch.float32)
        for index, (row, codes) in enumerate(zip(rows, self._codes, strict=True)):
            shift = weight.zeros[:, index].float() * row.sum(-1, keepdim=True).float()
            total += (linear(row, codes).float() - shift) * weight.scales[:, index].float()
        out = total * (scales[:, None] * weight.factors)
        return (out if self._bias is None else out + self._bias).to(x.dtype)


class CppGroupedLinear(PackedLinear):
    """Linear layer in C++; see grouped.cpp.

    Args:
        buffers: see `PackedLinear`.
        weight: only its shapes are used if `arrays` is filled.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        buffers: OutputBuffers | None,
        weight: GroupedWeight,
        bias: Tensor | None,
        arrays: PackedArrays,
    ) -> None:
        self._library = library
        self._bias = bias
        panel = library.hr_panel()
        panels = -(-weight.outputs // panel)
        self._width = 1 if weight.narrow else 2  # bytes of a scale, and of a zero
        bytes_per_group = 2 * self._width * panel + weight.group * panel * weight.bits // 8
        self._packed = arrays.take(panels * weight.groups * bytes_per_group, torch.uint8)
        self._factors = arrays.take(weight.outputs, torch.float32)
        self._order = None if weight.order is None else arrays.take(weight.inputs, torch.int64)
        if not arrays.filled:
            self._pack(weight)
        super().__init__(library, buffers, self._form(weight))

    def _pack(self, weight: GroupedWeight) -> None:
        codes, scales, zeros = (part.contiguous() for part in (weight.codes, weight.scales, weight.zeros))
        if weight.narrow:
            scales, zeros = scales.to(torch.uint8), (zeros * 16).to(torch.uint8)
        pointers = (codes.data_ptr(), scales.data_ptr(), zeros.data_ptr(), self._packed.data_ptr())
        sizes = (weight.outputs, weight.groups, weight.group, weight.bits, self._width)
        self._library.hr_group_pack(*pointers, *sizes)
        self._factors.copy_(weight.factors)
        if self._order is not None and weight.order is not None:
            self._order.copy_(weight.order)

    def _form(self, weight: GroupedWeight) -> LinearForm:
        return LinearForm(
            format=GROUPS,
            inputs=weight.inputs,
            outputs=weight.outputs,
            packed=self._packed.data_ptr(),
            scales=self._factors.data_ptr(),
            bias=address(self._bias),
            order=address(self._order),
            group=weight.group,
            bits=weight.bits,
            width=self._width,
            levels=MAX_ACTIVATION,
        )
