"""Weights as integers of 4 or 8 bits with a scale and a zero for each group of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from workers.engine.quantization.join import join

Bits = Literal[4, 8]
STEP = 8  # inputs that the kernels take at once; it divides the size of a group
MAX_GROUP = 256  # so that no sum of a group overflows 32 bits


_BY_OUTPUT = ("codes", "scales", "zeros", "factors")  # fields of `GroupedWeight` with a row for each output


@dataclass(frozen=True)
class GroupedWeight:
    """Weight [out, in] in groups of `group` inputs: factor of the output * scale * (code - zero).

    Attributes:
        codes: [out, groups * group], uint8 below 16 for 4 bits, int8 for 8 bits; those after the inputs are unused.
        scales, zeros: [out, groups] float16.
        factors: [out] float32, powers of 2, which keep small scales within the range of float16.
        inputs: number of inputs.
        order: [in] int64, the input of each place, where groups are not of adjacent inputs.
        is_float: the codes are the bits of float8_e4m3fn; scales and zeros are then float32.
        narrow: scales are integers below 256, and zeros sixteenths below 16, of which the C++ kernels keep bytes.
    """

    bits: Bits
    group: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor
    factors: Tensor
    inputs: int
    order: Tensor | None = None
    is_float: bool = False
    narrow: bool = False

    @property
    def outputs(self) -> int:
        return len(self.codes)

    @property
    def groups(self) -> int:
        return self.scales.shape[1]

    def to(self, device: torch.device) -> GroupedWeight:
        """Return the weight on a device."""
        order = None if self.order is None else self.order.to(device)
        return replace(self, order=order, **self._each(lambda part: part.to(device)))

    def rows(self, index: Tensor | slice) -> GroupedWeight:
        """Return the outputs of these numbers, in this order."""
        return replace(self, **self._each(lambda part: part[index]))

    def empty_on(self, device: torch.device) -> GroupedWeight:
        """Return a weight of the same form on a device, with any values."""
        return replace(self, **self._each(lambda part: torch.empty_like(part, device=device)))

    def set_rows(self, begin: int, part: GroupedWeight) -> None:
        """Replace the outputs from `begin` on by those of `part`."""
        for name in _BY_OUTPUT:
            getattr(self, name)[begin : begin + part.outputs] = getattr(part, name)

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {name: change(getattr(self, name)) for name in _BY_OUTPUT}

    def dequantize(self) -> Tensor:
        """Return the weight in float32, [out, in]."""
        codes = self.codes.view(torch.float8_e4m3fn) if self.is_float else self.codes
        codes = codes.view(self.outputs, self.groups, self.group).float()
        values = (
            self.scales.float()[..., None] * (codes - self.zeros.float()[..., None]) * self.factors[:, None, None]
        )
        found = values.view(self.outputs, -1)[:, : self.inputs]
        if self.order is None:
            return found
        return torch.empty_like(found).index_copy_(1, self.order, found)


def quantize_groups(weight: Tensor, bits: Bits, group: int, *, narrow: bool = False) -> GroupedWeight:
    """Round a weight [out, in]: the smallest and the largest value of a group become the ends of its range."""
    grouped = pad(weight.float(), (0, -weight.shape[1] % group)).view(len(weight), -1, group)
    grid = fit_grid(grouped, bits, narrow=narrow)
    codes = grid.codes(grouped).to(torch.uint8 if bits == 4 else torch.int8).flatten(1)
    return GroupedWeight(bits, group, codes, grid.scales, grid.zeros, grid.factors, weight.shape[1], narrow=narrow)


@dataclass(frozen=True)
class Grid:
    """Values that a group may have: those of codes from `least` to `least` + 2 ** bits - 1; see `GroupedWeight`."""

    bits: Bits
    scales: Tensor
    zeros: Tensor
    factors: Tensor
    narrow: bool

    @property
    def least(self) -> int:
        return 0 if self.bits == 4 else -128

    def codes(self, values: Tensor) -> Tensor:
        """Return the integers in float32 of the nearest values of each group, [out, groups, group]."""
        found = (values / self.steps[..., None] + self.zeros.float()[..., None]).round()
        return found.clamp(self.least, self.least + 2**self.bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of integers in float32."""
        return self.steps[..., None] * (codes - self.zeros.float()[..., None])

    def where(self, condition: Tensor, other: Grid) -> Grid:
        """Return the grids of the groups for which `condition` [out, groups] holds, else those of `other`."""
        scales = torch.where(condition, self.scales, other.scales)
        return replace(self, scales=scales, zeros=torch.where(condition, self.zeros, other.zeros))

    def with_steps(self, steps: Tensor) -> Grid:
        """Return the grid with the nearest scales to steps [out, groups] that can be stored; none is 0."""
        scales = steps / self.factors[:, None]
        scales = scales.round().clamp(1, 255) if self.narrow else scales.clamp_min(2.0**-24)
        return replace(self, scales=scales.half())

    def with_zeros(self, zeros: Tensor) -> Grid:
        """Return the grid with the nearest zeros [out, groups] that can be stored."""
        return replace(self, zeros=((zeros * 16).round().clamp(0, 255) / 16 if self.narrow else zeros).half())

    @property
    def steps(self) -> Tensor:
        """Differences of adjacent values, [out, groups]."""
        return self.scales.float() * self.factors[:, None]


def fit_grid(
    grouped: Tensor, bits: Bits, *, narrow: bool = False, factors: Tensor | None = None, shrunk: float = 1.0
) -> Grid:
    """Return the grids of groups [out, groups, group] from the least to the largest value, both times `shrunk`.

    Args:
        narrow: see `GroupedWeight`; the range then includes 0.
        factors: those of the outputs, if they are given.
    """
    low, high = (bound * shrunk for bound in grouped.aminmax(dim=-1))
    least = 0 if bits == 4 else -128
    if narrow:
        low, high = low.clamp_max(0), high.clamp_min(0)
    steps = (high - low) / (2**bits - 1)
    # the zero would leave the range of float16: one value for the group
    is_flat = (steps <= low.abs() * 2.0**-12) & (not narrow)
    steps = torch.where(is_flat, torch.where(low == 0, 1.0, low.abs()), steps)
    if factors is None:
        largest = steps.amax(-1)
        factors = torch.where(largest > 0, largest, 1.0).log2().floor().exp2() / (128 if narrow else 1)
    grid = Grid(bits, steps, low, factors, narrow).with_steps(steps)
    return grid.with_zeros(torch.where(is_flat, -low.sign(), least - low / grid.steps))


def alike(weights: Sequence[GroupedWeight]) -> bool:
    """Return whether weights have the same form, so that they can be joined."""
    first = weights[0]
    return all(
        (each.bits, each.group, each.inputs, each.is_float, each.narrow)
        == (first.bits, first.group, first.inputs, first.is_float, first.narrow)
        and (each.order is None) == (first.order is None)
        and (each.order is None or first.order is None or torch.equal(each.order, first.order))
        for each in weights[1:]
    )


def concatenate(weights: Sequence[GroupedWeight]) -> GroupedWeight:
    """Join weights of the same inputs and form along their outputs."""
    if len(weights) == 1:
        return weights[0]
    first = weights[0]
    joined: dict[str, Any] = {name: join([getattr(each, name) for each in weights]) for name in _BY_OUTPUT}
    return replace(first, **joined)
