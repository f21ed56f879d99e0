"""One reader's live messages, bounded: a reader that lags is told that it missed some, and reads the log instead.

It knows nothing of where messages come from or what they mean.
"""

from __future__ import annotations

import asyncio
from collections import deque

BACKLOG = 64  # messages kept for a slow subscriber; then it is told to read the log instead


class Missed:
    """Stands in a subscription where messages may have been lost."""


MISSED = Missed()


class Subscription:
    """Messages of one channel for one reader: at most BACKLOG of them, then MISSED."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._missed = False
        self._arrived = asyncio.Event()

    def put(self, message: bytes) -> None:
        if len(self._messages) >= BACKLOG:
            self.miss()
        elif not self._missed:
            self._messages.append(message)
            self._arrived.set()

    def miss(self) -> None:
        self._messages.clear()
        self._missed = True
        self._arrived.set()

    async def get(self, silence: float | None) -> bytes | Missed | None:
        """The next message, MISSED after a loss, None after `silence` seconds without one."""
        if not self._arrived.is_set():
            try:
                async with asyncio.timeout(silence):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        if self._missed:
            self._missed = False
            self._arrived.clear()
            return MISSED
        message = self._messages.popleft()
        if not self._messages:
            self._arrived.clear()
        return message
