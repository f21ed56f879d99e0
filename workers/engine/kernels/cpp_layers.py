"""Layers of a decoder whose operations the C++ kernels compute together; see layers.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from torch import Tensor

from workers.engine.execution.paged_attention import LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import DenseMlp, LayerWeights
from workers.engine.kernels.cpp_forms import (
    CCache,
    CLayer,
    activation_form,
    attention_form,
    cache_form,
    head_form,
    step_form,
)
from workers.engine.quantization.cpp_linear import OutputBuffers, PackedLinear, address

MULTIPLY_ADDS_AT_ONCE = 2**27  # of the layers between two calls of `interrupted`: 5 to 10 ms
PARTS = ("products", "attention", "rows")  # of which `seconds` are measured


class CppLayers:
    """Layers in C++; see `Layers`.

    Args:
        weights: layers that `can_fuse` accepts.
        buffers: holds results, which the next call overwrites.

    Attributes:
        seconds: time of each of PARTS is added to it, unless it is None.
    """

    def __init__(
        self, library: ctypes.CDLL, buffers: OutputBuffers, weights: Sequence[LayerWeights], norm_eps: float
    ) -> None:
        self.weights = tuple(weights)  # keeps the tensors whose addresses the forms have
        self.seconds: ctypes.Array[ctypes.c_double] | None = None
        self._run = library.hr_layers
        self._buffers = buffers
        self._layers = (CLayer * len(weights))(*(_layer_form(layer, norm_eps) for layer in weights))
        first = self._layers[0]
        self._hidden = first.output.outputs
        linears = (first.qkv, first.output, first.gate_up, first.down)
        self._multiply_adds = sum(linear.inputs * linear.outputs for linear in linears)
        self._caches: list[LayerCache] = []
        self._cache_forms: ctypes.Array[CCache] = (CCache * 0)()

    def __call__(
        self, residual: Tensor, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool]
    ) -> Tensor | None:
        rows, count, form = len(residual), len(self._layers), step_form(step)
        if caches is not self._caches:
            self._caches, self._cache_forms = caches, (CCache * count)(*map(cache_form, caches))
        out = self._buffers.take("layers", rows, self._hidden)
        at_once = max(1, MULTIPLY_ADDS_AT_ONCE // (self._multiply_adds * rows))
        for begin in range(0, count, at_once):
            if interrupted():
                return None
            self._run(
                ctypes.addressof(self._layers),
                ctypes.addressof(self._cache_forms),
                begin,
                min(begin + at_once, count),
                ctypes.addressof(form),
                residual.data_ptr(),
                out.data_ptr(),
                self.seconds,
            )
        return out


def can_fuse(layer: LayerWeights) -> bool:
    """Return whether C++ can compute the layer: every weight is packed, and its MLP computes all rows alike."""
    mlp = layer.mlp
    if not isinstance(mlp, DenseMlp):
        return False
    return all(isinstance(linear, PackedLinear) for linear in (layer.qkv, layer.output, mlp.gate_up, mlp.down))


def _layer_form(layer: LayerWeights, norm_eps: float) -> CLayer:
    mlp = layer.mlp
    assert isinstance(mlp, DenseMlp)
    assert isinstance(layer.qkv, PackedLinear)
    assert isinstance(layer.output, PackedLinear)
    assert isinstance(mlp.gate_up, PackedLinear)
    assert isinstance(mlp.down, PackedLinear)
    return CLayer(
        input_norm=layer.input_norm.data_ptr(),
        qkv=layer.qkv.form,
        heads=head_form(layer.layout, layer.qk_norms),
        form=attention_form(layer.form, layer.layout.dim),
        output=layer.output.form,
        output_norm=address(layer.output_norm),
        mlp_norm=layer.mlp_norm.data_ptr(),
        gate_up=mlp.gate_up.form,
        activation=activation_form(mlp.activation),
        down=mlp.down.form,
        mlp_output_norm=address(layer.mlp_output_norm),
        eps=norm_eps,
    )
