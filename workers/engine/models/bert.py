"""BERT's encoder over a flat batch: the tokens of all inputs in a row, so that nothing is padded.

Linear layers see rows, and attention one input at a time: on the CPU an input's vector has the same bits whatever
stands beside it. It knows nothing of requests.

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
TensorOf = Callable[..., Tensor]  # by its name and shape


@dataclass(frozen=True)
class BertConfig:
    """What of config.json decides the computation."""

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
        """Raises ConfigError for what this code would compute wrongly."""
        for name, served in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if raw.get(name, served) != served:
                raise ConfigError(f"config.json: {name} must be {served}, not {raw[name]!r}", param="model")
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
            raise ConfigError(f"config.json is no BERT's: {error!r}", param="model") from error
        if config.hidden % config.heads:
            raise ConfigError("config.json: hidden_size is no multiple of num_attention_heads", param="model")
        return config


@dataclass(frozen=True)
class Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Layer:
    """One block; `qkv` is the three projections of attention in one."""

    qkv: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    norm: Norm


class Bert:
    """An encoder.

    Args:
        words: [vocab, hidden].
        positions: [positions, hidden], with what the first token type adds.
    """

    def __init__(
        self, config: BertConfig, words: Tensor, positions: Tensor, norm: Norm, layers: Sequence[Layer]
    ) -> None:
        self._heads = config.heads
        self._words = words
        self._positions = positions
        self._norm = norm
        self._layers = layers

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], lengths: Sequence[int], pooling: Pooling) -> Tensor:
        """Vectors [N, hidden] float32 of length 1, of N inputs of `lengths` whose `tokens` stand in a row."""
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
        """[L, 3 * hidden] of one input to [L, hidden]; each of its tokens sees all."""
        length = len(qkv)
        queries, keys, values = qkv.view(length, 3, self._heads, -1).permute(1, 2, 0, 3)
        seen = scaled_dot_product_attention(queries[None], keys[None], values[None])
        return seen[0].transpose(0, 1).reshape(length, -1)


def build(config: BertConfig, tensor: TensorOf, linear: Callable[[Sequence[Tensor], Tensor], Linear]) -> Bert:
    """Puts an encoder together; `tensor` gives a weight by its name and shape."""
    hidden = config.hidden

    def norm(name: str) -> Norm:
        return Norm(tensor(f"{name}.weight", hidden), tensor(f"{name}.bias", hidden), config.eps)

    def dense(name: str, out: int, size: int) -> Linear:
        return linear([tensor(f"{name}.weight", out, size)], tensor(f"{name}.bias", out))

    def layer(index: int) -> Layer:
        name = f"encoder.layer.{index}"
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv = linear(
            [tensor(f"{part}.weight", hidden, hidden) for part in parts],
            torch.cat([tensor(f"{part}.bias", hidden) for part in parts]),
        )
        return Layer(
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
