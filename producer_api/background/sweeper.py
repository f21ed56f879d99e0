"""Sweeper: ends overdue requests that no worker ends, removes dead workers, and repairs partial losses of Redis.

One process at a time sweeps, the one that holds the lock; if it dies, another takes over. Every step may run twice
or be interrupted: the next round does the rest.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from shared.backend import Backend
from shared.protocol import PriorityClass, RequestState, Ticket
from shared.runtime.retry import run_forever
from shared.token_log.interface import LOST, OVERDUE, Unfinished
from shared.token_log.subscription import MISSED, Subscription

LOCK = "sweeper"
ROUND_S = 1.0  # between rounds, and so the delay with which an overdue request is ended
TIDY_INTERVAL_ROUNDS = 60
LOST_INTERVAL_ROUNDS = 3  # between searches for requests whose place in the queue was deleted
LOST_REST = 30  # times as long as a search took is at least between two, since it costs Redis time for each request
MAX_BATCH = 256  # overdue requests per call
MAX_SUSPECTS = 1024  # missing requests that are looked at again
MIN_LOST_AGE_S = 5.0  # a request this old is queued, or its admission was interrupted

ModelNames = Callable[[], Awaitable[Sequence[str]]]

log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeper of one process. It runs in every API process and works in one.

    Args:
        backend: the queue and the token log.
        models: returns the names of all models that requests may wait for.
    """

    def __init__(self, backend: Backend, models: ModelNames) -> None:
        self._live = backend.live
        self._transport = backend.transport
        self._token_log = backend.token_log
        self._locks = backend.locks
        self._models = models
        self._holder = secrets.token_bytes(8).hex().encode()
        self._rounds = 0
        self._lost_due = -math.inf  # when to search for lost requests, on the monotonic clock
        self._reconcile_at: float | None = None  # when to reconcile; None while no loss is suspected
        self._scan: AsyncIterator[Sequence[Unfinished]] | None = None  # of the patrol
        self._suspects: dict[tuple[str, str], float] = {}  # missing requests as (model, id), and since when

    async def run(self) -> None:
        """Run until cancelled."""
        await run_forever(self._sweep_rounds, pause_s=ROUND_S, failure_event="sweep_failed")

    async def _sweep_rounds(self) -> None:
        async with self._live.subscribe(f"hr:{LOCK}") as connection:
            self._suspect_losses()
            while True:
                await self._round(connection)

    async def _round(self, connection: Subscription) -> None:
        if await self._leads():
            await self.sweep(tidy=self._rounds % TIDY_INTERVAL_ROUNDS == 0)
            if time.monotonic() >= self._lost_due:
                await self.end_lost()
            await self.patrol()
            self._rounds += 1
            if self._reconcile_at is not None and time.monotonic() > self._reconcile_at:
                self._reconcile_at = None
                await self.reconcile()
        else:
            self._suspect_losses()  # the process that sweeps now may die before it has reconciled
        if await connection.get(ROUND_S) is MISSED:
            self._suspect_losses()

    def _suspect_losses(self) -> None:
        """Have the token log compared with the queue, once what was admitted until now is old enough."""
        self._reconcile_at = time.monotonic() + MIN_LOST_AGE_S

    async def _leads(self) -> bool:
        return await self._locks.acquire(LOCK, self._holder, ROUND_S * 5) == self._holder

    async def sweep(self, *, tidy: bool) -> None:
        """End overdue requests; with `tidy`, also remove dead workers and lapsed places. Raises Unavailable."""
        for model in await self._models():
            async for job_ids in self._overdue(model):
                for job_id in job_ids:
                    await self._end_overdue(job_id)
                await self._transport.forget(model, job_ids)
            for job_id in await self._transport.lapsed(model) if tidy else ():
                await self._release_place(model, job_id)
            if tidy and (removed := await self._transport.tidy(model)):
                log.info("dead_workers_removed", model=model, count=removed)

    async def _release_place(self, model: str, job_id: str) -> None:
        """Release the reserved place of a request in Kafka if its answer has ended or expired."""
        record = await self._token_log.record(job_id)
        if record is None or record.state.terminal:
            await self._transport.discard(Ticket(job_id, model, PriorityClass.STANDARD, ""))

    async def _overdue(self, model: str) -> AsyncIterator[list[str]]:
        while job_ids := await self._transport.overdue(model, MAX_BATCH):
            yield job_ids

    async def _end_overdue(self, job_id: str) -> None:
        record = await self._token_log.close(job_id, OVERDUE)
        if record is not None and (stay := await self._transport.discard(record.ticket)):
            await self._token_log.note_stay(job_id, stay)

    async def end_lost(self) -> None:
        """End the requests whose place in the queue another program deleted. Raises Unavailable."""
        began = time.monotonic()
        for model in await self._models():
            lost = await self._transport.lost(model)
            for job_id in lost.job_ids:
                await self._end_if_unfinished(job_id)
            await self._transport.forget(model, lost.job_ids)
            if lost.incomplete and self._reconcile_at is None:
                self._suspect_losses()
        ended = time.monotonic()
        self._lost_due = ended + max(LOST_INTERVAL_ROUNDS * ROUND_S, LOST_REST * (ended - began))

    async def reconcile(self) -> None:
        """End every request that no worker will ever run. Raises Unavailable.

        If Redis lost its last writes, or another program deleted a model's queue, a request may have kept its log
        and lost its place in the queue. This runs MIN_LOST_AGE_S after such a loss was noticed, at most once per
        MIN_LOST_AGE_S. It costs one scan of all keys, 500 of them per round trip, one look at each state, and for
        each 500 keys at most one read of the held requests. Requests from topics are left to `patrol`.
        """
        async for found in self._token_log.unfinished():
            for _, job_id in await self._missing([each for each in found if not each.source]):
                await self._end_if_unfinished(job_id)

    async def patrol(self) -> None:
        """Look for lost requests among the next 500 keys, and end those that are missing twice. Raises Unavailable.

        This finds a request of which another program deleted every trace in the queue, which nothing else notices.
        A round costs one step of a scan and one look at each state in it. A request may be on its way into the
        queue, so it is looked at again after MIN_LOST_AGE_S. One from a topic may wait in its worker for as long as
        the queue is full; the worker looks after its place until it begins.
        """
        await self._end_suspects()
        self._scan = self._scan or self._token_log.unfinished()
        found = await anext(self._scan, None)
        if found is None:
            self._scan = None
            return
        placed = [each for each in found if not (each.source and each.state is RequestState.QUEUED)]
        for suspect in (await self._missing(placed))[: MAX_SUSPECTS - len(self._suspects)]:
            self._suspects.setdefault(suspect, time.monotonic())

    async def _end_suspects(self) -> None:
        before = time.monotonic() - MIN_LOST_AGE_S
        due = [suspect for suspect, since in self._suspects.items() if since <= before]
        for model, job_id in due:
            if await self._transport.missing(model, [job_id]):
                await self._end_if_unfinished(job_id)
            del self._suspects[model, job_id]

    async def _missing(self, requests: Sequence[Unfinished]) -> list[tuple[str, str]]:
        """Return model and id of the requests without a place in the queue, except new ones."""
        newest = await self._token_log.now() - MIN_LOST_AGE_S
        by_model = defaultdict(list)
        for each in requests:
            if each.created_at < newest:
                by_model[each.model].append(each.id)
        return [(m, job_id) for m, ids in by_model.items() for job_id in await self._transport.missing(m, ids)]

    async def _end_if_unfinished(self, job_id: str) -> None:
        """End a lost request, unless it ended in the meantime: a finished request leaves the queue too.

        A request that never ran is deleted, as if Redis had lost all of it: its Idempotency-Key may send it again.
        """
        record = await self._token_log.close(job_id, LOST, forget_queued=True)
        if record is not None and not record.state.terminal:
            log.error("request_lost", job_id=job_id, state=record.state.value)
