"""Bounds on what speculation can gain: drafts that are always right, and the best drafts that copy earlier text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workers.engine.sequence import Sequence as EngineSequence
from workers.engine.speculation.interface import Draft


class PerfectDrafter:
    """Drafter that knows the answers, which no drafter can surpass; see `Drafter`.

    Args:
        answers: token ids by the ids of requests.
    """

    name = "perfect"

    def __init__(self, answers: Mapping[str, Sequence[int]]) -> None:
        self._answers = answers

    def propose(self, sequence: EngineSequence, most: int) -> Draft | None:
        following = self._answers[sequence.job_id][sequence.num_output_tokens :][:most]
        return Draft(self.name, tuple(following)) if following else None

    def remember(self, sequence: EngineSequence) -> None:
        """Do nothing: it knows all answers."""


def steps_of_copies(prompt: Sequence[int], answer: Sequence[int], most: int, known: int) -> int:
    """Return the fewest steps in which drafts copied from the earlier text can give an answer.

    The drafts are of the best place and length each time, which a drafter would have to guess.

    Args:
        most: maximum tokens of a draft.
        known: tokens before a copy that must be the last ones of the answer, by which a drafter finds the place.
    """
    text, place, steps = [*prompt, *answer], len(prompt), 0
    while place < len(text):
        steps += 1
        place += 1 + _longest_copy(text, place, most, known) if place > len(prompt) else 1  # the prompt's step
    return steps


def _longest_copy(text: Sequence[int], place: int, most: int, known: int) -> int:
    """Return the length of the longest part of `text` from `place` on that occurs earlier; its end is no copy."""
    most = min(most, len(text) - place - 1)
    longest = 0
    for start in range(known, place):
        if text[start - known : start] != text[place - known : place]:
            continue
        length = 0
        while length < most and text[start + length] == text[place + length]:
            length += 1
        longest = max(longest, length)
    return longest
