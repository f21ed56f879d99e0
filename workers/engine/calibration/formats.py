"""Weight formats of a model that is being calibrated, and of one that has been."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import linear

from workers.engine.calibration.feedback import Product, round_with_feedback
from workers.engine.quantization.cpp_linear import CppLinear, OutputBuffers
from workers.engine.quantization.grouped_weight import GroupedWeight, quantize_groups
from workers.engine.quantization.int4 import GROUP, GroupedIntegers
from workers.engine.quantization.interface import Linear
from workers.engine.quantization.join import join
from workers.engine.quantization.packed_arrays import OWN_ARRAYS, PackedArrays


class RoundingLinear:
    """Linear layer that is rounded by the first rows after `begin`, which it then computes with rounded weights."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, product: Product) -> None:
        self._weights = weights
        self._bias = bias
        self._product = product
        self._begun = False
        self._rounded: GroupedWeight | None = None

    def begin(self) -> None:
        self._begun = True

    def __call__(self, x: Tensor) -> Tensor:
        if self._begun and self._rounded is None:
            inputs = x.T.contiguous()
            moments = self._product(inputs, inputs)
            self._rounded = round_with_feedback(join(self._weights), moments, GROUP, self._product)
        weight = join(self._weights) if self._rounded is None else self._rounded.dequantize().contiguous()
        out = self._product(x, weight)
        return out if self._bias is None else out + self._bias

    def rounded(self) -> GroupedWeight:
        """Return the rounded weight; one that got no rows is rounded to the nearest values."""
        if self._rounded is not None:
            return self._rounded
        return quantize_groups(join(self._weights), 4, GROUP, narrow=True)


class Calibration(GroupedIntegers):
    """int4 format of a model that is being calibrated; see `Quantization`.

    Attributes:
        layers: the layers with 4 bits, in the order in which they were loaded.
    """

    def __init__(self) -> None:
        super().__init__(4)
        self.layers: list[RoundingLinear] = []

    def torch_linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> Linear:
        return self._layer(weights, bias, linear)

    def cpp_linear(
        self,
        library: ctypes.CDLL,
        buffers: OutputBuffers | None,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        arrays: PackedArrays,
    ) -> Linear:
        def product(x: Tensor, weight: Tensor) -> Tensor:
            return CppLinear(library, None, [weight], None, OWN_ARRAYS)(x)

        return self._layer(weights, bias, product)

    def _layer(self, weights: Sequence[Tensor], bias: Tensor | None, product: Product) -> Linear:
        if weights[0].is_meta:
            return GroupedIntegers.torch_linear(self, weights, bias)
        self.layers.append(RoundingLinear(weights, bias, product))
        return self.layers[-1]


class CalibratedIntegers(GroupedIntegers):
    """int4 format with weights that are rounded already; see `Quantization`.

    They are taken in the order in which a model is loaded. A copy begins with the first one again.

    Args:
        identity: equal for equal weights of one model.
    """

    def __init__(self, weights: Sequence[GroupedWeight], identity: str) -> None:
        super().__init__(4)
        self.identity = f"int4 {identity}"
        self._rounded = weights
        self._taken = 0

    def _quantize(self, weights: Sequence[Tensor]) -> GroupedWeight:
        found = self._rounded[self._taken]
        self._taken += 1
        assert (found.outputs, found.inputs) == (sum(map(len, weights)), weights[0].shape[1])
        return found.to(weights[0].device)
