"""Weights of 8 bits with a scale per output, activations of 16 bits with a scale per row, on the CPU.

Both layers compute the same integers; see kernels/int8.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from workers.engine.quantization.cpp_linear import Buffers, CompiledLinear
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.torch_linear import join

_WEIGHT_LEVELS = 127
_LEAST = 1e-30  # rows smaller than it are 0


class Int8:
    """See `Quantization`."""

    device_types = frozenset({"cpu"})
    cost_without_cpp = "int8 without its speed"

    def torch_linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> Linear:
        return PlainInt8Linear(join(weights), bias)

    def cpp_linear(
        self, library: ctypes.CDLL, buffers: Buffers | None, weights: Sequence[Tensor], bias: Tensor | None
    ) -> Linear:
        return CompiledInt8Linear(library, buffers, weights, bias)


class PlainInt8Linear:
    """The slow reference in plain torch.

    Sums of whole numbers are exact in float64, whatever their order; so it is slow and needs eight bytes a weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        whole, self._scales = quantize_rows(weight.float(), _WEIGHT_LEVELS)
        self._weight = whole.double()
        self._bias = bias
        self._levels = activation_levels(int(whole.abs().sum(-1).max()))

    def __call__(self, x: Tensor) -> Tensor:
        whole, scales = quantize_rows(x.float(), self._levels)
        out = linear(whole.double(), self._weight).float() * (scales[:, None] * self._scales)
        return (out if self._bias is None else out + self._bias).to(x.dtype)


class CompiledInt8Linear(CompiledLinear):
    """An int8 weight with a scale per output, activations int16 with a scale per row; see int8.cpp."""

    def _pack(self, rows: Tensor) -> None:
        self._packed = torch.zeros(self._columns * (self._inputs + self._inputs % 2), dtype=torch.int8)
        self._scales = torch.empty(self._outputs)
        self._packed_at, self._scales_at = self._packed.data_ptr(), self._scales.data_ptr()
        pointers = (rows.data_ptr(), self._packed_at, self._scales_at)
        self._library.hr_int8_pack(*pointers, self._outputs, self._inputs)
        panel = self._library.hr_panel()
        columns = self._packed.view(self._columns // panel, -1, panel, 2)
        # a few panels at a time: torch sums int8 by way of a copy eight times as large
        most = max(int(part.abs().sum((1, 3)).max()) for part in torch.split(columns, 64))
        self._levels = activation_levels(most)

    def _multiply(self, x: int, out: int, rows: int) -> None:
        pointers = (x, self._packed_at, self._scales_at, self._bias_at, out)
        self._library.hr_int8_product(*pointers, rows, self._inputs, self._outputs, self._levels)


def activation_levels(largest_sum: int) -> int:
    """The most that an activation may be: what of 16 bits cannot overflow 32 in a column of such weights."""
    return min(2**15 - 1, (2**31 - 1) // max(1, largest_sum))


def quantize_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """[T, n] as whole numbers of at most `levels`, and the scale of each row: 0 for one of zeros, NaN where a
    number is missing or infinite.
    """
    most = x.abs().amax(-1)
    most = torch.where(x.isfinite().all(-1), most, torch.nan)
    sound = most >= _LEAST
    steps = torch.full_like(most, levels)
    whole = (x * torch.where(sound, steps / most, 0)[:, None]).round()
    scales = torch.where(sound | most.isnan(), most / steps, 0)
    return torch.where(sound[:, None], whole, 0), scales
