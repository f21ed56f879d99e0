"""Encoder of BERT and its relatives over a flat batch: the tokens of all inputs are concatenated, without padding.

Attention computes one input at a time, and linear layers each row alone: on the CPU, an input's output has the same
bits whatever else is in the batch.

Reference: Devlin et al., "BERT".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from workers.engine.models.encoder_families import EncoderConfig
from workers.engine.quantization.interface import Linear

ReadTensor = Callable[..., Tensor]  # takes a name and a shape


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
        places: [types, positions, hidden], the sums of the embeddings of token type and position.
    """

    def __init__(
        self, config: EncoderConfig, words: Tensor, places: Tensor, norm: LayerNorm, layers: Sequence[BertLayer]
    ) -> None:
        self._heads = config.heads
        self._padding_id = config.padding_id
        self._words = words
        self._places = places
        self._norm = norm
        self._layers = layers

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], lengths: Sequence[int], second_starts: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """Return the outputs [length, hidden] float32 of the inputs of `lengths`, concatenated in `tokens`.

        Args:
            second_starts: for each input, where its tokens of type 1 begin.
        """
        device, sizes = self._words.device, list(lengths)
        rows = torch.tensor(tokens, device=device)
        types = torch.cat([_types(*each) for each in zip(lengths, second_starts, strict=True)]).to(device)
        positions = torch.cat([self._positions(part) for part in torch.split(rows, sizes)])
        x = self._norm(self._words[rows] + self._places[types.clamp(max=len(self._places) - 1), positions])
        for layer in self._layers:
            attended = torch.cat([self._attend(part) for part in torch.split(layer.qkv(x), sizes)])
            x = layer.attention_norm(layer.out(attended) + x)
            x = layer.norm(layer.down(gelu(layer.up(x))) + x)
        return torch.split(x.float(), sizes)

    def _positions(self, rows: Tensor) -> Tensor:
        """Return the positions of one input's tokens. RoBERTa counts from its padding token, and passes over it."""
        if self._padding_id is None:
            return torch.arange(len(rows), device=rows.device)
        counted = rows != self._padding_id
        return counted.cumsum(0) * counted + self._padding_id

    def _attend(self, qkv: Tensor) -> Tensor:
        """Compute bidirectional attention within one input: [L, 3 * hidden] to [L, hidden]."""
        length = len(qkv)
        queries, keys, values = qkv.view(length, 3, self._heads, -1).permute(1, 2, 0, 3)
        seen = scaled_dot_product_attention(queries[None], keys[None], values[None])
        return seen[0].transpose(0, 1).reshape(length, -1)


def _types(length: int, second_start: int) -> Tensor:
    types = torch.zeros(length, dtype=torch.long)
    types[second_start:] = 1
    return types


def build_bert(
    config: EncoderConfig, tensor: ReadTensor, linear: Callable[[Sequence[Tensor], Tensor], Linear]
) -> Bert:
    """Build an encoder; `tensor` returns a weight by its name and shape."""
    hidden, family = config.hidden, config.family

    def norm(name: str) -> LayerNorm:
        return LayerNorm(tensor(f"{name}.weight", hidden), tensor(f"{name}.bias", hidden), config.eps)

    def dense(name: str, out: int, size: int) -> Linear:
        return linear([tensor(f"{name}.weight", out, size)], tensor(f"{name}.bias", out))

    def layer(index: int) -> BertLayer:
        name = f"{family.layers}.{index}"
        parts = [f"{name}.{part}" for part in (family.query, family.key, family.value)]
        qkv = linear(
            [tensor(f"{part}.weight", hidden, hidden) for part in parts],
            torch.cat([tensor(f"{part}.bias", hidden) for part in parts]),
        )
        return BertLayer(
            qkv,
            dense(f"{name}.{family.out}", hidden, hidden),
            norm(f"{name}.{family.attention_norm}"),
            dense(f"{name}.{family.up}", config.intermediate, hidden),
            dense(f"{name}.{family.down}", hidden, config.intermediate),
            norm(f"{name}.{family.norm}"),
        )

    words = tensor("embeddings.word_embeddings.weight", config.vocab_size, hidden)
    places = tensor("embeddings.position_embeddings.weight", config.positions, hidden)[None]
    if config.types:
        places = places + tensor("embeddings.token_type_embeddings.weight", config.types, hidden)[:2, None]
    layers = [layer(index) for index in range(config.layers)]
    return Bert(config, words, places, norm("embeddings.LayerNorm"), layers)
