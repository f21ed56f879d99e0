"""A prompt told again, and what the model thought of its tokens. It knows nothing of the answer that follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from shared.protocol import Token, TokenLogprobs
from workers.engine.sampling.logprobs import LogProbs

if TYPE_CHECKING:
    from workers.engine.scheduling.scheduler import ScheduledBatch


class Echo:
    """Of one request.

    Args:
        prompt: token ids.
        scored: whether the log-probability of each is wanted; the first has none, for nothing comes before it.
    """

    def __init__(self, prompt: list[int], *, scored: bool) -> None:
        self.scored = scored
        self._prompt = prompt
        self._scores: list[TokenLogprobs | None] = [None] * len(prompt)

    def scores_at(self, start: int, count: int) -> range:
        """Which of the positions `start` … `start + count - 1` tell of a token of the prompt: the next one."""
        return range(start, min(start + count, len(self._prompt) - 1)) if self.scored else range(0)

    def note(self, position: int, log_probs: LogProbs, row: int) -> None:
        """Row `row` of a step is that of `position`."""
        self._scores[position + 1] = log_probs.of(row, self._prompt[position + 1])

    def tokens(self, texts: Callable[[list[int]], list[str]], choice: int) -> tuple[Token, ...]:
        """The prompt's tokens; `texts` gives what each adds to the text."""
        told = zip(self._prompt, texts(self._prompt), self._scores, strict=True)
        return tuple(Token(choice, token_id, text, None, scores) for token_id, text, scores in told)


def note_scores(batch: ScheduledBatch, logits: Tensor, piece: Callable[[int], str]) -> None:
    """Keep what a step told of its prompts; `logits`: [rows that score, vocab], in the batch's order."""
    sequences = [item.sequence for item in batch.items for _ in item.scores]
    positions = [position for item in batch.items for position in item.scores]
    log_probs = LogProbs(logits, sequences, piece)
    for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        assert sequence.echo is not None
        sequence.echo.note(position, log_probs, row)
