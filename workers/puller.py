"""Puller of a worker: pulls the requests that the engine has room for, claims those that other workers lost, and
acquires their leases.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from shared.backend import Backend
from shared.dead_letters.store import DeadLetter
from shared.errors import HeadraceError, RequestAbandoned, Unavailable
from shared.protocol import ErrorInfo
from shared.queue import interface
from shared.queue.interface import Claim, Delivery, Room
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.interface import Lease
from shared.token_log.subscription import Subscription
from workers.metrics import WorkerMetrics
from workers.sole_request import SoleRequestRecord

POLL_INTERVAL_S = 1.0  # between pulls without a notification
CLAIMS_PER_LEASE = 3  # checks per lease for requests that other workers lost
MIN_LOSSES_ALONE = 2  # workers lost in a row that ran this request alone; a single loss may have another cause
RETRY_PAUSE_S = 0.25

log = structlog.get_logger(__name__)


class Puller:
    """Pulls requests for one worker.

    Args:
        model: name of the model whose queue is pulled.
        worker: id of the worker.
        room: returns how many more sequences the engine can take now.
        start_runs: called with the requests that one round acquired.
        drop_run: called with the id of each delivered job; an earlier run of it on this worker must end.
        sole_request: records whether a request runs alone.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        metrics: WorkerMetrics,
        *,
        model: str,
        worker: str,
        room: Callable[[], Room],
        start_runs: Callable[[Sequence[tuple[Delivery, Lease]]], Awaitable[None]],
        drop_run: Callable[[str], object],
        sole_request: SoleRequestRecord,
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._max_attempts = settings.max_attempts
        self._model = model
        self._worker = worker
        self._room = room
        self._start_runs = start_runs
        self._drop_run = drop_run
        self._sole_request = sole_request
        self._interval = settings.lease / CLAIMS_PER_LEASE
        self._claim_at = 0.0
        self._may_have_more = True  # the queue may hold requests that were not returned by the last pull
        self._left_to_others = False  # the last pull left requests to less loaded workers, for a moment
        self._suspect_id = ""  # the request on its last attempt that runs now, until it is cleared
        self._deferred: deque[Delivery] = deque()
        self._wake_up = asyncio.Event()
        self._closed = False

    def room_changed(self) -> None:
        """Wake the puller: the engine has more room."""
        self._wake_up.set()

    def close(self) -> None:
        """Stop pulling; `run` returns after the current round."""
        self._closed = True
        self._wake_up.set()

    async def run(self) -> None:
        """Pull until `close` is called."""
        async with self._backend.live.subscribe(keys.wake_channel(self._model)) as woken:
            listening = asyncio.create_task(self._listen_for_wake_ups(woken))
            try:
                await self._pull_until_closed()
            finally:
                listening.cancel()

    async def _pull_until_closed(self) -> None:
        while not self._closed:
            self._wake_up.clear()
            try:
                taken = await self._pull_once()
            except Unavailable as error:
                log.warning("queue_unavailable", error=error.message)
                self._may_have_more = True
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            if not (taken and self._may_have_more) or self._left_to_others:
                await self._wait()

    async def _pull_once(self) -> int:
        now = time.monotonic()
        self._left_to_others = False
        if not (self._may_have_more or self._deferred or now >= self._claim_at):
            return 0
        room = self._room()
        if not any(room.seats.values()):
            return 0
        deliveries = await self._next_deferred()
        if not deliveries and now >= self._claim_at:
            self._claim_at = now + self._interval
            deliveries, _, self._left_to_others = await self._backend.transport.claim(
                self._model, self._worker, room
            )
            if self._left_to_others:
                self._claim_at = now + interface.SPARE_S
        if not deliveries and self._may_have_more:
            self._may_have_more = False  # a notification during the pull sets it again
            deliveries, more, left_to_others = await self._backend.transport.pull(self._model, self._worker, room)
            self._may_have_more |= more
            self._left_to_others |= left_to_others
        await self._acquire(deliveries)
        return len(deliveries)

    async def _wait(self) -> None:
        """Wait for a publication, a release or more room, at most until the next poll or claim is due."""
        try:
            async with asyncio.timeout(
                min(interface.SPARE_S if self._left_to_others else POLL_INTERVAL_S, self._interval)
            ):
                await self._wake_up.wait()
        except TimeoutError:
            self._may_have_more = True

    async def _listen_for_wake_ups(self, woken: Subscription) -> None:
        while True:
            if await woken.get(None) != b"published":  # requests were released, or notifications missed
                self._claim_at = 0.0
            self._may_have_more = True
            self._wake_up.set()

    async def _acquire(self, deliveries: Sequence[Delivery]) -> None:
        """Acquire the log of each request that can run, and acknowledge or set aside the others."""
        finished: list[Claim] = []
        runnable: list[Delivery] = []
        for delivery in deliveries:
            self._drop_run(delivery.request.id)
            if self._may_start(delivery):
                runnable.append(delivery)
        async with self._sole_request.acquiring(len(runnable)) as alone:
            leases = await self._backend.token_log.acquire(
                [delivery.request.id for delivery in runnable],
                self._worker,
                [delivery.attempt for delivery in runnable],
                alone=alone,
                stays=[delivery.stay for delivery in runnable],
            )
            taken: list[tuple[Delivery, Lease]] = []
            for delivery, lease in zip(runnable, leases, strict=True):
                if lease is not None and not self._must_set_aside(lease):
                    taken.append((delivery, lease))
                    continue
                if lease is not None:
                    await self._abandon(delivery, lease)
                finished.append(delivery.claim)
                self.clear((delivery.request.id,))
            await self._start_runs(taken)
        await self._backend.transport.acknowledge(finished)

    def _must_set_aside(self, lease: Lease) -> bool:
        """Return True if the request must not run again.

        The last attempt runs a request alone, to see whether it kills its worker. If two workers were lost that ran
        it alone, that is already known, and the last attempt is skipped.
        """
        proven_alone = lease.lost_alone >= MIN_LOSSES_ALONE
        return lease.losses >= self._max_attempts - proven_alone

    def _may_start(self, delivery: Delivery) -> bool:
        """Return True if a request may run now; defer it otherwise.

        Requests on their last attempt run one at a time until they are cleared, because one of them may have killed
        the earlier workers. Deferred ones are not acquired, so that the next loss is not counted against them, and
        their lease is not renewed, so that a worker without a suspect may take them over.
        """
        if delivery.attempt == 1 or delivery.attempt < self._max_attempts:
            return True
        if self._suspect_id not in ("", delivery.request.id):
            self._deferred.append(delivery)
            return False
        self._suspect_id = delivery.request.id
        return True

    def clear(self, job_ids: Iterable[str]) -> None:
        """Clear requests of suspicion: they have produced a token, or have ended."""
        if self._suspect_id and self._suspect_id in job_ids:
            self._suspect_id = ""
            if self._deferred:
                self._wake_up.set()

    async def _next_deferred(self) -> list[Delivery]:
        """Return the next deferred request whose claim this worker still holds."""
        while self._deferred and not self._suspect_id:
            delivery = self._deferred.popleft()
            if not await self._backend.transport.renew(self._model, self._worker, [delivery.claim]):
                return [delivery]
        return []

    async def _abandon(self, delivery: Delivery, lease: Lease) -> None:
        alone = " and nothing else" if lease.lost_alone >= MIN_LOSSES_ALONE else ""
        error = RequestAbandoned(f"set aside: {lease.losses} workers were lost while they ran it{alone}")
        await set_aside(self._backend, self._metrics, delivery, error, lease.losses)
        await self._backend.token_log.close(delivery.request.id, error)


async def set_aside(
    backend: Backend, metrics: WorkerMetrics, delivery: Delivery, error: HeadraceError, attempts: int
) -> None:
    """Add a request that will not run again to the dead letters, with the reason. Raises Unavailable."""
    request, at = delivery.request, await backend.token_log.now()
    await backend.dead_letters.add(DeadLetter(request, ErrorInfo.from_error(error), attempts, at))
    metrics.count_dead_letter(request.model, error.code)
    log.error("request_set_aside", job_id=request.id, attempts=attempts, reason=error.code)
