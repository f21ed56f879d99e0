"""Kernels: the operations of a model's layers, with interchangeable implementations behind one interface.

torch_kernels.py is the reference; cpp_kernels.py serves float32 on the CPU and triton_kernels.py serves CUDA. The
models import the interface; engines choose an implementation with select.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from torch import Tensor

from workers.engine.execution.paged_attention import PLAIN_ATTENTION, AttentionForm, LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization

SWIGLU_STEEPNESS, SWIGLU_LIMIT = 1.702, 7.0  # of gpt-oss


class Activation(IntEnum):
    """Activation of an MLP from gate and up. The numbers are those of the kernels.

    SILU is silu(gate) * up; GELU_TANH is gelu(gate) * up by the approximation with tanh; CLAMPED_SWIGLU limits gate
    and up to SWIGLU_LIMIT and is gate * sigmoid(SWIGLU_STEEPNESS * gate) * (up + 1).
    """

    SILU = 0
    GELU_TANH = 1
    CLAMPED_SWIGLU = 2


@dataclass(frozen=True)
class HeadLayout:
    """Layout of a fused row of queries, keys and values, and its rotary table.

    Attributes:
        cos, sin: [positions, dim / 2] float32.
        norm_eps: epsilon of the query and key norms, if the model has them.
    """

    num_heads: int
    num_kv_heads: int
    dim: int
    cos: Tensor
    sin: Tensor
    norm_eps: float


class Kernels(Protocol):
    """Operations on T rows, which see each other only through the cache.

    Attributes:
        recordable: no operation waits for the device or reads `StepInputs.spans`, so a CUDA graph can record them.
        exact_rows: a row's bits depend neither on the number of rows nor on their sequences.
        packed: the packed weights exist already, so that `linear` uses only the shapes of its weights.
        quantization: the weight format of linear layers.
        keeps_groups: weights that a checkpoint stores in groups stay as they are; otherwise they are expanded.
        keeps_floats: so do matrices of FP8.
    """

    @property
    def recordable(self) -> bool: ...

    @property
    def quantization(self) -> Quantization: ...

    @property
    def exact_rows(self) -> bool: ...

    @property
    def packed(self) -> bool: ...

    @property
    def keeps_groups(self) -> bool: ...

    @property
    def keeps_floats(self) -> bool: ...

    def with_quantization(self, quantization: Quantization) -> Kernels:
        """Return kernels with another weight format."""

    def linear(
        self, weights: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False, head: bool = False
    ) -> Linear:
        """Return the fastest layer for `weights`, each [out, in], whose outputs are concatenated.

        Args:
            keep: results must stay valid after the next call.
            head: the layer is the output head, or as sensitive to rounding.
        """

    def grouped_linear(self, weight: GroupedWeight, bias: Tensor | None, *, keep: bool = False) -> Linear:
        """Return a layer for a weight that the checkpoint stores in groups."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / rms(x) * weight over the last dimension.

        A weight of float32 multiplies before the result is rounded to the type of x.
        """

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add x to residual in place, and return the RMS norm of the sum."""

    def rope_and_cache(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        qk_norms: tuple[Tensor, Tensor] | None,
        cache: LayerCache,
        step: StepInputs,
    ) -> Tensor:
        """Rotate queries and keys (after their norms, if given), and write keys and values to the cache.

        Args:
            qkv: [T, (heads + 2 * kv_heads) * dim].

        Returns:
            The queries, [T, heads, dim].
        """

    def attention(
        self, queries: Tensor, cache: LayerCache, step: StepInputs, form: AttentionForm = PLAIN_ATTENTION
    ) -> Tensor:
        """Attend to the cache; see `execution.paged_attention.paged_attention`."""

    def activate(self, gate_up: Tensor, activation: Activation = Activation.SILU) -> Tensor:
        """Return the activation of gate and up, side by side: [T, 2 * n] to [T, n]."""

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """Return cap * tanh(x / cap), and overwrite x or not."""
