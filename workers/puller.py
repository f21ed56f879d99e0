"""A worker's way in: pulls what the engine has room for, claims what others lost, and takes each one's lease.

It knows nothing of engines: what it has taken it hands on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from shared.backend import Backend
from shared.dead_letters.store import DeadLetter
from shared.errors import HeadraceError, RequestAbandoned, Unavailable
from shared.protocol import ErrorInfo, Request
from shared.queue import interface
from shared.queue.interface import Claim, Delivery, Room
from shared.redis import keys
from shared.settings import Settings
from shared.token_log.interface import Lease
from shared.token_log.subscription import Subscription
from workers.sole_request import Solitude

POLL = 1.0  # seconds after which the queue is looked at although nobody said that there is something
CLAIMS_PER_LEASE = 3  # looks, within a lease, for what others lost
PROOF = 2  # workers lost in a row with one request alone; one may have been killed by something else
RETRY = 0.25

log = structlog.get_logger(__name__)


class Intake:
    """Pulls for one worker.

    Args:
        model, worker: whose queue, and for whom.
        room: what the engine can take now.
        begin: called with all that was taken in one round.
        displace: told of a request that comes again; what is left of an earlier run of it must go.
        solitude: records whether what is taken runs alone.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        *,
        model: str,
        worker: str,
        room: Callable[[], Room],
        begin: Callable[[Sequence[tuple[Delivery, Lease]]], Awaitable[None]],
        displace: Callable[[str], object],
        solitude: Solitude,
    ) -> None:
        self._backend = backend
        self._max_attempts = settings.max_attempts
        self._model = model
        self._worker = worker
        self._room = room
        self._begin = begin
        self._displace = displace
        self._solitude = solitude
        self._interval = settings.lease / CLAIMS_PER_LEASE
        self._claim_at = 0.0
        self._more = True  # something may wait that we have not been given
        self._spared = False  # some of that is left to less loaded workers, for a moment
        self._suspect = ""  # the request at its last attempt that runs now, until it is cleared
        self._parked: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def more_room(self) -> None:
        """There is room, or it is time to look."""
        self._changed.set()

    def close(self) -> None:
        """Pull no more; `run` returns once what it has begun is done."""
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        async with self._backend.live.subscribe(keys.wake_channel(self._model)) as woken:
            listening = asyncio.create_task(self._listen(woken))
            try:
                await self._pull_on()
            finally:
                listening.cancel()

    async def _pull_on(self) -> None:
        while not self._closed:
            self._changed.clear()
            try:
                taken = await self._fill()
            except Unavailable as error:
                log.warning("queue_unavailable", error=error.message)
                self._more = True
                await asyncio.sleep(RETRY)
                continue
            if not (taken and self._more) or self._spared:
                await self._change()

    async def _fill(self) -> int:
        now = time.monotonic()
        self._spared = False
        if not (self._more or self._parked or now >= self._claim_at):
            return 0
        room = self._room()
        if not any(room.seats.values()):
            return 0
        found = await self._next_parked()
        if not found and now >= self._claim_at:
            self._claim_at = now + self._interval
            most = max(room.seats.values())
            found = await self._backend.transport.claim(self._model, self._worker, most)
        if not found and self._more:
            self._more = False  # unless somebody says otherwise meanwhile
            found, more, self._spared = await self._backend.transport.pull(self._model, self._worker, room)
            self._more |= more
        await self._take(found)
        return len(found)

    async def _change(self) -> None:
        """Until something was published or released, room was made, or it is time to look by ourselves."""
        try:
            async with asyncio.timeout(min(interface.SPARE_S if self._spared else POLL, self._interval)):
                await self._changed.wait()
        except TimeoutError:
            self._more = True

    async def _listen(self, woken: Subscription) -> None:
        while True:
            if await woken.get(None) != b"published":  # released, or some were missed
                self._claim_at = 0.0
            self._more = True
            self._changed.set()

    async def _take(self, found: Sequence[Delivery]) -> None:
        """Acquire the log of each that can be run, and let go of what cannot."""
        done: list[Claim] = []
        wanted: list[Delivery] = []
        for item in found:
            self._displace(item.request.id)
            if self._may_run(item):
                wanted.append(item)
        async with self._solitude.taking(len(wanted)) as alone:
            leases = await self._backend.token_log.acquire(
                [item.request.id for item in wanted], self._worker, [item.attempt for item in wanted], alone=alone
            )
            taken: list[tuple[Delivery, Lease]] = []
            for item, lease in zip(wanted, leases, strict=True):
                if lease is not None and not self._is_lethal(lease):
                    taken.append((item, lease))
                    continue
                if lease is not None:
                    await self._abandon(item, lease)
                done.append(item.claim)
                self.cleared(item.request.id)
            await self._begin(taken)
        await self._backend.transport.acknowledge(done)

    def _is_lethal(self, lease: Lease) -> bool:
        """Return True if the request may not run again.

        Its last attempt would run it apart, to find out; where it was alone before, that is known already.
        """
        known = lease.lost_alone >= PROOF
        return lease.losses >= self._max_attempts - known

    def _may_run(self, item: Delivery) -> bool:
        """What comes for its last attempt runs one at a time, until it is cleared: it may be what killed the rest.

        Those that wait for that are not acquired, so that the next death is not counted as theirs; and their lease
        is not renewed, so that a worker without a suspect of its own may take them over.
        """
        if item.attempt == 1 or item.attempt < self._max_attempts:
            return True
        if self._suspect not in ("", item.request.id):
            self._parked.append(item)
            return False
        self._suspect = item.request.id
        return True

    def cleared(self, job_id: str) -> None:
        """It has given a token, or has ended: it was not the one."""
        if self._suspect == job_id:
            self._suspect = ""
            if self._parked:
                self._changed.set()

    async def _next_parked(self) -> list[Delivery]:
        """One that waited to be run apart, and is still ours."""
        while self._parked and not self._suspect:
            item = self._parked.popleft()
            if not await self._backend.transport.renew(self._model, self._worker, [item.claim]):
                return [item]
        return []

    async def _abandon(self, item: Delivery, lease: Lease) -> None:
        alone = " and nothing else" if lease.lost_alone >= PROOF else ""
        error = RequestAbandoned(f"set aside: {lease.losses} workers were lost while they ran it{alone}")
        await set_aside(self._backend, item.request, error, lease.losses)
        await self._backend.token_log.close(item.request.id, error)


async def set_aside(backend: Backend, request: Request, error: HeadraceError, attempts: int) -> None:
    """Keep a request that will not be run again, with the reason. Raises Unavailable."""
    at = await backend.token_log.now()
    await backend.dead_letters.add(DeadLetter(request, ErrorInfo.of(error), attempts, at))
    log.error("request_set_aside", job_id=request.id, attempts=attempts, reason=error.code)
