"""Renews the leases of a worker: one heartbeat for all of its requests, and a callback for each lost one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from shared.backend import Backend
from shared.errors import Unavailable
from shared.models.worker_registry import WorkerInfo
from workers.active_request import ActiveRequest
from workers.model_claim import ModelClaim
from workers.sole_request import SoleRequestRecord

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """Sends three heartbeats per lease.

    Args:
        lease: seconds without a heartbeat after which other workers may claim this worker's requests.
        heartbeat: returns this worker's registry entry with its current load.
        active_requests: returns the requests that this worker holds.
        on_lost: called with each request that another worker has claimed.
        sole_request: records which request runs alone.
        claim: of the model, held while the worker is ready.
    """

    def __init__(
        self,
        backend: Backend,
        lease: float,
        heartbeat: Callable[[], WorkerInfo],
        active_requests: Callable[[], list[ActiveRequest]],
        on_lost: Callable[[ActiveRequest], None],
        *,
        sole_request: SoleRequestRecord,
        claim: ModelClaim,
    ) -> None:
        self._backend = backend
        self._interval = lease / 3
        self._heartbeat = heartbeat
        self._active_requests = active_requests
        self._on_lost = on_lost
        self._sole_request = sole_request
        self._claim = claim

    async def run(self) -> None:
        """Send heartbeats until the task is cancelled."""
        while True:
            try:
                await self.beat()
            except Unavailable as error:
                log.warning("heartbeat_failed", error=error.message)
            await asyncio.sleep(self._interval)

    async def beat(self) -> None:
        """Send one heartbeat and report what was lost. Raises Unavailable."""
        info = self._heartbeat()
        await self._backend.registry.beat(info)
        by_claim = {request.delivery.claim: request for request in self._active_requests()}
        lost_claims = await self._backend.transport.renew(info.model, info.id, list(by_claim))
        run_ids = {request.run_id for request in self._active_requests()}  # some may have ended during the call
        for claim in lost_claims:
            if by_claim[claim].run_id in run_ids:
                self._on_lost(by_claim[claim])
        await self._sole_request.update()
        if info.state == "ready":  # one that refuses requests is always loading
            await self._claim.renew()
