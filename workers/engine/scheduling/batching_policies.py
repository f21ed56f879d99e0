"""Batching policies: a waiting sequence starts at once, or only when a batch begins.

`continuous` is for serving; `dynamic` and `static` exist to measure it against, in the same engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Protocol

Scheduling = Literal["continuous", "dynamic", "static"]


class BatchingPolicy(Protocol):
    """Rule for when waiting sequences start, applied once per step.

    Attributes:
        pads: ended sequences keep computing a row, whose result is unused, until their whole batch has ended.
    """

    pads: bool

    def max_starts(self, running: int, waiting: int) -> int:
        """Return how many of the `waiting` sequences may start in this step, given the number that run."""

    def on_started(self, count: int) -> None:
        """Count started sequences; a negative count means that started sequences wait again."""


class ContinuousBatching:
    """Policy that lets a waiting sequence start in any step."""

    pads = False

    def max_starts(self, running: int, waiting: int) -> int:
        return waiting

    def on_started(self, count: int) -> None:
        """Do nothing: starts are not limited."""


class FixedBatching:
    """Policy that starts a batch when the one before has ended; no sequence joins a running batch.

    Args:
        size: most sequences of a batch.
        wait: seconds that a batch waits to fill.
        pads: see BatchingPolicy.
        clock: returns seconds.
    """

    def __init__(self, size: int, wait: float, *, pads: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.pads = pads
        self._size = size
        self._wait = wait
        self._clock = clock
        self._left = 0  # sequences of the current batch that have not started
        self._since: float | None = None  # arrival of the next batch's first sequence

    def max_starts(self, running: int, waiting: int) -> int:
        self._left = min(self._left, waiting)
        if waiting > self._left and self._since is None:
            self._since = self._clock()
        if running == 0 and self._since is not None and self._ready(waiting, self._since):
            self._left = min(waiting, self._size)
            self._since = None
        return self._left

    def _ready(self, waiting: int, since: float) -> bool:
        return waiting >= self._size or self._clock() - since >= self._wait

    def on_started(self, count: int) -> None:
        self._left -= count


def make_policy(scheduling: Scheduling, size: int, wait: float) -> BatchingPolicy:
    """Return the policy of a setting.

    `static` takes the waiting sequences as soon as the batch before has ended, and pads; `dynamic` waits up to
    `wait` seconds for a full batch.
    """
    if scheduling == "continuous":
        return ContinuousBatching()
    return FixedBatching(size, wait if scheduling == "dynamic" else 0.0, pads=scheduling == "static")
