"""Kernels in Triton, for CUDA. They never wait for the device, so a CUDA graph can record them.

With TRITON_INTERPRET=1 set before Triton is imported they run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton import next_power_of_2

from workers.engine.execution.paged_attention import PLAIN_ATTENTION, AttentionForm, LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import SWIGLU_LIMIT, SWIGLU_STEEPNESS, Activation, HeadLayout
from workers.engine.kernels.attention_triton import attend, merge
from workers.engine.kernels.rows_triton import activate, add_rms_norm, rope_and_cache
from workers.engine.kernels.torch_kernels import TorchOperations
from workers.engine.kernels.triton_linear import TritonGroupedLinear
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization
from workers.engine.quantization.low_rank import RowProducts, add_products
from workers.engine.quantization.unquantized import UNQUANTIZED, Unquantized

_MIN_DOT_SIZE = 16  # rows, columns and depth of Triton's smallest matrix product
_COLUMNS_PER_PROGRAM = 1024  # of a row of the activation
_MAX_DECODE_ROWS = 128  # with more rows, most are adjacent in a prompt, and a program computes more of them
_TILE_POSITIONS = 64
_MIN_SPLIT_POSITIONS = 256  # fewest positions worth a program of their own
_TARGET_PROGRAMS = 2048  # enough to keep a GPU busy


class TritonKernels(TorchOperations):
    """Kernels in Triton; see `Kernels`.

    Args:
        quantization: the weight format of linear layers.
    """

    recordable = True
    exact_rows = False  # cuBLAS chooses its kernels by the number of rows
    packed = False

    def __init__(self, quantization: Quantization = UNQUANTIZED) -> None:
        self.quantization = quantization

    @property
    def keeps_groups(self) -> bool:
        return isinstance(self.quantization, Unquantized)

    @property
    def keeps_floats(self) -> bool:
        return self.keeps_groups

    def with_quantization(self, quantization: Quantization) -> TritonKernels:
        return TritonKernels(quantization)

    def linear(
        self, weights: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False, head: bool = False
    ) -> Linear:
        quantization = self.quantization.head if head else self.quantization
        grouped = quantization.grouped(weights)
        return quantization.torch_linear(weights, bias) if grouped is None else TritonGroupedLinear(grouped, bias)

    def exact_linear(self, weight: Tensor) -> Linear:
        return UNQUANTIZED.torch_linear([weight], None)

    def grouped_linear(self, weight: GroupedWeight, bias: Tensor | None, *, keep: bool = False) -> Linear:
        return TritonGroupedLinear(weight, bias)

    def add_products(self, x: Tensor, out: Tensor, numbers: Tensor, products: RowProducts) -> None:
        add_products(x, out, numbers, products)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _norm(None, x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _norm(x, residual, weight, eps)

    def rope_and_cache(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        qk_norms: tuple[Tensor, Tensor] | None,
        cache: LayerCache,
        step: StepInputs,
    ) -> Tensor:
        rows, heads, kv_heads, dim = len(qkv), layout.num_heads, layout.num_kv_heads, layout.dim
        queries = qkv.new_empty(rows, heads, dim)
        rope_and_cache[rows, heads + 2 * kv_heads](
            qkv,
            *(qk_norms or (None, None)),
            layout.norm_eps,
            layout.cos,
            layout.sin,
            step.positions,
            step.sequences,
            step.block_tables,
            step.block_tables.shape[1],
            queries,
            cache.keys,
            cache.values,
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            SLOTS=cache.block_size,
            WIDTH=next_power_of_2(dim // 2),
            num_warps=1,
        )
        return queries

    def attention(
        self, queries: Tensor, cache: LayerCache, step: StepInputs, form: AttentionForm = PLAIN_ATTENTION
    ) -> Tensor:
        rows, heads, dim = queries.shape
        kv_heads = cache.values.shape[1]
        group = next_power_of_2(heads // kv_heads)
        width = max(_MIN_DOT_SIZE, next_power_of_2(dim))
        heads_per_program = _MIN_DOT_SIZE if rows <= _MAX_DECODE_ROWS else 4 * _MIN_DOT_SIZE
        programs = rows * kv_heads * _MIN_DOT_SIZE // heads_per_program
        splits, span = _split(programs, step.block_tables.shape[1] * cache.block_size)
        out = torch.empty_like(queries)
        mixed, peaks, totals = out, None, None
        if splits > 1:
            mixed = queries.new_empty(rows, heads, splits, dim, dtype=torch.float32)
            peaks, totals = mixed.new_empty(2, rows, heads, splits)
        attend[rows, kv_heads, splits](
            queries,
            cache.keys,
            cache.values,
            step.positions,
            step.sequences,
            step.block_tables,
            step.block_tables.shape[1],
            rows,
            span,
            form.scale_of(dim) * math.log2(math.e),
            None if form.softcap is None else form.softcap * math.log2(math.e),
            form.window,
            None if splits > 1 else form.sinks,
            mixed,
            peaks,
            totals,
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            GROUP_WIDTH=group,
            ROWS=max(1, heads_per_program // group),
            DIM=dim,
            DIM_WIDTH=width,
            SLOTS=cache.block_size,
            RUN=cache.block_size & -cache.block_size,
            TILE=_TILE_POSITIONS if queries.element_size() == 2 else _TILE_POSITIONS // 2,
            num_warps=4,
        )
        if splits > 1:
            _merge_splits((mixed, peaks, totals), step.positions, span, form, out, dim_width=width)
        return out.view(rows, -1)

    def activate(self, gate_up: Tensor, activation: Activation = Activation.SILU) -> Tensor:
        rows, size = len(gate_up), gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, size)
        activate[rows, -(-size // _COLUMNS_PER_PROGRAM)](
            gate_up,
            out,
            SIZE=size,
            WIDTH=_COLUMNS_PER_PROGRAM,
            ACTIVATION=int(activation),
            STEEPNESS=SWIGLU_STEEPNESS,
            LIMIT=SWIGLU_LIMIT,
        )
        return out


def _merge_splits(
    parts: tuple[Any, ...], positions: Tensor, span: int, form: AttentionForm, out: Tensor, *, dim_width: int
) -> None:
    rows, heads, dim = out.shape
    splits = parts[0].shape[2]
    merge[rows, heads](
        *parts,
        positions,
        splits,
        span,
        form.window,
        form.sinks,
        out,
        HEADS=heads,
        DIM=dim,
        DIM_WIDTH=dim_width,
        SPLITS_WIDTH=next_power_of_2(splits),
    )


def _norm(x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows, size = residual.shape
    out = torch.empty_like(residual)
    add_rms_norm[rows,](x, residual, weight, out, eps, SIZE=size, WIDTH=next_power_of_2(size))
    return out


def _split(programs: int, positions: int) -> tuple[int, int]:
    """Return the number of splits and the positions per split, for sequences of up to `positions`.

    Without splits, a few rows of long sequences would leave most of a GPU idle.
    """
    wanted = max(1, min(_TARGET_PROGRAMS // programs, positions // _MIN_SPLIT_POSITIONS))
    span = -(-positions // (wanted * _TILE_POSITIONS)) * _TILE_POSITIONS
    return -(-positions // span), span
