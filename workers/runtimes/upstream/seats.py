"""Seats of an upstream server: how many sequences may run at once, the most urgent requests first."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from shared.protocol import PriorityClass

URGENCY = {priority: place for place, priority in enumerate(PriorityClass)}


class Seats:
    """`total` seats, used within one event loop."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.taken = 0
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []  # urgency, order, seats
        self._order = count()

    @asynccontextmanager
    async def taking(self, seats: int, priority: PriorityClass) -> AsyncIterator[None]:
        """Hold `seats`, at most the total, while the body runs."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (URGENCY[priority], next(self._order), seats, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self.taken -= seats
            else:
                turn.cancel()
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            _, _, seats, turn = self._waiting[0]
            if turn.done():  # cancelled while it waited
                heapq.heappop(self._waiting)
            elif self.taken + seats <= self._total:
                heapq.heappop(self._waiting)
                self.taken += seats
                turn.set_result(None)
            else:
                return
