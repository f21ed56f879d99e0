"""The server's clock, read from our own monotonic one between looks at it.

A process's wall clock plays no part: it may be wrong, or be set. Between two looks only the difference of two
readings of the monotonic clock counts.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

FRESH = 1.0  # seconds for which one look is good


class ServerClock:
    """Tells the server's time, asking for it at most once in FRESH seconds.

    Args:
        ask: the server's time in seconds since the epoch; raises Unavailable.
    """

    def __init__(self, ask: Callable[[], Awaitable[float]]) -> None:
        self._ask = ask
        self._offset = 0.0
        self._good_until = 0.0

    async def now(self) -> float:
        """Seconds since the epoch, at most a round trip behind. Raises Unavailable."""
        if time.monotonic() > self._good_until:
            told = await self._ask()
            answered = time.monotonic()
            self._offset, self._good_until = told - answered, answered + FRESH
        return self._offset + time.monotonic()
