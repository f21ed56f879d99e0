"""Mends what nobody else sees: requests whose time ran out where no worker looked, and workers that are no more.

One process at a time does it, the one that holds the lock; another goes on when that one is gone. Each step may be
done twice, or begun and left: the next round finds the rest.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from shared.delivery.base import OVERDUE, TokenLog
from shared.errors import Unavailable
from shared.holds import Holds
from shared.transports.base import Transport

LOCK = "sweeper"
ROUND = 1.0  # seconds between rounds, and so the delay with which a deadline is seen
TIDY_EVERY = 60  # rounds
MOST = 256  # requests ended at once

Models = Callable[[], Awaitable[Sequence[str]]]

log = structlog.get_logger(__name__)


class Sweeper:
    """Runs in every API process; works in one.

    Args:
        models: the names of all models that requests may wait for.
    """

    def __init__(self, transport: Transport, token_log: TokenLog, holds: Holds, models: Models) -> None:
        self._transport = transport
        self._token_log = token_log
        self._models = models
        self._holds = holds
        self._me = secrets.token_bytes(8).hex().encode()

    async def run(self) -> None:
        """Until it is cancelled."""
        rounds = 0
        while True:
            try:
                if await self._leads():
                    await self.sweep(tidy=rounds % TIDY_EVERY == 0)
                    rounds += 1
            except Unavailable as error:
                log.warning("sweep_failed", error=error.message)
            await asyncio.sleep(ROUND)

    async def _leads(self) -> bool:
        return await self._holds.hold(LOCK, self._me, ROUND * 5) == self._me

    async def sweep(self, *, tidy: bool) -> None:
        """One round. Raises Unavailable."""
        for model in await self._models():
            async for request_ids in self._overdue(model):
                for request_id in request_ids:
                    await self._end(request_id)
                await self._transport.forget(model, request_ids)
            if tidy and (struck := await self._transport.tidy(model)):
                log.info("workers_struck_off", model=model, count=struck)

    async def _overdue(self, model: str) -> AsyncIterator[list[str]]:
        while request_ids := await self._transport.overdue(model, MOST):
            yield request_ids

    async def _end(self, request_id: str) -> None:
        record = await self._token_log.close(request_id, OVERDUE)
        if record is not None:
            await self._transport.discard(record.ticket)
