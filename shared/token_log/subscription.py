"""A bounded buffer of live messages for one reader; a reader that lags reads the log instead."""

from __future__ import annotations

import asyncio
import math
from collections import deque

MAX_BACKLOG = 64  # messages kept for a slow subscriber


class Missed:
    """Marker in a subscription: messages may have been lost here."""


MISSED = Missed()


class Subscription:
    """Messages of one channel for one reader: at most MAX_BACKLOG of them, then MISSED.

    One timer serves many waits, since every token passes through here; a timer that fires early is set again.
    """

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._missed = False
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def put(self, message: bytes) -> None:
        if len(self._messages) >= MAX_BACKLOG:
            self.miss()
        elif not self._missed:
            self._messages.append(message)
            self._wake(True)

    def miss(self) -> None:
        self._messages.clear()
        self._missed = True
        self._wake(True)

    def close(self) -> None:
        """Cancel the timer; nothing waits any longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def get(self, silence: float | None) -> bytes | Missed | None:
        """Return the next message; MISSED after a loss, None after `silence` seconds without a message."""
        if not self._messages and not self._missed and not await self._arrival(silence):
            return None
        if self._missed:
            self._missed = False
            return MISSED
        return self._messages.popleft()

    def _arrival(self, silence: float | None) -> asyncio.Future[bool]:
        """Return a future that ends with True for a message, and with False after the silence."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._due = math.inf
        if silence is not None:
            self._due = loop.time() + silence
            if self._timer is None or self._timer.when() > self._due:
                self.close()
                self._timer = loop.call_at(self._due, self._look)
        return self._waiter

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._waiter is None or self._waiter.done() or self._due == math.inf:
            return
        if loop.time() >= self._due:
            self._wake(False)
        else:
            self._timer = loop.call_at(self._due, self._look)

    def _wake(self, arrived: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(arrived)
