"""Weights in the model's own dtype."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from workers.engine.quantization.cpp_linear import CppLinear, OutputBuffers
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.join import join
from workers.engine.quantization.packed_arrays import PackedArrays
from workers.engine.quantization.torch_linear import make_linear


class Unquantized:
    """Format of unquantized weights; see `Quantization`."""

    identity = "none"
    cost_without_cpp = "about half the speed"

    @property
    def head(self) -> Unquantized:
        return self

    def torch_linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> Linear:
        return make_linear(join(weights), bias)

    def grouped(self, weights: Sequence[Tensor]) -> None:
        return None

    def cpp_linear(
        self,
        library: ctypes.CDLL,
        buffers: OutputBuffers | None,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        arrays: PackedArrays,
    ) -> Linear:
        return CppLinear(library, buffers, weights, bias, arrays)


UNQUANTIZED = Unquantized()
