"""Decoder of the Llama family: Llama, SmolLM2, Mistral, Qwen2 (biases) and Qwen3 (norms of queries and keys).

`load_llama` maps the tensors of a checkpoint to its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workers.engine.execution.paged_attention import LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import HeadLayout, Kernels
from workers.engine.models.checkpoint import WeightReader
from workers.engine.models.decoder import never
from workers.engine.models.llama_config import LlamaModelConfig
from workers.engine.models.rope import rope_table
from workers.engine.quantization.interface import Linear


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer. `qkv` and `gate_up` are fused projections; the norms are vectors."""

    input_norm: Tensor
    qkv: Linear
    qk_norms: tuple[Tensor, Tensor] | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class LlamaWeights:
    """Weights of the decoder; `embedding` is [vocab, hidden]."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Linear


class Llama:
    """Decoder of the Llama family; see `Decoder`."""

    def __init__(
        self, config: LlamaModelConfig, weights: LlamaWeights, layout: HeadLayout, kernels: Kernels
    ) -> None:
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


def load_llama(
    reader: WeightReader,
    config: LlamaModelConfig,
    max_model_len: int,
    kernels: Kernels,
    progress: Callable[[float], None],
) -> Llama:
    """Load a checkpoint with Hugging Face's tensor names. Raises ConfigError where it does not fit `config`."""
    layers = []
    for index in range(config.num_layers):
        layers.append(_load_layer(reader, config, index))
        progress((index + 1) / (config.num_layers + 1))
    shape = config.vocab_size, config.hidden_size
    embedding = reader.tensor("model.embed_tokens.weight", *shape)
    tied = config.tie_word_embeddings
    head = reader.head("model.embed_tokens" if tied else "lm_head", *shape, embedding if tied else None)
    norm = reader.tensor("model.norm.weight", config.hidden_size)
    weights = LlamaWeights(embedding, tuple(layers), norm, head)
    reader.refuse_leftovers({"lm_head.weight"} if tied else frozenset())
    cos, sin = (table.to(embedding.device) for table in rope_table(config.rope, config.head_dim, max_model_len))
    layout = HeadLayout(config.num_heads, config.num_kv_heads, config.head_dim, cos, sin, config.norm_eps)
    progress(1.0)
    return Llama(config, weights, layout, kernels)


def _load_layer(reader: WeightReader, c: LlamaModelConfig, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    qk_norms = None
    if c.qk_norm:
        qk_norms = (
            reader.tensor(f"{attention}.q_norm.weight", c.head_dim),
            reader.tensor(f"{attention}.k_norm.weight", c.head_dim),
        )
    return LayerWeights(
        input_norm=reader.tensor(f"{prefix}.input_layernorm.weight", c.hidden_size),
        qkv=reader.linear(attention, {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}, c.hidden_size),
        qk_norms=qk_norms,
        output=reader.linear(attention, {"o_proj": c.hidden_size}, heads),
        mlp_norm=reader.tensor(f"{prefix}.post_attention_layernorm.weight", c.hidden_size),
        gate_up=reader.linear(
            mlp, {"gate_proj": c.intermediate_size, "up_proj": c.intermediate_size}, c.hidden_size
        ),
        down=reader.linear(mlp, {"down_proj": c.hidden_size}, c.intermediate_size),
    )
