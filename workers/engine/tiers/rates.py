"""Measured rates of computing and of loading, which decide whether a sequence waits for a store, and how long."""

from __future__ import annotations

from typing import Protocol

WEIGHT = 0.3  # of a new measurement in the running estimate
MIN_ROWS = 16  # rows of a step from which the speed of computing is measured
GAIN = 0.5  # loading must be expected to take at most this share of computing
LOOKUP_SHARE = 0.02  # of the time of computing, which a sequence may wait to learn what the store has
MAX_LOOKUP_S, MAX_LOAD_S = 0.25, 10.0
MIN_LOAD_S, PATIENCE = 0.05, 8  # a load may take so much longer than expected, as its time varies
UNKNOWN_LOOKUP_S, UNKNOWN_LOAD_S = 0.1, 2.0  # while the speed of computing is not known
FIRST_LATENCY_S, FIRST_BYTES_PER_S = 0.002, 2e8  # of a store that was not measured yet
TRY_EVERY = 32  # of the times at which the store does not pay, one is used to measure it


class Rates(Protocol):
    """Decisions by expected times."""

    def note_step(self, rows: int, seconds: float) -> None:
        """Learn from a step with rows of prompts."""

    def note_lookup(self, seconds: float) -> None: ...

    def note_load(self, tokens: int, seconds: float) -> None: ...

    def lookup_limit(self, tokens: int) -> float | None:
        """Return how long a sequence that must compute `tokens` may wait for a lookup; None for not at all."""

    def load_limit(self, tokens: int, before: int) -> float | None:
        """Return how long a sequence may wait for `tokens`, after `before` others; None if computing is faster."""

    def saving_pays(self) -> bool:
        """Return whether a sequence is worth saving, because loading it would be faster than computing."""

    def tries(self) -> bool:
        """Return True now and then, to measure a store that does not pay."""


class MeasuredRates:
    """Rates of one engine and its store; see `Rates`.

    Args:
        token_bytes: size of a token in the store.
    """

    def __init__(self, token_bytes: float) -> None:
        self._compute: float | None = None  # seconds of a token
        self._latency = FIRST_LATENCY_S
        self._load = token_bytes / FIRST_BYTES_PER_S  # seconds of a token
        self._is_first_load = self._is_first_lookup = True
        self._refusals = 0

    def note_step(self, rows: int, seconds: float) -> None:
        if rows >= MIN_ROWS:
            found = seconds / rows
            self._compute = found if self._compute is None else _mixed(self._compute, found)

    def note_lookup(self, seconds: float) -> None:
        self._latency = seconds if self._is_first_lookup else _mixed(self._latency, seconds)
        self._is_first_lookup = False

    def note_load(self, tokens: int, seconds: float) -> None:
        found = seconds / tokens
        self._load = found if self._is_first_load else _mixed(self._load, found)
        self._is_first_load = False

    def lookup_limit(self, tokens: int) -> float | None:
        if self._compute is None:
            return UNKNOWN_LOOKUP_S
        limit = min(MAX_LOOKUP_S, LOOKUP_SHARE * tokens * self._compute)
        return limit if self._latency <= limit or self.tries() else None

    def load_limit(self, tokens: int, before: int) -> float | None:
        if self._compute is None:
            return UNKNOWN_LOAD_S
        expected, computing = self._latency + (before + tokens) * self._load, tokens * self._compute
        if expected > GAIN * computing:
            return None
        return min(MAX_LOAD_S, computing, max(MIN_LOAD_S, PATIENCE * expected))

    def saving_pays(self) -> bool:
        return self._compute is None or self._load <= GAIN * self._compute or self.tries()

    def tries(self) -> bool:
        self._refusals += 1
        return self._refusals % TRY_EVERY == 0


def _mixed(old: float, new: float) -> float:
    return old + WEIGHT * (new - old)
