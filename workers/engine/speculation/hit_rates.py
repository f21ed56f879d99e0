"""Measured shares of drafted tokens that are right, of each kind of draft and in each answer."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from workers.engine.sequence import Sequence
from workers.engine.speculation.interface import Draft

FIRST_GUESSES = {"grammar": 0.9}  # before anything is measured
FIRST_GUESS = 0.5
GUESS_WEIGHT = 2.0  # the guess counts as this many tokens
ANSWER_MEMORY = 0.9  # a token counts this much of the one after it: some 10 tokens of one answer decide
MEMORY = 0.99


class HitRate:
    """Share of right guesses, of which later ones count more."""

    __slots__ = ("_hits", "_memory", "_trials")

    def __init__(self, memory: float) -> None:
        self._hits = self._trials = 0.0
        self._memory = memory

    def record(self, *, hit: bool) -> None:
        self._hits = self._hits * self._memory + hit
        self._trials = self._trials * self._memory + 1

    def value(self, guess: float) -> float:
        """Return the share, drawn towards a guess while there are few trials."""
        return (self._hits + GUESS_WEIGHT * guess) / (self._trials + GUESS_WEIGHT)


class HitRates:
    """Hit rates of all drafters: of each kind of draft, and of each answer."""

    def __init__(self) -> None:
        self._kinds: dict[str, HitRate] = {}
        self._answers: WeakKeyDictionary[Sequence, dict[str, HitRate]] = WeakKeyDictionary()

    def rate(self, sequence: Sequence, name: str, kind: str) -> float:
        """Return the expected share of right tokens of a drafter's next draft of this kind."""
        guess = FIRST_GUESSES.get(name, FIRST_GUESS)
        if (of_kind := self._kinds.get(kind)) is not None:
            guess = of_kind.value(guess)
        of_answer = self._answers.get(sequence, {}).get(name)
        return guess if of_answer is None else of_answer.value(guess)

    def record(self, sequence: Sequence, name: str, draft: Draft, tokens: list[int], skipped: int = 0) -> None:
        """Compare a draft with the tokens that came, up to its first wrong one.

        Args:
            skipped: the first tokens that are not counted.
        """
        if draft.tokens[:skipped] != tuple(tokens[:skipped]):
            return
        of_kind = self._kinds.setdefault(draft.kind, HitRate(MEMORY))
        answers = self._answers.setdefault(sequence, {})
        of_answer = answers.setdefault(name, HitRate(ANSWER_MEMORY))
        for drafted, token in zip(draft.tokens[skipped:], tokens[skipped:], strict=False):
            of_kind.record(hit=drafted == token)
            of_answer.record(hit=drafted == token)
            if drafted != token:
                return
