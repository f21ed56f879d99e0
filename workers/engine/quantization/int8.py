"""int8 format: weights of 8 bits with a scale per output.

On the CPU, activations have 16 bits with a scale per row, and the two implementations compute the same integers
(kernels/int8.cpp). On a GPU, activations keep their type.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from workers.engine.quantization.cpp_linear import INT8, CppLinear, LinearForm, OutputBuffers, address
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.join import join
from workers.engine.quantization.packed_arrays import PackedArrays
from workers.engine.quantization.row_integers import MAX_ACTIVATION, quantize_rows

_WEIGHT_LEVELS = 127
_QUAD = 4  # inputs that the CPU's kernel takes at once
_GROUP = 128  # inputs that a GPU's kernel takes at once


class Int8:
    """int8 format; see `Quantization`."""

    identity = "int8"
    cost_without_cpp = "int8 without its speed"

    @property
    def head(self) -> Int8:
        return self

    def torch_linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> Linear:
        return TorchInt8Linear(join(weights), bias)

    def grouped(self, weights: Sequence[Tensor]) -> GroupedWeight:
        """Return groups without scales of their own."""
        weight = join(weights)
        integers, factors = quantize_rows(weight.float(), _WEIGHT_LEVELS)
        codes = pad(integers.to(torch.int8), (0, -weight.shape[1] % _GROUP))
        scales = torch.ones(len(codes), codes.shape[1] // _GROUP, dtype=torch.float16, device=codes.device)
        return GroupedWeight(8, _GROUP, codes, scales, torch.zeros_like(scales), factors, weight.shape[1])

    def cpp_linear(
        self,
        library: ctypes.CDLL,
        buffers: OutputBuffers | None,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        arrays: PackedArrays,
    ) -> Linear:
        return CppInt8Linear(library, buffers, weights, bias, arrays)


class TorchInt8Linear:
    """Slow reference in plain torch.

    It uses float64, in which sums of integers are exact in any order, and so takes eight bytes per weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        integers, self._scales = quantize_rows(weight.float(), _WEIGHT_LEVELS)
        self._weight = integers.double()
        self._bias = bias
        self._levels = activation_levels(int(integers.abs().sum(-1).max()))

    def __call__(self, x: Tensor) -> Tensor:
        integers, scales = quantize_rows(x.float(), self._levels)
        out = linear(integers.double(), self._weight).float() * (scales[:, None] * self._scales)
        return (out if self._bias is None else out + self._bias).to(x.dtype)


class CppInt8Linear(CppLinear):
    """Linear layer with int8 weights and int16 activations; see int8.cpp."""

    def _take(self, arrays: PackedArrays) -> None:
        self._padded = -(-self._inputs // _QUAD) * _QUAD
        self._packed = arrays.take(self._columns * self._padded, torch.uint8)
        self._scales = arrays.take(self._outputs, torch.float32)
        self._largest_sum = arrays.take(1, torch.int64)

    def _pack(self, rows: Tensor) -> None:
        arrays = (self._packed, self._scales, self._largest_sum)
        pointers = (rows.data_ptr(), *(array.data_ptr() for array in arrays))
        self._library.hr_int8_pack(*pointers, self._outputs, self._inputs)

    def _form(self) -> LinearForm:
        return LinearForm(
            format=INT8,
            inputs=self._inputs,
            outputs=self._outputs,
            packed=self._packed.data_ptr(),
            scales=self._scales.data_ptr(),
            bias=address(self._bias),
            group=self._padded,
            bits=8,
            levels=activation_levels(int(self._largest_sum[0])),
        )


def activation_levels(largest_sum: int) -> int:
    """Return the largest activation for which no column's sum overflows 32 bits."""
    return min(MAX_ACTIVATION, (2**31 - 1) // max(1, largest_sum))
