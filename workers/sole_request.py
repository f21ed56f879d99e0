"""Record of which request a worker runs alone: evidence against that request if the worker is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from shared.token_log.interface import TokenLog
from workers.active_request import ActiveRequest


class Solitude:
    """Keeps the record in the token log true, and never too harsh: it is withdrawn before a second request begins.

    Args:
        held: returns the requests that the worker holds.
    """

    def __init__(self, token_log: TokenLog, held: Callable[[], Sequence[ActiveRequest]]) -> None:
        self._token_log = token_log
        self._held = held
        self._taking = asyncio.Lock()

    @asynccontextmanager
    async def taking(self, count: int) -> AsyncIterator[bool]:
        """For the time in which `count` requests are acquired and begun; yields whether one will run alone.

        Raises Unavailable where the record cannot be withdrawn; then nothing may be acquired.
        """
        async with self._taking:
            held = self._held()
            if count and len(held) == 1:
                await self._token_log.note_alone(held[0].lease, alone=False)
            yield count == 1 and not held

    async def note(self) -> None:
        """Record it where all other requests have ended. Raises Unavailable."""
        held = self._held()
        if len(held) != 1 or self._taking.locked():
            return
        async with self._taking:
            await self._token_log.note_alone(held[0].lease, alone=True)
