"""Departure of a worker from its queue: what it holds goes back to the other workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from shared.backend import Backend
from shared.errors import Unavailable
from shared.models.worker_registry import WorkerInfo
from shared.queue.interface import Claim

GIVE_UP_LIMIT_S = 1.0  # for giving back the requests of a hung engine; after that, their leases expire

log = structlog.get_logger(__name__)


class Departure:
    """Departure of one worker.

    Args:
        finished: claims of requests that have ended and are not acknowledged yet.
    """

    def __init__(self, backend: Backend, model: str, worker: str, finished: Sequence[Claim]) -> None:
        self._backend = backend
        self._model = model
        self._worker = worker
        self._finished = finished

    async def leave_queue(self) -> None:
        """Let other workers take at once what is aimed at this one."""
        try:
            await self._backend.transport.leave(self._model, self._worker)
        except Unavailable as error:  # they take it once this worker has been silent for a lease
            log.warning("leave_failed", error=error.message)

    async def hand_over(self, claims: Sequence[Claim]) -> None:
        """Return the unfinished requests to the queue, and leave the registry.

        Only a draining worker does. If the engine fails, its requests wait for their leases to expire, which counts
        as a lost worker.
        """
        try:
            await self._backend.transport.acknowledge(self._finished)
            await self._backend.transport.release(self._model, self._worker, claims)
            await self._backend.registry.leave(self._worker)
        except Unavailable as error:
            log.warning("hand_over_failed", error=error.message, requests=len(claims))

    async def give_up(self, ran: Sequence[Claim], others: Sequence[Claim], last: WorkerInfo) -> None:
        """Return all requests to the queue at once, and send the `last` heartbeat.

        Those that the engine `ran` count this worker as lost.
        """
        try:
            async with asyncio.timeout(GIVE_UP_LIMIT_S):
                await self._backend.transport.acknowledge(self._finished)
                await self._backend.transport.release(self._model, self._worker, ran, lost=True)
                await self._backend.transport.release(self._model, self._worker, others)
                await self._backend.registry.beat(last)
        except (Unavailable, TimeoutError) as error:
            log.warning("hand_over_failed", error=repr(error), requests=len(ran) + len(others))
