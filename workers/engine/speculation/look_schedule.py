"""Schedule of looks for drafts: answers whose drafts are not used are looked at less often in wide batches."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Ordered
from weakref import WeakKeyDictionary

from workers.engine.sequence import Sequence

MAX_SHARE = 0.005  # of a step's time, for looks that found nothing to use
MAX_REST_STEPS = 32
PATIENCE = 4  # looks in a row without a used draft, after which an answer rests
SECONDS_MEMORY = 0.9


class LookSchedule:
    """Decides which sequences are looked at in a step.

    For one answer, a look takes a small part of a step. For a wide batch, all looks together would take several
    percent of it, and their drafts are hardly ever used, since each further row takes about its share of the step.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = 0.0  # of a look, on average
        self._rests: WeakKeyDictionary[Sequence, tuple[int, int]] = WeakKeyDictionary()  # unused looks, next step

    def begin(self) -> None:
        """Begin a step."""
        self._steps += 1

    def is_due(self, sequence: Sequence) -> bool:
        rest = self._rests.get(sequence)
        return rest is None or rest[1] <= self._steps

    def record(
        self, looked: Ordered[Sequence], used: Collection[Sequence], seconds: float, rows: int, step: float | None
    ) -> None:
        """Learn from the looks of a step.

        Args:
            used: sequences that have drafts.
            seconds: time that the looks took.
            rows: sequences of the step.
            step: expected seconds of the step without drafts; None or 0 if they are not known.
        """
        if not looked or not step:
            return
        self._seconds += (1 - SECONDS_MEMORY) * (seconds / len(looked) - self._seconds)
        longest = min(MAX_REST_STEPS, int(self._seconds * rows / (MAX_SHARE * step)))
        for sequence in looked:
            if sequence in used or not longest:
                self._rests.pop(sequence, None)
            else:
                unused = self._rests.get(sequence, (0, 0))[0] + 1
                self._rests[sequence] = unused, self._steps + 1 + max(0, min(unused - PATIENCE, longest))
