"""What a layer of the model does, behind one interface with interchangeable implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from workers.engine.execution.paged_attention import LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.quantization.interface import Linear


@dataclass(frozen=True)
class HeadLayout:
    """How a fused row of queries, keys and values is laid out, and the rotary table for it.

    Attributes:
        cos, sin: [positions, dim / 2] float32.
        norm_eps: of the query and key norms, where the model has them.
    """

    num_heads: int
    num_kv_heads: int
    dim: int
    cos: Tensor
    sin: Tensor
    norm_eps: float


class Kernels(Protocol):
    """Each works on T rows, none of which sees another except through the cache.

    `recordable`: none waits for the device or looks at `StepInputs.spans`, so that a CUDA graph can record them.
    """

    @property
    def recordable(self) -> bool: ...

    def linear(self, weights: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False) -> Linear:
        """The layer of `weights` [out, in] whose outputs are joined, in the form that is fast here.

        `keep`: its results outlive the step.
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add x to residual in place, and return the norm of that."""

    def rope_and_cache(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        qk_norms: tuple[Tensor, Tensor] | None,
        cache: LayerCache,
        step: StepInputs,
    ) -> Tensor:
        """Rotate queries and keys of [T, (heads + 2 * kv_heads) * dim] (after their norms, where given),
        write keys and values to the cache, and return the queries, [T, heads, dim].
        """

    def attention(self, queries: Tensor, cache: LayerCache, step: StepInputs) -> Tensor:
        """See `workers.engine.execution.paged_attention.paged_attention`."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, from [T, 2 * n] to [T, n]."""
