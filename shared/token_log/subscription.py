"""One reader's live messages, bounded: a reader that lags is told that it missed some, and reads the log instead.

It knows nothing of where messages come from or what they mean.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

BACKLOG = 64  # messages kept for a slow subscriber; then it is told to read the log instead


class Missed:
    """Stands in a subscription where messages may have been lost."""


MISSED = Missed()


class Subscription:
    """Messages of one channel for one reader: at most BACKLOG of them, then MISSED.

    One timer serves many waits, since this is every token's path: when it ends it looks whether it came too early.
    """

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._missed = False
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def put(self, message: bytes) -> None:
        if len(self._messages) >= BACKLOG:
            self.miss()
        elif not self._missed:
            self._messages.append(message)
            self._wake(True)

    def miss(self) -> None:
        self._messages.clear()
        self._missed = True
        self._wake(True)

    def close(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def get(self, silence: float | None) -> bytes | Missed | None:
        """The next message, MISSED after a loss, None after `silence` seconds without one."""
        if not self._messages and not self._missed and not await self._arrival(silence):
            return None
        if self._missed:
            self._missed = False
            return MISSED
        return self._messages.popleft()

    async def _arrival(self, silence: float | None) -> bool:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._due = math.inf
        if silence is not None:
            self._due = loop.time() + silence
            if self._timer is None or self._timer.when() > self._due:
                self.close()
                self._timer = loop.call_at(self._due, self._look)
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if self._waiter is None or self._due == math.inf:
            return
        if loop.time() >= self._due:
            self._wake(False)
        else:
            self._timer = loop.call_at(self._due, self._look)

    def _wake(self, arrived: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(arrived)
