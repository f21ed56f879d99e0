"""BERT's encoder over a flat batch: the tokens of all inputs are concatenated, so nothing is padded.

Attention computes one input at a time, and linear layers each row alone: on the CPU, an input's vector has the same
bits whatever else is in the batch.

Reference: Devlin et al., "BERT"; pooling as in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, normalize, scaled_dot_product_attention

from shared.errors import ConfigError
from workers.engine.quantization.interface import Linear

Pooling = Literal["mean", "cls"]
ReadTensor = Callable[..., Tensor]  # takes a name and a shape


@dataclass(frozen=True)
class BertConfig:
    """Dimensions and features from config.json that decide the computation."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab_size: int
    positions: int
    types: int
    eps: float

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> BertConfig:
        """Parse config.json. Raises ConfigError for a feature that this code would compute wrongly."""
        for name, supported in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if raw.get(name, supported) != supported:
                raise ConfigError(f"config.json: {name} must be {supported}, got {raw[name]!r}", param="model")
        try:
            config = cls(
                hidden=int(raw["hidden_size"]),
                layers=int(raw["num_hidden_layers"]),
                heads=int(raw["num_attention_heads"]),
                intermediate=int(raw["intermediate_size"]),
                vocab_size=int(raw["vocab_size"]),
                positions=int(raw["max_position_embeddings"]),
                types=int(raw.get("type_vocab_size", 2)),
                eps=float(raw.get("layer_norm_eps", 1e-12)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"config.json does not describe a BERT model: {error!r}", param="model") from error
        if config.hidden % config.heads:
            raise ConfigError("config.json: hidden_size must be a multiple of num_attention_heads", param="model")
        return config


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalization over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class BertLayer:
    """Weights of one layer; `qkv` is the fused projection of queries, keys and values."""

    qkv: Linear
    out: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    norm: LayerNorm


class Bert:
    """BERT encoder.

    Args:
        words: [vocab, hidden].
        positions: [positions, hidden]; the embedding of the first token type is added already.
    """

    def __init__(
        self, config: BertConfig, words: Tensor, positions: Tensor, norm: LayerNorm, layers: Sequence[BertLayer]
    ) -> None:
        self._heads = config.heads
        self._words = words
        self._positions = positions
        self._norm = norm
        self._layers = layers

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], lengths: Sequence[int], pooling: Pooling) -> Tensor:
        """Return unit vectors [N, hidden] float32 for N inputs of `lengths`, concatenated in `tokens`."""
        device, sizes = self._words.device, list(lengths)
        rows = torch.tensor(tokens, device=device)
        places = torch.cat([torch.arange(length, device=device) for length in lengths])
        x = self._norm(self._words[rows] + self._positions[places])
        for layer in self._layers:
            attended = torch.cat([self._attend(part) for part in torch.split(layer.qkv(x), sizes)])
            x = layer.attention_norm(layer.out(attended) + x)
            x = layer.norm(layer.down(gelu(layer.up(x))) + x)
        parts = torch.split(x.float(), sizes)
        pooled = torch.stack([part.mean(0) if pooling == "mean" else part[0] for part in parts])
        return normalize(pooled, dim=-1)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Compute bidirectional attention within one input: [L, 3 * hidden] to [L, hidden]."""
        length = len(qkv)
        queries, keys, values = qkv.view(length, 3, self._heads, -1).permute(1, 2, 0, 3)
        seen = scaled_dot_product_attention(queries[None], keys[None], values[None])
        return seen[0].transpose(0, 1).reshape(length, -1)


def build_bert(
    config: BertConfig, tensor: ReadTensor, linear: Callable[[Sequence[Tensor], Tensor], Linear]
) -> Bert:
    """Build an encoder; `tensor` returns a weight by its name and shape."""
    hidden = config.hidden

    def norm(name: str) -> LayerNorm:
        return LayerNorm(tensor(f"{name}.weight", hidden), tensor(f"{name}.bias", hidden), config.eps)

    def dense(name: str, out: int, size: int) -> Linear:
        return linear([tensor(f"{name}.weight", out, size)], tensor(f"{name}.bias", out))

    def layer(index: int) -> BertLayer:
        name = f"encoder.layer.{index}"
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv = linear(
            [tensor(f"{part}.weight", hidden, hidden) for part in parts],
            torch.cat([tensor(f"{part}.bias", hidden) for part in parts]),
        )
        return BertLayer(
            qkv,
            dense(f"{name}.attention.output.dense", hidden, hidden),
            norm(f"{name}.attention.output.LayerNorm"),
            dense(f"{name}.intermediate.dense", config.intermediate, hidden),
            dense(f"{name}.output.dense", hidden, config.intermediate),
            norm(f"{name}.output.LayerNorm"),
        )

    words = tensor("embeddings.word_embeddings.weight", config.vocab_size, hidden)
    positions = tensor("embeddings.position_embeddings.weight", config.positions, hidden)
    types = tensor("embeddings.token_type_embeddings.weight", config.types, hidden)
    layers = [layer(index) for index in range(config.layers)]
    return Bert(config, words, positions + types[0], norm("embeddings.LayerNorm"), layers)
