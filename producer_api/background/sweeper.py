"""Mends what nobody else sees: requests whose time ran out where no worker looked, workers that are no more, and
what a store lost by half.

One process at a time does it, the one that holds the lock; another goes on when that one is gone. Each step may be
done twice, or begun and left: the next round finds the rest.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from shared.backend import Backend
from shared.protocol import PriorityClass, RequestState, Ticket
from shared.runtime.retry import run_forever
from shared.token_log.interface import LOST, OVERDUE
from shared.token_log.subscription import MISSED, Subscription

LOCK = "sweeper"
ROUND = 1.0  # seconds between rounds, and so the delay with which a deadline is seen
TIDY_EVERY = 60  # rounds
LOST_EVERY = 3  # rounds between looks for requests whose place in the queue was deleted
MOST = 256  # requests ended at once
SETTLED = 5.0  # seconds after which a request is queued, or will not be by whoever began to

Models = Callable[[], Awaitable[Sequence[str]]]

log = structlog.get_logger(__name__)


class Sweeper:
    """Runs in every API process; works in one.

    Args:
        backend: what is swept.
        models: the names of all models that requests may wait for.
    """

    def __init__(self, backend: Backend, models: Models) -> None:
        self._live = backend.live
        self._transport = backend.transport
        self._token_log = backend.token_log
        self._holds = backend.holds
        self._models = models
        self._me = secrets.token_bytes(8).hex().encode()
        self._rounds = 0
        self._doubted_at: float | None = None  # when the store was found to have been away

    async def run(self) -> None:
        """Until it is cancelled."""
        await run_forever(self._sweep_rounds, pause_s=ROUND, failure_event="sweep_failed")

    async def _sweep_rounds(self) -> None:
        async with self._live.subscribe(f"hr:{LOCK}") as connection:
            self._doubted_at = time.monotonic()
            while True:
                await self._round(connection)

    async def _round(self, connection: Subscription) -> None:
        if await self._leads():
            await self.sweep(tidy=self._rounds % TIDY_EVERY == 0)
            if self._rounds % LOST_EVERY == 0:
                await self.end_lost()
            self._rounds += 1
            if self._doubted_at is not None and time.monotonic() - self._doubted_at > SETTLED:
                await self.reconcile()
                self._doubted_at = None
        if await connection.get(ROUND) is MISSED:
            self._doubted_at = time.monotonic()

    async def _leads(self) -> bool:
        return await self._holds.hold(LOCK, self._me, ROUND * 5) == self._me

    async def sweep(self, *, tidy: bool) -> None:
        """One round. Raises Unavailable."""
        for model in await self._models():
            async for job_ids in self._overdue(model):
                for job_id in job_ids:
                    await self._end(job_id)
                await self._transport.forget(model, job_ids)
            for job_id in await self._transport.lapsed(model) if tidy else ():
                await self._give_back(model, job_id)
            if tidy and (struck := await self._transport.tidy(model)):
                log.info("workers_struck_off", model=model, count=struck)

    async def _give_back(self, model: str, job_id: str) -> None:
        """The place of one on its way through Kafka whose answer has ended or expired meanwhile."""
        record = await self._token_log.record(job_id)
        if record is None or record.state.terminal:
            await self._transport.discard(Ticket(job_id, model, PriorityClass.STANDARD, ""))

    async def _overdue(self, model: str) -> AsyncIterator[list[str]]:
        while job_ids := await self._transport.overdue(model, MOST):
            yield job_ids

    async def _end(self, job_id: str) -> None:
        record = await self._token_log.close(job_id, OVERDUE)
        if record is not None:
            await self._transport.discard(record.ticket)

    async def end_lost(self) -> None:
        """End the requests whose place in the queue another program deleted. Raises Unavailable."""
        for model in await self._models():
            if job_ids := await self._transport.lost(model):
                for job_id in job_ids:
                    await self._give_up(job_id)
                await self._transport.forget(model, job_ids)

    async def reconcile(self) -> None:
        """End every answer that no worker will ever begin or go on with. Raises Unavailable.

        A store that lost its last writes may have kept a request's log and lost its place in the queue.
        """
        settled = await self._token_log.now() - SETTLED
        async for records in self._token_log.unfinished():
            of_model = defaultdict(list)
            for record in records:
                if record.created_at < settled:
                    of_model[record.model].append(record.id)
            for model, job_ids in of_model.items():
                for job_id in await self._transport.missing(model, job_ids):
                    await self._give_up(job_id)

    async def _give_up(self, job_id: str) -> None:
        """End it, unless it ended by itself in the meantime, as what a worker is done with leaves the queue.

        What never ran is forgotten, as if the store had lost all of it: its Idempotency-Key may send it again.
        """
        record = await self._token_log.close(job_id, LOST)
        if record is None or record.state.terminal:
            return
        log.error("request_lost", job_id=job_id, state=record.state.value)
        if record.state is RequestState.QUEUED:
            await self._token_log.forget(job_id)
