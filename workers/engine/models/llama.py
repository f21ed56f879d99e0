"""Decoder with Llama's layer and its variations.

They are norms of queries and keys and of what a layer adds, windows, soft caps, sinks, and mixtures of experts.

`load_llama` maps the tensors of a checkpoint to its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.execution.paged_attention import AttentionForm, LayerCache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import DenseMlp, HeadLayout, Kernels, LayerWeights, Mlp
from workers.engine.models.checkpoint import WeightReader
from workers.engine.models.decoder import never
from workers.engine.models.families.experts import load_experts
from workers.engine.models.llama_config import LlamaModelConfig
from workers.engine.models.rope import rope_table
from workers.engine.quantization.interface import Linear

if TYPE_CHECKING:  # adapters are off by default
    from workers.engine.lora.sites import AdapterSites


@dataclass(frozen=True)
class LlamaWeights:
    """Weights of the decoder; `embedding` is [vocab, hidden]."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Linear


class Llama:
    """Decoder of stacked layers; see the module and `Decoder`.

    Args:
        sites: the layers that adapters can change, if there are any.
    """

    def __init__(
        self, config: LlamaModelConfig, weights: LlamaWeights, kernels: Kernels, sites: AdapterSites | None = None
    ) -> None:
        self.config = config
        self._weights = weights
        self._kernels = kernels
        # rounded to the weights' type, as in transformers
        self._scale = float(torch.tensor(config.embedding_scale, dtype=weights.embedding.dtype))
        self._sites = sites
        plain = weights.layers if sites is None else [_without_adapters(layer, sites) for layer in weights.layers]
        self._layers = kernels.layers(plain, config.norm_eps) or self._run_each_layer

    @property
    def embedding(self) -> Tensor:
        return self._weights.embedding

    @property
    def recordable(self) -> bool:
        return self._kernels.recordable and all(layer.mlp.recordable for layer in self._weights.layers)

    def forward(
        self, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool] = never
    ) -> Tensor | None:
        """See `Decoder`."""
        c, kernels = self.config, self._kernels
        residual = self._weights.embedding[step.tokens]
        if c.embedding_scale != 1.0:
            residual *= self._scale
        is_adapted = self._sites is not None and self._sites.active
        run = self._run_each_layer if is_adapted else self._layers
        x = run(residual, step, caches, interrupted)
        if x is None:
            return None
        if not step.samples_each_row:
            x, residual = x[step.sample_rows], residual[step.sample_rows]
        last = kernels.add_rms_norm(x, residual, self._weights.norm, c.norm_eps)
        logits = self._weights.head(last)
        return logits if c.logit_cap is None else kernels.soft_cap(logits, c.logit_cap)

    def _run_each_layer(
        self, residual: Tensor, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool]
    ) -> Tensor | None:
        """See `kernels.Layers`; every operation of every layer is called."""
        c, kernels = self.config, self._kernels
        x = kernels.rms_norm(residual, self._weights.layers[0].input_norm, c.norm_eps)
        norms = [layer.input_norm for layer in self._weights.layers[1:]]
        for layer, cache, next_norm in zip(self._weights.layers, caches, [*norms, None], strict=True):
            if interrupted():
                return None
            queries = kernels.rope_and_cache(layer.qkv(x), layer.layout, layer.qk_norms, cache, step)
            x = self._normed(layer.output(kernels.attention(queries, cache, step, layer.form)), layer.output_norm)
            x = kernels.add_rms_norm(x, residual, layer.mlp_norm, c.norm_eps)
            x = self._normed(layer.mlp(x), layer.mlp_output_norm)
            if next_norm is not None:
                x = kernels.add_rms_norm(x, residual, next_norm, c.norm_eps)
        return x

    def _normed(self, x: Tensor, norm: Tensor | None) -> Tensor:
        return x if norm is None else self._kernels.rms_norm(x, norm, self.config.norm_eps)


