"""Work of one step, as the scheduler decides it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import msgspec

from shared.protocol import PriorityClass
from workers.engine.sequence import Sequence


class ScheduledSequence(msgspec.Struct, frozen=True, gc=False):
    """The next `num_new_tokens` tokens after the computed ones of `sequence`.

    A struct, since one is created for each token of an answer.

    Attributes:
        samples: this step computes the sequence's last token, so that the next one can be drawn.
        drafts: tokens that may follow the sequence's last one, to be computed in the same step.
    """

    sequence: Sequence
    num_new_tokens: int
    samples: bool
    drafts: tuple[int, ...] = ()

    def with_drafts(self, drafts: tuple[int, ...]) -> ScheduledSequence:
        return ScheduledSequence(self.sequence, self.num_new_tokens, self.samples, drafts)

    @property
    def num_rows(self) -> int:
        return self.num_new_tokens + len(self.drafts)

    @property
    def tokens(self) -> Iterable[int]:
        """Tokens of its rows."""
        start = self.sequence.num_computed_tokens
        return (*self.sequence.tokens[start : start + self.num_new_tokens], *self.drafts)

    @property
    def scores(self) -> range:
        """Positions of this step whose logits score the prompt's next token, if the request asks for that."""
        if self.sequence.echo is None:
            return range(0)
        return self.sequence.echo.scored_positions(self.sequence.num_computed_tokens, self.num_new_tokens)


@dataclass(frozen=True)
class ScheduledBatch:
    """Work of one step, and the (from, to) block copies to make before it.

    Attributes:
        answers_only: each row is known to be the last token of a sequence that has not ended; false only takes
            longer.
    """

    items: list[ScheduledSequence]
    copies: list[tuple[int, int]]
    answers_only: bool = False

    @cached_property
    def sequences(self) -> list[Sequence]:
        return [item.sequence for item in self.items]

    @cached_property
    def sampling(self) -> list[Sequence]:
        """The sequences whose next token is drawn, and padding."""
        return self.sequences if self.answers_only else [item.sequence for item in self.items if item.samples]

    @property
    def drawing(self) -> list[Sequence]:
        """The sequences whose next token is drawn."""
        return self.sampling if self.answers_only else [each for each in self.sampling if not each.ended]

    @cached_property
    def decodes(self) -> bool:
        """True if each row is the last token of a sequence."""
        return self.answers_only or self.num_rows == len(self.items) == len(self.sampling)

    @cached_property
    def num_rows(self) -> int:
        if self.answers_only:
            return len(self.items)
        return sum([item.num_new_tokens for item in self.items]) + self.num_drafts

    @cached_property
    def num_drafts(self) -> int:
        return 0 if self.answers_only else sum([len(item.drafts) for item in self.items])

    @property
    def interruptible(self) -> bool:
        """True if an urgent arrival may abandon the step, because it has rows of the batch class.

        The steps that follow leave such rows out until the new prompt is computed, so no step is abandoned twice.
        """
        return PriorityClass.BATCH in [sequence.priority for sequence in self.sequences]
