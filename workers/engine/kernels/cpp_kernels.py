"""The kernels in C++, for float32 on the CPU. A row's bits depend neither on its neighbours nor on its chunk.

Intermediate results live in buffers that the next layer, and the next step of the same size, use again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workers.engine.execution.paged_attention import LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import HeadLayout, Linear
from workers.engine.kernels.linear import activation_levels

_POINTER, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "hr_add_rms_norm": [_POINTER] * 4 + [_COUNT] * 2 + [_FLOAT],
    "hr_silu_mul": [_POINTER] * 2 + [_COUNT] * 2,
    "hr_rope_and_cache": [_POINTER] * 3 + [_FLOAT] + [_POINTER] * 5 + [_COUNT] * 6 + [_POINTER] * 3,
    "hr_attention": [_POINTER] * 6 + [_COUNT] * 6 + [_POINTER],
    "hr_pack": [_POINTER] * 2 + [_COUNT] * 2,
    "hr_product": [_POINTER] * 4 + [_COUNT] * 3,
    "hr_int8_pack": [_POINTER] * 3 + [_COUNT] * 2,
    "hr_int8_product": [_POINTER] * 5 + [_COUNT] * 3 + [_FLOAT],
}


class Buffers:
    """Uninitialized float32 tensors by name, kept until another shape is asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or kept.shape != shape:
            kept = self._kept[name] = torch.empty(shape)
        return kept


class CompiledKernels:
    """See `Kernels`. A result is valid until the same method is called again.

    Args:
        library: what `build.load_library` made.
        int8: whether linear layers are quantized.
    """

    recordable = False

    def __init__(self, library: ctypes.CDLL, *, int8: bool) -> None:
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        library.hr_panel.restype = _COUNT
        self._library = library
        self._int8 = int8
        self._buffers = Buffers()

    def linear(self, weights: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False) -> Linear:
        made = CompiledInt8Linear if self._int8 else CompiledLinear
        return made(self._library, None if keep else self._buffers, weights, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(None, x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x.data_ptr(), residual, weight, eps)

    def _norm(self, x: int | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, size = residual.shape
        out = self._buffers.take("norm", rows, size)
        pointers = (x, residual.data_ptr(), weight.data_ptr(), out.data_ptr())
        self._library.hr_add_rms_norm(*pointers, rows, size, eps)
        return out

    def rope_and_cache(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        qk_norms: tuple[Tensor, Tensor] | None,
        cache: LayerCache,
        step: StepInputs,
    ) -> Tensor:
        queries = self._buffers.take("queries", len(qkv), layout.num_heads, layout.dim)
        norms = (None, None) if qk_norms is None else (qk_norms[0].data_ptr(), qk_norms[1].data_ptr())
        self._library.hr_rope_and_cache(
            qkv.data_ptr(),
            *norms,
            layout.norm_eps,
            layout.cos.data_ptr(),
            layout.sin.data_ptr(),
            *_rows(step),
            layout.num_heads,
            layout.num_kv_heads,
            layout.dim,
            cache.block_size,
            queries.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
        )
        return queries

    def attention(self, queries: Tensor, cache: LayerCache, step: StepInputs) -> Tensor:
        rows, heads, dim = queries.shape
        out = self._buffers.take("attended", rows, heads * dim)
        self._library.hr_attention(
            queries.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            *_rows(step),
            heads,
            cache.keys.shape[1],
            dim,
            cache.block_size,
            out.data_ptr(),
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, size = len(gate_up), gate_up.shape[1] // 2
        out = self._buffers.take("activated", rows, size)
        self._library.hr_silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, size)
        return out


def _rows(step: StepInputs) -> tuple[int, int, int, int, int]:
    """Where positions, sequences and block tables are, the tables' width, and the number of rows."""
    tables = step.block_tables
    return (
        step.positions.data_ptr(),
        step.sequences.data_ptr(),
        tables.data_ptr(),
        tables.shape[1],
        len(step.positions),
    )


def _row_pointers(weight: Tensor) -> Tensor:
    """Where each row of `weight` [out, in] begins, [out] int64."""
    return weight.data_ptr() + torch.arange(len(weight)) * weight.stride(0) * weight.element_size()


class CompiledLinear:
    """A float32 weight in panels of columns; see product.cpp.

    Args:
        buffers: where results are put, for the next call to use again; None makes each a tensor of its own.
    """

    def __init__(
        self, library: ctypes.CDLL, buffers: Buffers | None, weights: Sequence[Tensor], bias: Tensor | None
    ) -> None:
        self._library = library
        self._buffers = buffers
        self._outputs, self._inputs = sum(map(len, weights)), weights[0].shape[1]
        self._bias = bias
        self._bias_at = None if bias is None else bias.data_ptr()
        panel = library.hr_panel()
        self._columns = -(-self._outputs // panel) * panel
        whole = [weight.contiguous() for weight in weights]  # kept until they are packed
        self._pack(torch.cat([_row_pointers(weight) for weight in whole]))

    def __call__(self, x: Tensor) -> Tensor:
        rows = len(x)
        out = self._out(rows)
        self._multiply(x.data_ptr(), out.data_ptr(), rows)
        return out

    def _out(self, rows: int) -> Tensor:
        if self._buffers is None:
            return torch.empty(rows, self._outputs)
        return self._buffers.take(f"linear-{self._outputs}-{self._inputs}", rows, self._outputs)

    def _pack(self, rows: Tensor) -> None:
        self._packed = torch.empty(self._columns * self._inputs)
        self._packed_at = self._packed.data_ptr()
        self._library.hr_pack(rows.data_ptr(), self._packed_at, self._outputs, self._inputs)

    def _multiply(self, x: int, out: int, rows: int) -> None:
        self._library.hr_product(x, self._packed_at, self._bias_at, out, rows, self._inputs, self._outputs)


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
