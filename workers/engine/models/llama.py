"""The Llama family: Llama, SmolLM2, Mistral, Qwen2 (biases) and Qwen3 (norms on queries and keys).

A pure function of weights, step and cache. It knows nothing of files, schedulers or sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workers.engine.execution.paged_attention import LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import HeadLayout, Kernels
from workers.engine.models.config import ModelConfig
from workers.engine.models.decoder import never
from workers.engine.quantization.interface import Linear


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; `qkv` and `gate_up` are fused. Norm weights are vectors."""

    input_norm: Tensor
    qkv: Linear
    qk_norms: tuple[Tensor, Tensor] | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class LlamaWeights:
    """`embedding` is [vocab, hidden]."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Linear


class Llama:
    """The decoder: token rows in, logits of the rows that sample out."""

    def __init__(self, config: ModelConfig, weights: LlamaWeights, layout: HeadLayout, kernels: Kernels) -> None:
        self.config = config
        self._weights = weights
        self._layout = layout
        self._kernels = kernels

    @property
    def embedding(self) -> Tensor:
        return self._weights.embedding

    @property
    def recordable(self) -> bool:
        return self._kernels.recordable

    def forward(
        self, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool] = never
    ) -> Tensor | None:
        """See `Decoder`."""
        eps, kernels = self.config.norm_eps, self._kernels
        residual = self._weights.embedding[step.tokens]
        x = kernels.rms_norm(residual, self._weights.layers[0].input_norm, eps)
        norms = [layer.input_norm for layer in self._weights.layers[1:]]
        for layer, cache, next_norm in zip(self._weights.layers, caches, [*norms, None], strict=True):
            if interrupted():
                return None
            queries = kernels.rope_and_cache(layer.qkv(x), self._layout, layer.qk_norms, cache, step)
            x = layer.output(kernels.attention(queries, cache, step))
            x = kernels.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.down(kernels.silu_mul(layer.gate_up(x)))
            if next_norm is not None:
                x = kernels.add_rms_norm(x, residual, next_norm, eps)
        rows = step.sample_rows
        last = kernels.add_rms_norm(x[rows], residual[rows], self._weights.norm, eps)
        return self._weights.head(last)
