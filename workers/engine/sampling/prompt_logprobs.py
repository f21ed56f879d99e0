"""Log-probabilities of prompt tokens, for requests that echo their prompt with scores."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from workers.engine.sampling.logprobs import StepLogprobs
from workers.engine.scheduling.scheduler import ScheduledBatch


def record_prompt_logprobs(batch: ScheduledBatch, logits: Tensor, token_text: Callable[[int], str]) -> None:
    """Store the log-probabilities that a step computed in the echoes of its sequences.

    Args:
        logits: [rows that score, vocab] float32, in the batch's order.
        token_text: returns the text of a token id.
    """
    sequences = [item.sequence for item in batch.items for _ in item.scores]
    positions = [position for item in batch.items for position in item.scores]
    logprobs = StepLogprobs(logits, sequences, token_text)
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        assert sequence.echo is not None
        sequence.echo.record(position, logprobs.for_token(row, sequence.echo.target_token(position)))
