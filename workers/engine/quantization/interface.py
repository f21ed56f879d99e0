"""What a weight format of linear layers provides."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from workers.engine.quantization.cpp_linear import Buffers


class Linear(Protocol):
    """x @ weight.T + bias: [T, in] to [T, out]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Quantization(Protocol):
    """A weight format of linear layers, applied to float weights while a model is loaded.

    Attributes:
        device_types: kinds of torch devices that it serves; empty for all.
        cost_without_cpp: what a user loses where the C++ kernels cannot be built.
    """

    @property
    def device_types(self) -> frozenset[str]: ...

    @property
    def cost_without_cpp(self) -> str: ...

    def torch_linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> Linear:
        """Return the layer in plain torch; `weights` are [out, in], and their outputs are joined."""

    def cpp_linear(
        self, library: ctypes.CDLL, buffers: Buffers | None, weights: Sequence[Tensor], bias: Tensor | None
    ) -> Linear:
        """Return the layer by the C++ kernels; without `buffers` each result is a tensor of its own."""
