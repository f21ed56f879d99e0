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


class LinearForm(ctypes.Structure):
    """A linear layer as the C++ kernels see it: `Linear` of kernels/linear.h, where the fields are explained."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("format", "inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("packed", "scales", "bias", "order")),
        *((name, ctypes.c_int64) for name in ("group", "bits", "width")),
        ("levels", ctypes.c_float),
    )


FLOATS, INT8, GROUPS = range(3)  # values of `format`


class PackedLinear:
    """Linear layer whose weight is packed for the C++ kernels.

    Args:
        buffers: holds results, which the next call overwrites; None returns a new tensor for each.
        form: addresses of tensors that the subclass keeps.
    """

    def __init__(self, library: ctypes.CDLL, buffers: OutputBuffers | None, form: LinearForm) -> None:
        self.form = form
        self._multiply = library.hr_linear
        self._buffers = buffers
        self._address = ctypes.addressof(form)
        self._name = f"linear-{form.outputs}-{form.inputs}"

    def __call__(self, x: Tensor) -> Tensor:
        rows, outputs = len(x), self.form.outputs
        buffers = self._buffers
        out = torch.empty(rows, outputs) if buffers is None else buffers.take(self._name, rows, outputs)
        self._multiply(self._address, x.data_ptr(), out.data_ptr(), rows)
        return out


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's data."""
    return None if tensor is None else tensor.data_ptr()


class CppLinear(PackedLinear):
    """Linear layer with a float32 weight in panels of columns; see product.cpp.

    Args:
        buffers: see `PackedLinear`.
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
        self._outputs, self._inputs = sum(map(len, weights)), weights[0].shape[1]
        self._bias = bias
        panel = library.hr_panel()
        self._columns = -(-self._outputs // panel) * panel
        self._take(arrays)
        if not arrays.filled:
            whole = [weight.contiguous() for weight in weights]  # must live until they are packed
            self._pack(torch.cat([_row_pointers(weight) for weight in whole]))
        super().__init__(library, buffers, self._form())

    @property
    def packed_address(self) -> int:
        """Address of the weight, packed as product.cpp says."""
        return self._packed.data_ptr()

    def _take(self, arrays: PackedArrays) -> None:
        self._packed = arrays.take(self._columns * self._inputs, torch.float32)

    def _pack(self, rows: Tensor) -> None:
        self._library.hr_pack(rows.data_ptr(), self._packed.data_ptr(), self._outputs, self._inputs)

    def _form(self) -> LinearForm:
        return LinearForm(
            format=FLOATS,
            inputs=self._inputs,
            outputs=self._outputs,
            packed=self._packed.data_ptr(),
            bias=address(self._bias),
        )
