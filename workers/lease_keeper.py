"""Keeps a worker's claims alive: one heartbeat for all that it holds, and word of what it has lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from shared.backend import Backend
from shared.errors import Unavailable
from shared.models.worker_registry import WorkerInfo
from workers.active_request import ActiveRequest
from workers.sole_request import Solitude

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """Beats three times in a lease.

    Args:
        lease: seconds of silence after which others may claim what this worker holds.
        heartbeat: this worker, with its load now.
        held: the requests that it holds.
        lost: called with each that somebody else holds by now.
        solitude: records which request runs alone.
    """

    def __init__(
        self,
        backend: Backend,
        lease: float,
        heartbeat: Callable[[], WorkerInfo],
        held: Callable[[], list[ActiveRequest]],
        lost: Callable[[ActiveRequest], None],
        *,
        solitude: Solitude,
    ) -> None:
        self._backend = backend
        self._interval = lease / 3
        self._heartbeat = heartbeat
        self._held = held
        self._lost = lost
        self._solitude = solitude

    async def run(self) -> None:
        while True:
            try:
                await self.beat()
            except Unavailable as error:
                log.warning("heartbeat_failed", error=error.message)
            await asyncio.sleep(self._interval)

    async def beat(self) -> None:
        info = self._heartbeat()
        await self._backend.registry.beat(info)
        held = {request.delivery.claim: request for request in self._held()}
        gone = await self._backend.transport.renew(info.model, info.id, list(held))
        runs = {request.run for request in self._held()}  # without those that ended meanwhile
        for claim in gone:
            if held[claim].run in runs:
                self._lost(held[claim])
        await self._solitude.note()
