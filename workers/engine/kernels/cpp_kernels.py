"""Kernels in C++, for float32 on the CPU. A row's bits depend neither on its neighbours nor on its chunk.

Intermediate results are in buffers that the next layer, and the next step of the same size, reuse.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from torch import Tensor

from workers.engine.execution.paged_attention import PLAIN_ATTENTION, AttentionForm, LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import SWIGLU_LIMIT, SWIGLU_STEEPNESS, Activation, HeadLayout
from workers.engine.quantization.cpp_linear import OutputBuffers
from workers.engine.quantization.grouped_linear import CppGroupedLinear
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization
from workers.engine.quantization.packed_arrays import OWN_ARRAYS, PackedArrays
from workers.engine.quantization.unquantized import Unquantized

_NO_WINDOW = 2**62  # positions: more than any sequence has
_POINTER, _COUNT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "hr_add_rms_norm": [_POINTER] * 4 + [_COUNT] * 2 + [_FLOAT],
    "hr_activate": [_POINTER] * 2 + [_COUNT] * 3 + [_FLOAT] * 2,
    "hr_soft_cap": [_POINTER] + [_COUNT] * 2 + [_FLOAT],
    "hr_rope_and_cache": [_POINTER] * 3 + [_FLOAT] + [_POINTER] * 5 + [_COUNT] * 6 + [_POINTER] * 3,
    "hr_attention": [_POINTER] * 6 + [_COUNT] * 6 + [_FLOAT] * 2 + [_COUNT] + [_POINTER] * 2,
    "hr_pack": [_POINTER] * 2 + [_COUNT] * 2,
    "hr_product": [_POINTER] * 4 + [_COUNT] * 3,
    "hr_int8_pack": [_POINTER] * 3 + [_COUNT] * 2,
    "hr_int8_product": [_POINTER] * 5 + [_COUNT] * 3 + [_FLOAT],
    "hr_group_pack": [_POINTER] * 4 + [_COUNT] * 4,
    "hr_group_product": [_POINTER] * 6 + [_COUNT] * 5,
}


class CppKernels:
    """Kernels in C++; see `Kernels`. A result is valid until the next call of the same method.

    Args:
        library: the result of `build.load_library`.
        quantization: the weight format of linear layers.
        arrays: memory of the packed weights.
    """

    recordable = False
    exact_rows = True
    keeps_floats = False

    def __init__(self, library: ctypes.CDLL, quantization: Quantization, arrays: PackedArrays = OWN_ARRAYS) -> None:
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        library.hr_panel.restype = _COUNT
        self._library = library
        self.quantization = quantization
        self._arrays = arrays
        self._buffers = OutputBuffers()

    def with_arrays(self, arrays: PackedArrays) -> CppKernels:
        """Return kernels whose linear layers have their packed weights in `arrays`."""
        return CppKernels(self._library, copy(self.quantization), arrays)

    def with_quantization(self, quantization: Quantization) -> CppKernels:
        return CppKernels(self._library, quantization, self._arrays)

    @property
    def packed(self) -> bool:
        return self._arrays.filled

    @property
    def packed_format(self) -> str:
        """Identity of the layout of packed weights: equal for the same build and weight format."""
        return f"{Path(self._library._name).stem}-{type(self.quantization).__name__}"  # noqa: SLF001  documented

    @property
    def keeps_groups(self) -> bool:
        return isinstance(self.quantization, Unquantized)

    def linear(
        self, weights: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False, head: bool = False
    ) -> Linear:
        buffers = None if keep else self._buffers
        quantization = self.quantization.head if head else self.quantization
        return quantization.cpp_linear(self._library, buffers, weights, bias, self._arrays)

    def grouped_linear(self, weight: GroupedWeight, bias: Tensor | None, *, keep: bool = False) -> Linear:
        return CppGroupedLinear(self._library, None if keep else self._buffers, weight, bias, self._arrays)

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
            *_row_arguments(step),
            layout.num_heads,
            layout.num_kv_heads,
            layout.dim,
            cache.block_size,
            queries.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
        )
        return queries

    def attention(
        self, queries: Tensor, cache: LayerCache, step: StepInputs, form: AttentionForm = PLAIN_ATTENTION
    ) -> Tensor:
        rows, heads, dim = queries.shape
        out = self._buffers.take("attended", rows, heads * dim)
        self._library.hr_attention(
            queries.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            *_row_arguments(step),
            heads,
            cache.keys.shape[1],
            dim,
            cache.block_size,
            form.scale_of(dim),
            form.softcap or 0.0,
            form.window or _NO_WINDOW,
            None if form.sinks is None else form.sinks.data_ptr(),
            out.data_ptr(),
        )
        return out

    def activate(self, gate_up: Tensor, activation: Activation = Activation.SILU) -> Tensor:
        rows, size = len(gate_up), gate_up.shape[1] // 2
        out = self._buffers.take("activated", rows, size)
        pointers = (gate_up.data_ptr(), out.data_ptr())
        self._library.hr_activate(*pointers, rows, size, activation, SWIGLU_STEEPNESS, SWIGLU_LIMIT)
        return out

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        self._library.hr_soft_cap(x.data_ptr(), *x.shape, cap)
        return x


def _row_arguments(step: StepInputs) -> tuple[int, int, int, int, int]:
    """Return the addresses of positions, sequences and block tables, the tables' width, and the number of rows."""
    tables = step.block_tables
    return (
        step.positions.data_ptr(),
        step.sequences.data_ptr(),
        tables.data_ptr(),
        tables.shape[1],
        len(step.positions),
    )
