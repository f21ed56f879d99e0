"""Requests that were admitted: how they stand, and how they are ended from outside.

It does not know how a request got in, or which API asks.
"""

from __future__ import annotations

import re

from producer_api.admission.deadline import Upkeep, patience
from producer_api.metering.rate_limiter import Meter
from shared.backend import Backend
from shared.errors import NotFound
from shared.protocol import Outlook, RequestState
from shared.token_log.interface import RequestRecord

JOB_ID = re.compile(r"req_[0-9a-f]{32}")


class Admitted:
    """What may be asked of a request, and done to it, by its id.

    Args:
        backend: the queue and the answers.
        meter: settles what is forgotten; None where nothing is limited or metered.

    Attributes:
        upkeep: runs what nobody waits for.
    """

    def __init__(self, backend: Backend, meter: Meter | None) -> None:
        self._transport = backend.transport
        self._token_log = backend.token_log
        self._meter = meter
        self.upkeep = Upkeep()

    async def record(self, job_id: str, tenant: str) -> RequestRecord:
        """Raises NotFound for an unknown id and for somebody else's alike."""
        record = None
        if JOB_ID.fullmatch(job_id):
            async with patience():
                record = await self._token_log.record(job_id)
        if record is None or record.tenant != tenant:
            raise NotFound(f"there is no job {job_id[:64]!r}, or its answer has expired")
        return record

    async def outlook(self, record: RequestRecord) -> Outlook | None:
        """What a waiting request may expect; None once it left the queue."""
        if record.state is not RequestState.QUEUED:
            return None
        async with patience():
            return await self._transport.outlook(record.ticket)

    async def cancel(self, job_id: str) -> None:
        """End a request, wherever it is; an ended one stays as it is. Raises Unavailable."""
        async with patience():
            record = await self._token_log.close(job_id)
            if record is not None and record.state is RequestState.QUEUED:
                await self._transport.discard(record.ticket)

    async def forget(self, job_id: str) -> None:
        """End a request, wherever it is, and remove all that is known of it. Raises Unavailable."""
        await self.cancel(job_id)
        async with patience():
            record = await self._token_log.record(job_id)
            if record is not None and self._meter is not None:
                await self._meter.settle(record)  # while it can be read what it took
            await self._token_log.forget(job_id)

    def abandon(self, job_id: str) -> None:
        """Cancel a request whose client left, without waiting for it."""
        self.upkeep.begin(self.cancel(job_id))
