"""Rate at which requests of one queue were recently pulled, in memory."""

from __future__ import annotations

import math

from shared.protocol import PriorityClass

WINDOW_S = 30.0  # over which the rate is averaged
FORGET_RATE_S = 5 * WINDOW_S  # without a pull, after which it is unknown


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
        if now - self.at > FORGET_RATE_S:
            self._since = now
        kept = math.exp(-(now - self.at) / WINDOW_S)
        for each in PriorityClass:
            self._requests[each] *= kept
        self._requests[priority] += 1
        self._tokens = self._tokens * kept + cost
        self.at = now

    def requests_per_s(self, now: float, priority: PriorityClass) -> float:
        """Return the recent rate of one class; 0 if it is unknown."""
        return self._requests[priority] * self._kept(now)

    def tokens_per_s(self, now: float) -> float:
        return self._tokens * self._kept(now)

    def _kept(self, now: float) -> float:
        """Return the factor from a decayed sum to a rate per second; 0 if nothing was pulled for FORGET_RATE_S."""
        if now - self.at > FORGET_RATE_S:
            return 0.0
        seen = WINDOW_S * (1 - math.exp(-max(now - self._since, 1) / WINDOW_S))
        return math.exp(-(now - self.at) / WINDOW_S) / seen
