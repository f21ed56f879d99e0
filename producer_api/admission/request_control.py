"""Control of admitted requests: look up their state, cancel and delete them."""

from __future__ import annotations

import re

from producer_api.admission.deadline import BackgroundTasks, redis_deadline
from producer_api.metering.rate_limiter import RateLimiter
from shared.backend import Backend
from shared.errors import NotFound
from shared.protocol import Outlook, RequestState
from shared.timeline.timeline import timeline_of
from shared.timeline.types import Timeline
from shared.token_log.interface import RequestRecord

JOB_ID = re.compile(r"req_[0-9a-f]{32}")


class RequestControl:
    """Looks up, cancels and deletes requests by their id.

    Args:
        backend: the queue and the token log.
        limiter: settles the usage of a deleted request; None if there are neither limits nor usage records.

    Attributes:
        background: tasks that no caller waits for.
    """

    def __init__(self, backend: Backend, limiter: RateLimiter | None) -> None:
        self._transport = backend.transport
        self._token_log = backend.token_log
        self._limiter = limiter
        self.background = BackgroundTasks()

    async def record(self, job_id: str, tenant: str) -> RequestRecord:
        """Return a request's record. Raises NotFound for an unknown id or another tenant's; Unavailable."""
        record = None
        if JOB_ID.fullmatch(job_id):
            async with redis_deadline():
                record = await self._token_log.record(job_id)
        if record is None or record.tenant != tenant:
            raise _unknown(job_id)
        return record

    async def timeline(self, job_id: str, owner: str | None) -> Timeline:
        """Return a request's timeline so far. Raises NotFound, Unavailable.

        With an `owner`, another tenant's request is unknown.
        """
        marks = None
        async with redis_deadline():
            if JOB_ID.fullmatch(job_id):
                marks = await self._token_log.marks(job_id)
            if marks is None or owner not in (None, marks.record.tenant):
                raise _unknown(job_id)
            waits = marks.record.state is RequestState.QUEUED
            wait = await self._transport.wait_of(marks.record.ticket) if waits else None
            return timeline_of(marks, await self._token_log.now(), wait)

    async def outlook(self, record: RequestRecord) -> Outlook | None:
        """Return the queue position and expected wait of a request; None once it left the queue."""
        if record.state is not RequestState.QUEUED:
            return None
        async with redis_deadline():
            return await self._transport.outlook(record.ticket)

    async def cancel(self, job_id: str) -> None:
        """Cancel a request, waiting or running; one that has ended is unchanged. Raises Unavailable."""
        async with redis_deadline():
            record = await self._token_log.close(job_id)
            if record is None or record.state is not RequestState.QUEUED:
                return
            if stay := await self._transport.discard(record.ticket):
                await self._token_log.note_stay(job_id, stay)

    async def forget(self, job_id: str) -> None:
        """Cancel a request and delete its data. Raises Unavailable."""
        await self.cancel(job_id)
        async with redis_deadline():
            record = await self._token_log.record(job_id)
            if record is not None and self._limiter is not None:
                await self._limiter.settle(record)  # while its usage can still be read
            await self._token_log.forget(job_id)

    def abandon(self, job_id: str) -> None:
        """Cancel a request in the background, for example one whose client disconnected."""
        self.background.start(self.cancel(job_id))


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"the job {job_id[:64]!r} does not exist, or its answer has expired")
