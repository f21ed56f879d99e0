"""Matcher of an answer whose reasoning is free: the constraint holds for what follows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from workers.engine.interface import Matcher
from workers.engine.text.reasoning_format import Stage
from workers.engine.text.reasoning_parser import ReasoningParser

if TYPE_CHECKING:  # the scripted engine runs without torch
    from torch import Tensor

WORD_BITS = 32


class ConstraintGate:
    """Matcher that accepts every token of reasoning but the end of the text, then those of another matcher.

    Args:
        matcher: constrains the content.
        reasoning: the parser of the same choice; it is fed each token after `accept`.
        eos_token_ids: tokens that would end the answer before its content.
    """

    def __init__(self, matcher: Matcher, reasoning: ReasoningParser, eos_token_ids: Iterable[int]) -> None:
        self._matcher = matcher
        self._reasoning = reasoning
        self._eos_token_ids = tuple(eos_token_ids)
        self._begun = False  # the content has begun

    @property
    def finished(self) -> bool:
        return self._begun and self._matcher.finished

    def accept(self, token_id: int) -> bool:
        if self._reasoning.thinking or (self._may_reason and token_id == self._reasoning.start_id):
            return True
        self._begun = True
        return self._matcher.accept(token_id)

    def fill(self, bitmask: Tensor, row: int) -> None:
        if self._reasoning.thinking:
            bitmask[row].fill_(-1)
            for token_id in self._eos_token_ids:
                word, bit = divmod(token_id, WORD_BITS)
                bitmask[row, word] &= ~_signed(1 << bit)
            return
        self._matcher.fill(bitmask, row)
        if self._may_reason:
            word, bit = divmod(self._reasoning.start_id, WORD_BITS)
            bitmask[row, word] |= _signed(1 << bit)

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must follow; none while the model may still reason."""
        if self._reasoning.thinking or self._may_reason:
            return []
        return self._matcher.forced_tokens()

    @property
    def _may_reason(self) -> bool:
        return not self._begun and self._reasoning.stage is Stage.UNDECIDED


def _signed(word: int) -> int:
    return word - (1 << WORD_BITS) if word >> (WORD_BITS - 1) else word
