"""Control of admitted requests: look up their state, cancel and delete them."""

from __future__ import annotations

from producer_api.admission.deadline import BackgroundTasks, redis_deadline
from producer_api.metering.rate_limiter import RateLimiter
from shared.backend import Backend
from shared.errors import NotFound
from shared.protocol import Outlook, RequestState, possible_job_ids
from shared.timeline.timeline import timeline_of
from shared.timeline.types import Timeline
from shared.token_log.interface import RequestRecord

DEFAULT_TENANT = "default"  # of records in Kafka that name none


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

    async def record(self, given: str, owner: str | None) -> RequestRecord:
        """Return a request's record. Raises NotFound for an unknown id; Unavailable.

        Args:
            given: its id, or another id from which it follows; see `possible_job_ids`.
            owner: the tenant, to whom others' requests are unknown; None may see all.
        """
        if possible := possible_job_ids(given, owner or DEFAULT_TENANT):
            async with redis_deadline():
                found = await self._token_log.records(possible)
            for record in found:
                if record is not None and owner in (None, record.tenant):
                    return record
        raise _unknown(given)

    async def timeline(self, given: str, owner: str | None) -> Timeline:
        """Return a request's timeline so far; see `record`. Raises NotFound, Unavailable."""
        async with redis_deadline():
            for job_id in possible_job_ids(given, owner or DEFAULT_TENANT):
                marks = await self._token_log.marks(job_id)
                if marks is not None and owner in (None, marks.record.tenant):
                    break
            else:
                raise _unknown(given)
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
