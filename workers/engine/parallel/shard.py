"""Division of a decoder among ranks: whole heads, columns of the MLPs, and rows of the output head."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shared.errors import ConfigError
from workers.engine.models.decoder import DecoderConfig
from workers.engine.models.llama_config import LlamaModelConfig

PARAM = "tensor_parallel_size"
MAX_RANKS = 64  # as the setting allows


@dataclass(frozen=True)
class Part:
    """Part `begin` … `end` - 1 of a dimension of `whole`."""

    whole: int
    begin: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.begin

    @property
    def range(self) -> slice:
        return slice(self.begin, self.end)


@dataclass(frozen=True)
class Shard:
    """Part of a model that one rank computes.

    Attributes:
        size: number of ranks; it fits the model, see `divisible_model`.
        model: the whole model.
    """

    rank: int
    size: int
    model: LlamaModelConfig

    @property
    def name(self) -> str:
        return f"{self.rank + 1}of{self.size}"

    @property
    def config(self) -> LlamaModelConfig:
        """Dimensions of the part."""
        whole = self.model
        return replace(
            whole,
            num_heads=whole.num_heads // self.size,
            num_kv_heads=max(1, whole.num_kv_heads // self.size),
            intermediate_size=whole.intermediate_size // self.size,
        )

    @property
    def vocabulary(self) -> Part:
        return self._part(self.model.vocab_size)

    def outputs(self, name: str) -> Part | None:
        """Return which outputs of a layer's matrix the rank has; None for all."""
        heads, dim = self.model.num_heads, self.model.head_dim
        match name.rpartition(".")[2]:
            case "q_proj":
                return self._part(heads * dim)
            case "k_proj" | "v_proj":  # neighbouring ranks share a head if there are fewer heads than ranks
                kv_heads = self.model.num_kv_heads
                first = self.rank * kv_heads // self.size
                return Part(kv_heads * dim, first * dim, (first + self.config.num_kv_heads) * dim)
            case "gate_proj" | "up_proj":
                return self._part(self.model.intermediate_size)
            case "lm_head" | "embed_tokens":  # as a matrix: the output head
                return self.vocabulary
        return None

    def inputs(self, name: str) -> Part | None:
        """Return which inputs of a layer's matrix the rank has; None for all."""
        match name.rpartition(".")[2]:
            case "o_proj":
                return self._part(self.model.num_heads * self.model.head_dim)
            case "down_proj":
                return self._part(self.model.intermediate_size)
        return None

    def _part(self, whole: int) -> Part:
        return Part(whole, whole * self.rank // self.size, whole * (self.rank + 1) // self.size)


def divisible_model(model: DecoderConfig, size: int) -> LlamaModelConfig:
    """Return the model's config. Raises ConfigError if the model cannot be divided among `size` ranks."""
    if not isinstance(model, LlamaModelConfig):
        raise ConfigError(
            f"{PARAM} must be 1 for {model.architecture}: only dense models of Headrace's own code are divided",
            param=PARAM,
        )
    if model.experts is not None:
        raise ConfigError(f"{PARAM} must be 1 for {model.architecture}: experts are not divided", param=PARAM)
    if wrong := _undivided(model, size):
        fitting = [str(count) for count in range(1, MAX_RANKS + 1) if not _undivided(model, count)]
        raise ConfigError(
            f"{PARAM} {size} does not divide the model's {' and '.join(wrong)}; it can be {', '.join(fitting)}",
            param=PARAM,
        )
    return model


def _undivided(model: LlamaModelConfig, size: int) -> list[str]:
    """Return the dimensions that so many ranks cannot share."""
    kv_heads = model.num_kv_heads
    return [
        f"{name} {count}"
        for name, count, fits in (
            ("num_attention_heads", model.num_heads, model.num_heads % size == 0),
            ("num_key_value_heads", kv_heads, kv_heads % size == 0 or size % kv_heads == 0),
            ("intermediate_size", model.intermediate_size, model.intermediate_size % size == 0),
            ("vocab_size", model.vocab_size, model.vocab_size >= size),
        )
        if not fits
    ]
