"""Kernels in plain torch, for every device and dtype; the other kernels are tested against them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from workers.engine.execution.paged_attention import (
    PLAIN_ATTENTION,
    AttentionForm,
    LayerCache,
    paged_attention,
    write_cache,
)
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import SWIGLU_LIMIT, SWIGLU_STEEPNESS, Activation, HeadLayout, LayerWeights
from workers.engine.quantization.grouped_linear import TorchGroupedLinear
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization
from workers.engine.quantization.low_rank import RowProducts, add_products
from workers.engine.quantization.unquantized import UNQUANTIZED
from workers.engine.sampling.rows import Rows
from workers.engine.sampling.torch_rows import TORCH_ROWS


class TorchOperations:
    """Operations that plain torch computes, also beside kernels in Triton; see `Kernels`."""

    portable = False
    rounding = ""

    def softmax(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def rotary_table(self, frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
        return rotary_table(frequencies, length)

    def rows(self) -> Rows:
        return TORCH_ROWS

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return (x / cap).tanh() * cap

    def layers(self, weights: Sequence[LayerWeights], norm_eps: float) -> None:
        return None


class TorchKernels(TorchOperations):
    """Kernels in plain torch; see `Kernels`.

    Args:
        quantization: the weight format of linear layers.
    """

    recordable = False
    exact_rows = False
    packed = keeps_groups = keeps_floats = False

    def __init__(self, quantization: Quantization = UNQUANTIZED) -> None:
        self.quantization = quantization

    def with_quantization(self, quantization: Quantization) -> TorchKernels:
        return TorchKernels(quantization)

    def linear(
        self, weights: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False, head: bool = False
    ) -> Linear:
        quantization = self.quantization.head if head else self.quantization
        return quantization.torch_linear(weights, bias)

    def exact_linear(self, weight: Tensor) -> Linear:
        return UNQUANTIZED.torch_linear([weight], None)

    def grouped_linear(self, weight: GroupedWeight, bias: Tensor | None, *, keep: bool = False) -> Linear:
        return TorchGroupedLinear(weight, bias)

    def add_products(self, x: Tensor, out: Tensor, numbers: Tensor, products: RowProducts) -> None:
        add_products(x, out, numbers, products)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (weight * normed.to(weight.dtype)).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual += x
        return self.rms_norm(residual, weight, eps)

    def rope_and_cache(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        qk_norms: tuple[Tensor, Tensor] | None,
        cache: LayerCache,
        step: StepInputs,
    ) -> Tensor:
        heads = qkv.view(len(qkv), -1, layout.dim)
        keys_at, values_at = layout.num_heads, layout.num_heads + layout.num_kv_heads
        queries, keys, values = heads[:, :keys_at], heads[:, keys_at:values_at], heads[:, values_at:]
        if qk_norms is not None:
            queries = self.rms_norm(queries, qk_norms[0], layout.norm_eps)
            keys = self.rms_norm(keys, qk_norms[1], layout.norm_eps)
        cos, sin = (table[step.positions, None].to(qkv.dtype) for table in (layout.cos, layout.sin))
        write_cache(cache, step, _rotate(keys, cos, sin), values)
        return _rotate(queries, cos, sin)

    def attention(
        self, queries: Tensor, cache: LayerCache, step: StepInputs, form: AttentionForm = PLAIN_ATTENTION
    ) -> Tensor:
        return paged_attention(queries, cache, step, form)

    def activate(self, gate_up: Tensor, activation: Activation = Activation.SILU) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        if activation is Activation.SILU:
            return silu(gate) * up
        if activation is Activation.GELU_TANH:
            return gelu(gate, approximate="tanh") * up
        gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return (up + 1) * (gate * (gate * SWIGLU_STEEPNESS).sigmoid())


def rotary_table(frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of each position's angles; see `Kernels`."""
    angles = torch.arange(length).float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [T, heads, dim] by the angles of each row's position, pairing dimensions i and i + dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
