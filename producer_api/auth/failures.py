"""Limit on wrong credentials, by the client's address and a time window."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from shared.errors import TooManyFailures

MAX_FAILURES = 20  # per address and window that get a 401; further ones get a 429
WINDOW_S = 60.0
MAX_ADDRESSES = 10_000  # tracked; beyond this the oldest is dropped

log = structlog.get_logger(__name__)


@dataclass
class _Window:
    ends: float
    count: int = 0


class FailureLimiter:
    """Counts the failures of one process's callers.

    Only failures are counted and refused. Valid credentials keep working, even behind a proxy shared with a client
    that sends wrong ones.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def count(self, address: str) -> None:
        """Count a failure of `address`. Raises TooManyFailures, which replaces the 401, beyond MAX_FAILURES."""
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
            f"more than {MAX_FAILURES} requests from this address had wrong credentials within {WINDOW_S:.0f} s",
            retry_after=window.ends - now,
        )
