"""Record of the request that a worker runs alone: evidence against that request if the worker is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from shared.token_log.interface import TokenLog
from workers.active_request import ActiveRequest


class SoleRequestRecord:
    """Keeps the record in the token log up to date.

    It is withdrawn before a second request begins, so that a request is never blamed for its neighbour.

    Args:
        active_requests: returns the requests that the worker holds.
    """

    def __init__(self, token_log: TokenLog, active_requests: Callable[[], Sequence[ActiveRequest]]) -> None:
        self._token_log = token_log
        self._active_requests = active_requests
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def acquiring(self, count: int) -> AsyncIterator[bool]:
        """Hold the record while `count` requests are acquired and begun; yields True if one will run alone.

        Raises Unavailable if the record cannot be withdrawn; then no request may be acquired.
        """
        async with self._lock:
            active_requests = self._active_requests()
            if count and len(active_requests) == 1:
                await self._token_log.note_alone(active_requests[0].lease, alone=False)
            yield count == 1 and not active_requests

    async def update(self) -> None:
        """Record the request that is left if all others have ended. Raises Unavailable."""
        active_requests = self._active_requests()
        if len(active_requests) != 1 or self._lock.locked():
            return
        async with self._lock:
            await self._token_log.note_alone(active_requests[0].lease, alone=True)
