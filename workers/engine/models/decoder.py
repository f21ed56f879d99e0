"""Interface of a decoder: its dimensions, and the computation of one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from shared.errors import ConfigError
from workers.engine.execution.paged_attention import LayerCache
from workers.engine.execution.step_inputs import StepInputs


def never() -> bool:
    """Return False: the step is never interrupted."""
    return False


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Dimensions of a decoder that the engine needs.

    Attributes:
        sliding_window: positions that a token attends to, where the checkpoint uses a window that the model code
            does not compute: attention to all positions is the same for sequences up to that length.
    """

    architecture: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    sliding_window: int | None
    dtype: str
    eos_token_ids: tuple[int, ...]

    def length_limit(self) -> int:
        """Return how many tokens a sequence may have for the checkpoint and the model code to be correct."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)


class Decoder(Protocol):
    """Model that turns rows of tokens into logits."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def embedding(self) -> Tensor:
        """[vocab, hidden], on the model's device and in its dtype."""

    @property
    def recordable(self) -> bool:
        """True if `forward` never waits for the device, so that a CUDA graph can record it."""

    def forward(
        self, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool] = never
    ) -> Tensor | None:
        """Return logits [R, vocab] in the weights' dtype, and write the keys and values of all rows to `caches`.

        Args:
            interrupted: called before each layer. When it returns true, the step ends there and None is returned;
                only the cache slots of the step's own rows may have been written by then.
        """


def parse_token_ids(value: Any) -> tuple[int, ...]:
    """Parse `eos_token_id` of a model's files: a number, a list or null. Raises ConfigError for anything else."""
    found = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    if not all(type(each) is int for each in found):
        raise ConfigError(f"eos_token_id must be an integer or a list of integers, got {value!r:.80}")
    return found
