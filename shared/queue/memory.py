"""The queue in the memory of one process, under the same contract: for tests, and for use without a server.

No call awaits before it is complete, so that no other sees it half done. Nothing outlives the process.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.errors import HeadraceError, QueueFull, TenantQueueFull
from shared.protocol import Outlook, PriorityClass, Request, Ticket
from shared.queue import interface
from shared.queue.interface import (
    CLASS_WEIGHTS,
    FORGET_AFTER_S,
    Bounds,
    Claim,
    Delivery,
    Lost,
    Pulled,
    QueueDepth,
    Room,
    refusal,
)
from shared.redis import keys
from shared.token_log.memory import MemoryLive
from shared.validation.request_limits import token_estimate

WINDOW_S = 30.0  # over which the drain rate is averaged


@dataclass
class _Waiting:
    request: Request
    cost: int
    born: float


@dataclass
class _Lane:
    """A tenant's waiting requests by id, oldest first, and its virtual time."""

    start: float
    requests: dict[str, _Waiting] = field(default_factory=dict)


@dataclass
class _Class:
    """The lanes of one class under start-time fair queueing."""

    start: float = 0.0
    clock: float = 0.0
    lanes: dict[str, _Lane] = field(default_factory=dict)
    resting: dict[str, float] = field(default_factory=dict)
    drained: float = 0.0

    @property
    def waiting(self) -> int:
        return sum(len(lane.requests) for lane in self.lanes.values())


@dataclass
class _Held:
    request: Request
    priority: PriorityClass
    worker: str
    beat: float
    attempt: int = 1


