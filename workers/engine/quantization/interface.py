"""Interface of a weight format of linear layers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from workers.engine.quantization.cpp_linear import OutputBuffers
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.packed_arrays import PackedArrays


class Linear(Protocol):
    """Linear layer, x @ weight.T + bias: [T, in] to [T, out]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Quantization(Protocol):
    """Weight format of linear layers, applied to float weights while a model is loaded.

    Attributes:
        identity: equal for formats that make the same of equal weights.
        cost_without_cpp: what is lost where the C++ kernels cannot be built, for the log.
    """

    @property
    def identity(self) -> str: ...

    @property
    def cost_without_cpp(self) -> str: ...

    @property
    def head(self) -> Quantization:
        """Format of the output head."""

    def torch_linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> Linear:
        """Return a layer in plain torch. `weights` are [out, in]; their outputs are concatenated."""

    def grouped(self, weights: Sequence[Tensor]) -> GroupedWeight | None:
        """Return the joined weights in groups, for a GPU's kernels; None for a format without groups."""

    def cpp_linear(
        self,
        library: ctypes.CDLL,
        buffers: OutputBuffers | None,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        arrays: PackedArrays,
    ) -> Linear:
        """Return a layer computed by the C++ kernels, with its weight in `arrays`.

        Without `buffers`, each result is a new tensor.
        """
