"""Slows clients that keep sending wrong credentials: counts the failures of each address within a window."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from shared.errors import TooManyFailures

MAX_FAILURES = 20  # of one address within a window that are answered with 401
WINDOW_S = 60.0
MAX_ADDRESSES = 10_000  # counted at a time; beyond it the one that began first is forgotten

log = structlog.get_logger(__name__)


@dataclass
class _Window:
    ends: float
    count: int = 0


class Failures:
    """The failures of one process's callers.

    Only failures are counted and refused: valid credentials work from any address, also behind a proxy that it
    shares with whoever sends wrong ones.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def count(self, address: str) -> None:
        """Count one failure of `address`. Raises TooManyFailures in place of the 401 where there were too many."""
        now = self._clock()
        window = self._windows.get(address)
        if window is None or window.ends <= now:
            self._windows.pop(address, None)
            window = self._windows[address] = _Window(now + WINDOW_S)
            if len(self._windows) > MAX_ADDRESSES:
                self._windows.popitem(last=False)
        window.count += 1
        if window.count <= MAX_FAILURES:
            return
        if window.count == MAX_FAILURES + 1:
            log.warning("wrong_credentials_repeated", address=address, failures=window.count)
        raise TooManyFailures(
            f"more than {MAX_FAILURES} requests of this address had wrong credentials within {WINDOW_S:.0f} s",
            retry_after=window.ends - now,
        )
