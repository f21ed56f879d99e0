"""Linear layers computed by the C++ kernels, for float32 on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.engine.quantization.packed_arrays import PackedArrays


class OutputBuffers:
    """Named float32 tensors for results, reused until another shape is requested."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the buffer of that name, new or with its last contents."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != shape:
            kept = self._kept[name] = torch.empty(shape)
        return kept


def _row_pointers(weight: Tensor) -> Tensor:
    """Return the addresses of the rows of `weight` [out, in]: [out] int64."""
    return weight.data_ptr() + torch.arange(len(weight)) * weight.stride(0) * weight.element_size()


class CppLinear:
    """Linear layer with a float32 weight in panels of columns; see product.cpp.

    Args:
        buffers: holds results, which the next call overwrites; None returns a new tensor for each.
        arrays: holds the packed weight. If it is filled, only the shapes of `weights` are used.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        buffers: OutputBuffers | None,
        weights: Sequence[Tensor],
        bias: Tensor | None,
        arrays: PackedArrays,
    ) -> None:
        self._library = library
        self._buffers = buffers
        self._outputs, self._inputs = sum(map(len, weights)), weights[0].shape[1]
        self._bias = bias
        self._bias_address = None if bias is None else bias.data_ptr()
        panel = library.hr_panel()
        self._columns = -(-self._outputs // panel) * panel
        self._take(arrays)
        if not arrays.filled:
            whole = [weight.contiguous() for weight in weights]  # must live until they are packed
            self._pack(torch.cat([_row_pointers(weight) for weight in whole]))

    def __call__(self, x: Tensor) -> Tensor:
        rows = len(x)
        out = self._out(rows)
        self._multiply(x.data_ptr(), out.data_ptr(), rows)
        return out

    @property
    def packed_address(self) -> int:
        """Address of the weight, packed as product.cpp says."""
        return self._packed_address

    def _out(self, rows: int) -> Tensor:
        if self._buffers is None:
            return torch.empty(rows, self._outputs)
        return self._buffers.take(f"linear-{self._outputs}-{self._inputs}", rows, self._outputs)

    def _take(self, arrays: PackedArrays) -> None:
        self._packed = arrays.take(self._columns * self._inputs, torch.float32)
        self._packed_address: int = self._packed.data_ptr()

    def _pack(self, rows: Tensor) -> None:
        self._library.hr_pack(rows.data_ptr(), self._packed_address, self._outputs, self._inputs)

    def _multiply(self, x: int, out: int, rows: int) -> None:
        self._library.hr_product(
            x, self._packed_address, self._bias_address, out, rows, self._inputs, self._outputs
        )