def load_llama(
    reader: WeightReader,
    config: LlamaModelConfig,
    max_model_len: int,
    kernels: Kernels,
    progress: Callable[[float], None],
) -> Llama:
    """Load a checkpoint with Hugging Face's tensor names. Raises ConfigError where it does not fit `config`."""
    shape = config.vocab_size, config.hidden_size
    embedding = reader.tensor("model.embed_tokens.weight", *shape)
    layout = _layout(config, max_model_len, kernels, embedding.device)
    local_layout = layout
    if config.local_rope is not None:
        local = replace(config, rope=config.local_rope)
        local_layout = _layout(local, max_model_len, kernels, embedding.device)
    layers = []
    for index, window in enumerate(config.windows):
        layers.append(_load_layer(reader, config, index, layout if window is None else local_layout, kernels))
        progress((index + 1) / (config.num_layers + 1))
    tied = config.tie_word_embeddings
    head = reader.head("model.embed_tokens" if tied else "lm_head", *shape, embedding if tied else None)
    weights = LlamaWeights(embedding, tuple(layers), _norm(reader, config, "model.norm"), head)
    reader.refuse_leftovers({"lm_head.weight"} if tied else frozenset())
    progress(1.0)
    return Llama(config, weights, kernels, reader.sites)


def _without_adapters(layer: LayerWeights, sites: AdapterSites) -> LayerWeights:
    mlp = layer.mlp
    if isinstance(mlp, DenseMlp):
        mlp = replace(mlp, gate_up=sites.base_of(mlp.gate_up), down=sites.base_of(mlp.down))
    return replace(layer, qkv=sites.base_of(layer.qkv), output=sites.base_of(layer.output), mlp=mlp)


def _layout(c: LlamaModelConfig, length: int, kernels: Kernels, device: torch.device) -> HeadLayout:
    cos, sin = (table.to(device) for table in rope_table(c.rope, c.head_dim, length, kernels))
    return HeadLayout(c.num_heads, c.num_kv_heads, c.head_dim, cos, sin, c.norm_eps)


def _norm(reader: WeightReader, c: LlamaModelConfig, name: str, size: int | None = None) -> Tensor:
    return reader.norm(f"{name}.weight", size or c.hidden_size, offset=c.norm_offset, wide=c.wide_norms)


def _load_layer(
    reader: WeightReader, c: LlamaModelConfig, index: int, layout: HeadLayout, kernels: Kernels
) -> LayerWeights:
    prefix = f"model.layers.{index}"
    attention = f"{prefix}.self_attn"
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    qk_norms = None
    if c.qk_norm:
        query_norm, key_norm = (_norm(reader, c, f"{attention}.{name}_norm", c.head_dim) for name in ("q", "k"))
        qk_norms = (query_norm, key_norm)
    form = AttentionForm(
        scale=None if c.query_scalar is None else c.query_scalar**-0.5,
        window=c.windows[index],
        softcap=c.score_cap,
        sinks=reader.tensor(f"{attention}.sinks", c.num_heads) if c.sinks else None,
    )
    mlp_norm = "pre_feedforward_layernorm" if c.post_norms else "post_attention_layernorm"
    parts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    return LayerWeights(
        layout=layout,
        form=form,
        input_norm=_norm(reader, c, f"{prefix}.input_layernorm"),
        qkv=reader.linear(attention, parts, c.hidden_size, sensitive=True),
        qk_norms=qk_norms,
        output=reader.linear(attention, {"o_proj": c.hidden_size}, heads),
        output_norm=_norm(reader, c, f"{prefix}.post_attention_layernorm") if c.post_norms else None,
        mlp_norm=_norm(reader, c, f"{prefix}.{mlp_norm}"),
        mlp=_load_mlp(reader, c, index, kernels),
        mlp_output_norm=_norm(reader, c, f"{prefix}.post_feedforward_layernorm") if c.post_norms else None,
    )


def _load_mlp(reader: WeightReader, c: LlamaModelConfig, index: int, kernels: Kernels) -> Mlp:
    layer = f"model.layers.{index}"
    if c.experts is not None and index in c.experts.layers:
        return load_experts(reader, c, layer, kernels)
    prefix = f"{layer}.mlp"
    sizes = {"gate_proj": c.intermediate_size, "up_proj": c.intermediate_size}
    gate_up = reader.linear(prefix, sizes, c.hidden_size)
    down = reader.linear(prefix, {"down_proj": c.hidden_size}, c.intermediate_size, sensitive=True)
    return DenseMlp(gate_up, down, c.activation, kernels)
