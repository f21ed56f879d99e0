"""Kernels: the operations of a model's layers, with interchangeable implementations behind one interface.

torch_kernels.py is the reference; cpp_kernels.py serves float32 on the CPU and triton_kernels.py serves CUDA. The
models import the interface; engines choose an implementation with select.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol

from torch import Tensor

from workers.engine.execution.paged_attention import PLAIN_ATTENTION, AttentionForm, LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization
from workers.engine.quantization.low_rank import RowProducts
from workers.engine.sampling.rows import Rows

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


class Mlp(Protocol):
    """MLP of a layer.

    Attributes:
        recordable: it never waits for the device.
    """

    @property
    def recordable(self) -> bool: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer. `qkv` is a fused projection; the norms are vectors, those of added values optional."""

    layout: HeadLayout
    form: AttentionForm
    input_norm: Tensor
    qkv: Linear
    qk_norms: tuple[Tensor, Tensor] | None
    output: Linear
    output_norm: Tensor | None
    mlp_norm: Tensor
    mlp: Mlp
    mlp_output_norm: Tensor | None


class Layers(Protocol):
    """All layers of a decoder, computed together."""

    def __call__(
        self, residual: Tensor, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool]
    ) -> Tensor | None:
        """Compute the layers for rows whose embeddings are `residual`, [T, hidden], and write keys and values.

        Args:
            interrupted: called before every few layers; the computation ends when it returns true.

        Returns:
            What the last layer adds to `residual`, which has what the others add; None if interrupted.
        """


class Kernels(Protocol):
    """Operations on T rows, which see each other only through the cache.

    Attributes:
        recordable: no operation waits for the device or reads `StepInputs.spans`, so a CUDA graph can record them.
        exact_rows: a row's bits depend neither on the number of rows nor on their sequences.
        portable: bits do not depend on the width of the CPU's vectors.
        rounding: what bits depend on beside the source; empty for nothing.
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
    def portable(self) -> bool: ...

    @property
    def rounding(self) -> str: ...

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

    def exact_linear(self, weight: Tensor) -> Linear:
        """Return a layer for a weight [out, in] that is not quantized; its results stay valid after later calls."""

    def grouped_linear(self, weight: GroupedWeight, bias: Tensor | None, *, keep: bool = False) -> Linear:
        """Return a layer for a weight that the checkpoint stores in groups."""

    def add_products(self, x: Tensor, out: Tensor, numbers: Tensor, products: RowProducts) -> None:
        """Add products of layers that `exact_linear` made to rows of `out`, which x [T, in] led to.

        Args:
            numbers: [n] int64, the numbers of rows that `products` refers to; an output of a row occurs once.
        """

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

    def softmax(self, x: Tensor) -> Tensor:
        """Return the softmax of each row, [T, n] float32."""

    def rotary_table(self, frequencies: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each [length, n] float32 on the CPU, of each position times n frequencies."""

    def rows(self) -> Rows:
        """Return the operations on rows of logits, for one engine."""

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """Return cap * tanh(x / cap), and overwrite x or not."""

    def layers(self, weights: Sequence[LayerWeights], norm_eps: float) -> Layers | None:
        """Return layers whose operations are computed together, with the same bits; None to call each operation."""


@dataclass(frozen=True)
class DenseMlp:
    """MLP that computes every row alike; see `Mlp`. `gate_up` is a fused projection."""

    gate_up: Linear
    down: Linear
    activation: Activation
    kernels: Kernels
    recordable: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.kernels.activate(self.gate_up(x), self.activation))
