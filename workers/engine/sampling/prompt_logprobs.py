"""Log-probabilities of prompt tokens, for requests that echo their prompt with scores."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from workers.engine.sampling.logprobs import LogProbs
from workers.engine.scheduling.scheduler import ScheduledBatch


def note_scores(batch: ScheduledBatch, logits: Tensor, piece: Callable[[int], str]) -> None:
    """Store the scores that a step computed in the echoes of its sequences.

    Args:
        logits: [rows that score, vocab] float32, in the batch's order.
        piece: returns a token id's text.
    """
    sequences = [item.sequence for item in batch.items for _ in item.scores]
    positions = [position for item in batch.items for position in item.scores]
    log_probs = LogProbs(logits, sequences, piece)
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        assert sequence.echo is not None
        sequence.echo.note(position, log_probs.of(row, sequence.echo.target(position)))
