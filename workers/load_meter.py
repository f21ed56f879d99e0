"""Measured speed of a worker, which its heartbeats carry to the routing policies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from shared.token_log.interface import Append
from shared.validation.token_estimate import token_estimate
from workers.active_request import ActiveRequest

FIRST_TOKEN_SHARE = 0.2  # of the last run in the moving average
MIN_WINDOW_S = 0.2  # of work; a shorter time is added to the next window
SPEED_KEPT = 0.98  # of the highest speed, after each window


class LoadMeter:
    """Measures the tokens per second, and the time to the first token.

    The speed is the highest of recent windows: a worker that gets little work is slower for lack of requests, and
    must not get less for it.

    Args:
        clock: seconds, as time.monotonic.

    Attributes:
        first_token_s: moving average of the time from the start of a run to its first token; None before one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._speed = 0.0
        self._tokens = 0
        self._worked_s = 0.0
        self._working_since: float | None = None
        self.first_token_s: float | None = None

    def set_working(self, working: bool) -> None:
        """Begin or end the time with work."""
        now = self._clock()
        if self._working_since is not None:
            self._worked_s += now - self._working_since
        self._working_since = now if working else None

    def record(self, active: ActiveRequest, append: Append) -> None:
        """Count an append of a run."""
        self._tokens += len(append.event.tokens)
        if append.event.tokens and append.event.seq == append.lease.next_seq:
            taken = self._clock() - active.held_since
            last = taken if self.first_token_s is None else self.first_token_s
            self.first_token_s = last + FIRST_TOKEN_SHARE * (taken - last)

    def tokens_per_s(self) -> float:
        """Return the speed, and begin the next window."""
        self.set_working(self._working_since is not None)
        if self._worked_s >= MIN_WINDOW_S:
            self._speed = max(self._tokens / self._worked_s, self._speed * SPEED_KEPT)
            self._tokens, self._worked_s = 0, 0.0
        return self._speed


def tokens_in_flight(requests: Iterable[ActiveRequest]) -> int:
    """Return the estimated tokens of prompts, and of answers as far as they are not generated yet."""
    return sum(max(1, token_estimate(active.delivery.request) - active.next_seq) for active in requests)