class _Queue:
    """The queue of one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.classes = {priority: _Class() for priority in PriorityClass}
        self.held: dict[str, _Held] = {}
        self.overdue: dict[str, float] = {}
        self.workers: dict[str, float] = {}
        self.pullers: dict[str, int] = {}  # seats by worker
        self.spared: float | None = None  # since when requests are left to less loaded workers
        self.clock = 0.0
        self.deliveries = 0
        self.tokens = 0.0
        self.since = self.at = -math.inf

    def waiting(self, tenant: str | None = None) -> list[_Waiting]:
        return [
            item
            for found in self.classes.values()
            for name, lane in found.lanes.items()
            if tenant in (None, name)
            for item in lane.requests.values()
        ]

    def less_loaded(self, worker: str) -> dict[str, int]:
        """Return how many requests each less loaded worker takes until its load is that of `worker`."""
        if len(self.pullers) == 1:
            return {}
        held = Counter(each.worker for each in self.held.values())
        load = min(1.0, held[worker] / self.pullers[worker])
        owed = {name: math.ceil(load * seats) - held[name] for name, seats in self.pullers.items()}
        return {name: requests for name, requests in owed.items() if requests > 0 and name != worker}

    def leave(self, priority: PriorityClass, tenant: str, job_id: str) -> _Waiting | None:
        found = self.classes[priority]
        lane = found.lanes.get(tenant)
        item = lane.requests.pop(job_id, None) if lane else None
        if lane and not lane.requests:
            found.resting[tenant] = lane.start
            del found.lanes[tenant]
        if not self.waiting():
            for each in self.classes.values():
                each.resting.clear()
        return item


class MemoryTransport:
    """Transport in memory.

    Args:
        live: publishes wake-ups.
        bounds: bounds of each queue.
        lease: seconds of silence after which a held message may be claimed.
        clock: seconds since the epoch.
    """

    def __init__(
        self, live: MemoryLive, *, bounds: Bounds, lease: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._live = live
        self._bounds = bounds
        self._lease = lease
        self._clock = clock
        self._queues: dict[str, _Queue] = {}

    async def publish(self, request: Request) -> Ticket:
        queue, priority, tenant = self._queue(request.model), request.priority, request.tenant
        cost = token_estimate(request)
        ticket = Ticket(request.id, request.model, priority, tenant)
        if await self.outlook(ticket) is not None:
            return ticket
        self._check(queue, request, cost)
        found = queue.classes[priority]
        if not found.waiting:
            found.start = max(found.start, queue.clock)
        if tenant not in found.lanes:
            found.lanes[tenant] = _Lane(max(found.resting.pop(tenant, 0.0), found.clock))
        found.lanes[tenant].requests[request.id] = _Waiting(request, cost, self._clock())
        if request.deadline is not None:
            queue.overdue[request.id] = request.deadline
        self._live.publish(keys.wake_channel(request.model), b"published")
        return ticket

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        places: list[Ticket | HeadraceError] = []
        for request in requests:
            try:
                places.append(await self.publish(request))
            except (QueueFull, TenantQueueFull) as refused:
                places.append(refused)
        return places

    def _check(self, queue: _Queue, request: Request, cost: int) -> None:
        bounds = self._bounds
        for whole_model, items, depth, tokens in (
            (True, queue.waiting(), bounds.depth, bounds.tokens),
            (False, queue.waiting(request.tenant), bounds.tenant_depth, bounds.tenant_tokens),
        ):
            total = sum(item.cost for item in items)
            if len(items) >= depth or (items and total + cost > tokens):
                speed = queue.tokens * self._kept(queue)
                excess = max(total / len(items) * max(1.0, depth / 10), total + cost - tokens)
                raise refusal(request.model, whole_model=whole_model, wait=excess / speed if speed else None)

    async def pull(self, model: str, worker: str, room: Room) -> Pulled:
        queue, seats = self._queue(model), dict(room.seats)
        queue.workers[worker] = self._clock()
        queue.pullers[worker] = room.capacity
        found: list[Delivery] = []
        spared, now = False, self._clock()
        while open_classes := [p for p in PriorityClass if seats[p] > 0 and queue.classes[p].lanes]:
            less_loaded = queue.less_loaded(worker)
            if len(queue.waiting()) <= sum(less_loaded.values()):
                if queue.spared is None or now - queue.spared < interface.SPARE_S:
                    spared = True
                    break
                for silent in less_loaded:
                    del queue.pullers[silent]
            priority = min(open_classes, key=lambda p: queue.classes[p].start)
            if delivery := self._take(queue, priority, worker, seats, room.capacity):
                found.append(delivery)
        if found or not queue.waiting():
            queue.spared = None
        if spared and queue.spared is None:
            queue.spared = now
        return Pulled(found, bool(queue.waiting()), spared)

    def _take(
        self,
        queue: _Queue,
        priority: PriorityClass,
        worker: str,
        seats: dict[PriorityClass, int],
        capacity: int,
    ) -> Delivery | None:
        found = queue.classes[priority]
        tenant, lane = min(found.lanes.items(), key=lambda pair: (pair[1].start, pair[0]))
        job_id, item = next(iter(lane.requests.items()))
        if item.request.params.n > seats[priority] and seats[priority] < capacity:
            seats[priority] = 0
            return None
        queue.clock = max(queue.clock, found.start)
        found.start += item.cost / CLASS_WEIGHTS[priority]
        found.clock = max(found.clock, lane.start)
        began, lane.start = lane.start, lane.start + item.cost
        queue.leave(priority, tenant, job_id)
        found.resting = {name: start for name, start in found.resting.items() if start > began}
        self._drained(queue, priority, item.cost)
        for other in PriorityClass:
            seats[other] -= item.request.params.n
        queue.deliveries += 1
        entry = f"{queue.deliveries}-0"
        queue.held[entry] = _Held(item.request, priority, worker, self._clock())
        return Delivery(item.request, Claim(item.request.id, queue.model, priority, entry), 1)

    def _drained(self, queue: _Queue, priority: PriorityClass, cost: int) -> None:
        now = self._clock()
        if now - queue.at > 5 * WINDOW_S:
            queue.since = now
        kept = math.exp(-(now - queue.at) / WINDOW_S)
        for each in queue.classes.values():
            each.drained *= kept
        queue.classes[priority].drained += 1
        queue.tokens = queue.tokens * kept + cost
        queue.at = now

    def _kept(self, queue: _Queue) -> float:
        """Return the factor from a decayed sum to a rate per second; 0 before anything was pulled."""
        now = self._clock()
        seen = WINDOW_S * (1 - math.exp(-max(now - queue.since, 1) / WINDOW_S))
        return math.exp(-(now - queue.at) / WINDOW_S) / seen

    async def claim(self, model: str, worker: str, most: int) -> list[Delivery]:
        queue, now = self._queue(model), self._clock()
        queue.workers[worker] = now
        found: list[Delivery] = []
        for entry, held in queue.held.items():
            if len(found) < most and now - held.beat >= self._lease:
                held.worker, held.beat = worker, now
                held.attempt += 1
                claim = Claim(held.request.id, model, held.priority, entry)
                found.append(Delivery(held.request, claim, held.attempt))
        return found

    async def renew(self, model: str, worker: str, claims: Sequence[Claim]) -> list[Claim]:
        queue, lost = self._queue(model), []
        for claim in claims:
            held = queue.held.get(claim.entry)
            if held is None or held.worker != worker:
                lost.append(claim)
            else:
                held.beat = self._clock()
        return lost

    async def release(self, model: str, worker: str, claims: Sequence[Claim]) -> None:
        queue = self._queue(model)
        for claim in claims:
            held = queue.held.get(claim.entry)
            if held is not None and held.worker == worker:
                held.beat, held.attempt = -math.inf, held.attempt - 1
        self._live.publish(keys.wake_channel(model), b"released")

    async def acknowledge(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            queue = self._queue(claim.model)
            queue.held.pop(claim.entry, None)
            queue.overdue.pop(claim.job_id, None)

    async def discard(self, ticket: Ticket) -> None:
        queue = self._queue(ticket.model)
        if queue.leave(ticket.priority, ticket.tenant, ticket.job_id):
            queue.overdue.pop(ticket.job_id, None)

    async def depth(self, model: str) -> QueueDepth:
        queue = self._queue(model)
        items = queue.waiting()
        oldest = min((item.born for item in items), default=self._clock())
        return QueueDepth(len(items), sum(i.cost for i in items), len(queue.held), self._clock() - oldest)

    async def outlook(self, ticket: Ticket) -> Outlook | None:
        queue = self._queue(ticket.model)
        found = queue.classes[ticket.priority]
        lane = found.lanes.get(ticket.tenant)
        if lane is None or ticket.job_id not in lane.requests:
            return None
        rank = list(lane.requests).index(ticket.job_id) + 1
        place = rank + min(found.waiting - len(lane.requests), rank * (len(found.lanes) - 1))
        speed = found.drained * self._kept(queue)
        return Outlook(place, place / speed if speed else None)

    async def overdue(self, model: str, most: int) -> list[str]:
        now = self._clock()
        return [job_id for job_id, deadline in self._queue(model).overdue.items() if deadline <= now][:most]

    async def forget(self, model: str, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            self._queue(model).overdue.pop(job_id, None)

    async def missing(self, model: str, job_ids: Sequence[str]) -> list[str]:
        queue = self._queue(model)
        known = {item.request.id for item in queue.waiting()} | {held.request.id for held in queue.held.values()}
        return [job_id for job_id in job_ids if job_id not in known]

    async def lapsed(self, model: str) -> list[str]:
        return []  # nothing passes through Kafka

    async def lost(self, model: str) -> Lost:
        return Lost([])  # no other program reaches this memory

    async def tidy(self, model: str) -> int:
        queue, now = self._queue(model), self._clock()
        busy = {held.worker for held in queue.held.values()}
        gone = [name for name, seen in queue.workers.items() if name not in busy and now - seen > FORGET_AFTER_S]
        for name in gone:
            del queue.workers[name]
            queue.pullers.pop(name, None)
        return len(gone)

    def _queue(self, model: str) -> _Queue:
        return self._queues.setdefault(model, _Queue(model))
