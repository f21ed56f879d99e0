"""Kernels in C++, for float32 on the CPU. A row's bits depend neither on its neighbours nor on its chunk.

Intermediate results are in buffers that the next layer, and the next step of the same size, reuse.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from copy import copy
from ctypes import byref
from pathlib import Path

import torch
from torch import Tensor

from workers.engine.execution.paged_attention import PLAIN_ATTENTION, AttentionForm, LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import Activation, HeadLayout, LayerWeights
from workers.engine.kernels.cpp_forms import (
    SIGNATURES,
    activation_form,
    attention_form,
    cache_form,
    head_form,
    step_form,
)
from workers.engine.kernels.cpp_layers import CppLayers, can_fuse
from workers.engine.quantization.cpp_linear import CppLinear, OutputBuffers
from workers.engine.quantization.grouped_linear import CppGroupedLinear
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization
from workers.engine.quantization.low_rank import RowProducts
from workers.engine.quantization.packed_arrays import OWN_ARRAYS, PackedArrays
from workers.engine.quantization.unquantized import UNQUANTIZED, Unquantized
from workers.engine.sampling.cpp_rows import CppRows


class CppKernels:
    """Kernels in C++; see `Kernels`. A result is valid until the next call of the same method.

    Args:
        library: the result of `build.load_library`.
        quantization: the weight format of linear layers.
        arrays: memory of the packed weights.
    """

    recordable = False
    exact_rows = portable = True
    keeps_floats = False

    def __init__(self, library: ctypes.CDLL, quantization: Quantization, arrays: PackedArrays = OWN_ARRAYS) -> None:
        for name, signature in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        library.hr_panel.restype = library.hr_fuses.restype = ctypes.c_int64
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
    def rounding(self) -> str:
        return "fused" if self._library.hr_fuses() else "unfused"

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

    def exact_linear(self, weight: Tensor) -> Linear:
        return UNQUANTIZED.cpp_linear(self._library, None, [weight], None, OWN_ARRAYS)

    def grouped_linear(self, weight: GroupedWeight, bias: Tensor | None, *, keep: bool = False) -> Linear:
        return CppGroupedLinear(self._library, None if keep else self._buffers, weight, bias, self._arrays)

    def add_products(self, x: Tensor, out: Tensor, numbers: Tensor, products: RowProducts) -> None:
        groups, total = list[int](), 0
        for rows, product in products:
            assert isinstance(product.down, CppLinear)
            assert isinstance(product.up, CppLinear)
            groups += (product.down.packed_address, product.up.packed_address, product.rank, rows.first, rows.count)
            groups += (product.start, product.outputs, total)
            total += rows.count
        widest = max(product.rank for _, product in products)
        narrow = self._buffers.take("narrow", total, widest)
        self._library.hr_adapt(
            x.data_ptr(),
            out.data_ptr(),
            (ctypes.c_int64 * len(groups))(*groups),
            len(products),
            numbers.data_ptr(),
            narrow.data_ptr(),
            widest,
            x.shape[1],
            out.shape[1],
        )

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
        forms = [byref(form) for form in (head_form(layout, qk_norms), step_form(step), cache_form(cache))]
        self._library.hr_rope_and_cache(qkv.data_ptr(), *forms, queries.data_ptr())
        return queries

    def attention(
        self, queries: Tensor, cache: LayerCache, step: StepInputs, form: AttentionForm = PLAIN_ATTENTION
    ) -> Tensor:
        rows, heads, dim = queries.shape
        out = self._buffers.take("attended", rows, heads * dim)
        forms = byref(step_form(step)), byref(cache_form(cache))
        attention = byref(attention_form(form, dim))
        self._library.hr_attention(queries.data_ptr(), *forms, heads, attention, out.data_ptr())
        return out

    def activate(self, gate_up: Tensor, activation: Activation = Activation.SILU) -> Tensor:
        rows, size = len(gate_up), gate_up.shape[1] // 2
        out = self._buffers.take("activated", rows, size)
        pointers = (gate_up.data_ptr(), out.data_ptr())
        self._library.hr_activate(*pointers, rows, size, byref(activation_form(activation)))
        return out

    def softmax(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self._library.hr_softmax(x.data_ptr(), out.data_ptr(), *x.shape)
        return out

    def rotary_table(self, frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
        cosines, sines = (torch.empty(length, len(frequencies)) for _ in range(2))
        pointers = (frequencies.data_ptr(), cosines.data_ptr(), sines.data_ptr())
        self._library.hr_rotary_table(*pointers, length, len(frequencies))
        return cosines, sines

    def rows(self) -> CppRows:
        return CppRows(self._library)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        self._library.hr_soft_cap(x.data_ptr(), *x.shape, cap)
        return x

    def layers(self, weights: Sequence[LayerWeights], norm_eps: float) -> CppLayers | None:
        if not all(can_fuse(layer) for layer in weights):
            return None
        return CppLayers(self._library, self._buffers, weights, norm_eps)
