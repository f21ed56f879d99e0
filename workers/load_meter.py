"""Measured speed of a worker, which its heartbeats carry to the routing policies."""

from __future__ import annotations

from collections.abc import Iterable

from workers.active_request import ActiveRequest, AppendTally

LAST_SHARE = 0.2  # of the last run, or of the last window, in a moving average
MIN_WINDOW_S = 0.2  # over all sequences; a shorter time is added to the next window


class LoadMeter:
    """Measures the tokens per second, and the time to the first token.

    The speed is that of the sequences that run, times those that could run: the tokens of the whole worker would
    measure how much work it got.

    Args:
        seats: maximum number of sequences that run at once.

    Attributes:
        first_token_s: moving average of the time from the start of a run to its first token; None before one.
    """

    def __init__(self, seats: int) -> None:
        self._seats = seats
        self._tokens_per_s: float | None = None
        self._tokens = 0
        self._sequence_s = 0.0
        self.first_token_s: float | None = None

    def record(self, tally: AppendTally, now: float) -> None:
        """Count appends. The first of a run has the time of the prompt, and counts for `first_token_s` only.

        Args:
            now: when they were written, by time.monotonic.
        """
        for active in tally.begun:
            self.first_token_s = _moved(self.first_token_s, now - active.held_since)
        for gap in tally.gaps:
            self._tokens += gap.tokens * gap.appends
            self._sequence_s += gap.seconds * gap.appends

    def tokens_per_s(self) -> float:
        """Return the speed, 0 before it is known, and begin the next window."""
        if self._sequence_s >= MIN_WINDOW_S:
            self._tokens_per_s = _moved(self._tokens_per_s, self._tokens / self._sequence_s * self._seats)
            self._tokens, self._sequence_s = 0, 0.0
        return self._tokens_per_s or 0.0


def _moved(average: float | None, value: float) -> float:
    return value if average is None else average + LAST_SHARE * (value - average)


def tokens_in_flight(requests: Iterable[ActiveRequest]) -> int:
    """Return the estimated tokens of prompts, and of answers as far as they are not generated yet."""
    return sum(max(1, active.token_estimate - active.next_seq) for active in requests)
