"""What the engine asks of a model: its dimensions, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from workers.engine.execution.paged_attention import LayerCache
from workers.engine.execution.step_inputs import StepInputs


def never() -> bool:
    """No step is interrupted."""
    return False


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What the engine around a model knows of it.

    `sliding_window` is the number of positions a token attends to, where the checkpoint uses a window; the
    model code attends to all, which is the same for sequences up to that length.
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
        """Most tokens of a sequence for which the model code is right, and the checkpoint was made."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)


class Decoder(Protocol):
    """Token rows in, logits of the rows that sample out."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def embedding(self) -> Tensor:
        """[vocab, hidden], on the model's device and in its dtype."""

    @property
    def recordable(self) -> bool:
        """Whether `forward` never waits for the device, so that a CUDA graph can record it."""

    def forward(
        self, step: StepInputs, caches: list[LayerCache], interrupted: Callable[[], bool] = never
    ) -> Tensor | None:
        """Logits [R, vocab], in the weights' dtype; keys and values of all rows are written to `caches`.

        Args:
            interrupted: asked before each layer; once it is true the step ends there, with None. Only the cache
                slots of the step's own rows may have been written by then.
        """
