"""The server's clock, extrapolated by the local monotonic clock between two readings.

The local wall clock is not used: it may be wrong, or be set.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

MAX_AGE_S = 1.0  # of a reading


class ServerClock:
    """The server's time, read at most once in MAX_AGE_S seconds.

    Args:
        ask: returns the server's time in seconds since the epoch; raises Unavailable.
    """

    def __init__(self, ask: Callable[[], Awaitable[float]]) -> None:
        self._ask = ask
        self._offset = 0.0
        self._good_until = 0.0

    async def now(self) -> float:
        """Return seconds since the epoch, late by at most a round trip. Raises Unavailable."""
        if time.monotonic() > self._good_until:
            reading = await self._ask()
            answered = time.monotonic()
            self._offset, self._good_until = reading - answered, answered + MAX_AGE_S
        return self._offset + time.monotonic()
