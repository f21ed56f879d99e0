"""When a waiting sequence may start: at once, or only when a batch begins. It knows nothing of seats or blocks.

`continuous` is what serves; `dynamic` and `static` are what it is measured against, in the same engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Protocol

Scheduling = Literal["continuous", "dynamic", "static"]


class Policy(Protocol):
    """Asked once in each step.

    Attributes:
        pads: sequences that ended keep computing a row, for nobody, until all of their batch have ended.
    """

    pads: bool

    def quota(self, running: int, waiting: int) -> int:
        """How many of the `waiting` sequences may start in this step, beside those that run."""

    def started(self, count: int) -> None:
        """So many of them did; a negative one where a sequence that had started has to wait again."""


class Continuous:
    """Whoever waits may start in any step."""

    pads = False

    def quota(self, running: int, waiting: int) -> int:
        return waiting

    def started(self, count: int) -> None:
        """It does not count."""


class Batches:
    """Sequences start together, once nobody runs; nobody joins them before all have ended.

    Args:
        size: most sequences of a batch.
        wait: seconds for which a batch that is not full waits for more.
        pads: see Policy.
        clock: in seconds.
    """

    def __init__(self, size: int, wait: float, *, pads: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.pads = pads
        self._size = size
        self._wait = wait
        self._clock = clock
        self._left = 0  # of the batch that began last, those that have not started
        self._since: float | None = None  # when the first of the next batch came

    def quota(self, running: int, waiting: int) -> int:
        self._left = min(self._left, waiting)
        if waiting > self._left and self._since is None:
            self._since = self._clock()
        if running == 0 and self._since is not None and self._ready(waiting, self._since):
            self._left = min(waiting, self._size)
            self._since = None
        return self._left

    def _ready(self, waiting: int, since: float) -> bool:
        return waiting >= self._size or self._clock() - since >= self._wait

    def started(self, count: int) -> None:
        self._left -= count


def make_policy(scheduling: Scheduling, size: int, wait: float) -> Policy:
    """`static` takes what waits when the batch before has ended, and pads; `dynamic` gathers for `wait` seconds."""
    if scheduling == "continuous":
        return Continuous()
    return Batches(size, wait if scheduling == "dynamic" else 0.0, pads=scheduling == "static")
