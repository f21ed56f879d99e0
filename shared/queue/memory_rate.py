"""Rate at which requests of one queue were recently pulled, in memory."""

from __future__ import annotations

import math

from shared.protocol import PriorityClass

WINDOW_S = 30.0  # over which the rate is averaged


class DrainRate:
    """Requests of each class, and tokens, that were pulled, as sums that decay.

    Attributes:
        at: when a request was pulled last.
    """

    def __init__(self) -> None:
        self._requests = dict.fromkeys(PriorityClass, 0.0)
        self._tokens = 0.0
        self._since = self.at = -math.inf

    def note(self, now: float, priority: PriorityClass, cost: int) -> None:
        """Count a request of `cost` tokens that is pulled."""
        if now - self.at > 5 * WINDOW_S:
            self._since = now
        kept = math.exp(-(now - self.at) / WINDOW_S)
        for each in PriorityClass:
            self._requests[each] *= kept
        self._requests[priority] += 1
        self._tokens = self._tokens * kept + cost
        self.at = now

    def requests_per_s(self, now: float, priority: PriorityClass) -> float:
        """Return the recent rate of one class; 0 before anything was pulled."""
        return self._requests[priority] * self._kept(now)

    def tokens_per_s(self, now: float) -> float:
        return self._tokens * self._kept(now)

    def _kept(self, now: float) -> float:
        """Return the factor from a decayed sum to a rate per second."""
        seen = WINDOW_S * (1 - math.exp(-max(now - self._since, 1) / WINDOW_S))
        return math.exp(-(now - self.at) / WINDOW_S) / seen
