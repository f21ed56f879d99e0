"""The queue in the memory of one process, under the same contract: for tests, and for use without a server.

No call awaits before it is complete, so that no other sees it half done. Nothing outlives the process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from shared.errors import HeadraceError, QueueFull, TenantQueueFull
from shared.protocol import Outlook, PriorityClass, Request, Ticket
from shared.queue.interface import (
    CLASS_WEIGHTS,
    FORGET_AFTER_S,
    Backlogs,
    Bounds,
    Claim,
    Delivery,
    Lost,
    Pulled,
    QueueDepth,
    Room,
    refusal,
)
from shared.queue.memory_lanes import Held, Lane, ModelQueue, Search, Sighting, Waiting
from shared.queue.router import Router
from shared.redis import keys
from shared.token_log.memory import MemoryLive
from shared.validation.token_estimate import token_estimate

WINDOW_S = 30.0  # over which the drain rate is averaged


class MemoryTransport:
    """Transport in memory.

    Args:
        live: publishes wake-ups.
        bounds: bounds of each queue.
        lease: seconds of silence after which a held message may be claimed.
        router: chooses the workers of requests; None lets each worker take whatever it has room for.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        live: MemoryLive,
        *,
        bounds: Bounds,
        lease: float,
        router: Router | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._live = live
        self._bounds = bounds
        self._lease = lease
        self._router = router
        self._clock = clock
        self._queues: dict[str, ModelQueue] = {}

    async def publish(self, request: Request) -> Ticket:
        queue, priority, tenant = self._queue(request.model), request.priority, request.tenant
        [aim] = await self._router.aims([request], self._loads) if self._router else [""]
        cost = token_estimate(request)
        ticket = Ticket(request.id, request.model, priority, tenant)
        if await self.outlook(ticket) is not None:
            return ticket
        self._check(queue, request, cost)
        found = queue.classes[priority]
        own = len(found.lanes[tenant].requests) if tenant in found.lanes else 0
        backlog = queue.backlog(priority, tenant, own) if queue.waiting() else None
        if not found.waiting:
            found.start = max(found.start, queue.clock)
        if tenant not in found.lanes:
            found.lanes[tenant] = Lane(max(found.resting.pop(tenant, 0.0), found.clock))
        found.lanes[tenant].requests[request.id] = Waiting(request, cost, self._clock(), aim, backlog)
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

    def _check(self, queue: ModelQueue, request: Request, cost: int) -> None:
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
        queue, seats, now = self._queue(model), dict(room.seats), self._clock()
        queue.workers[worker] = now
        queue.pullers[worker] = room.capacity
        patience = self._router.patience(model) if self._router else 0.0
        search = queue.search(worker, now, lease=self._lease, patience=patience)
        found: list[Delivery] = []
        while open_classes := [p for p in PriorityClass if seats[p] > 0 and queue.classes[p].lanes]:
            search.shares = queue.leaves(len(queue.waiting()), worker, queue.spared, now)
            priority = min(open_classes, key=lambda p: queue.classes[p].start)
            if delivery := self._take(queue, priority, search, seats, room.capacity):
                found.append(delivery)
        spared = search.shares and bool(queue.waiting())
        if found or not queue.waiting():
            queue.spared = None
        if spared and queue.spared is None:
            queue.spared = now
        if self._is_routed(model):
            used = sum(delivery.request.params.n for delivery in found)
            passes = search.passed and used < max(room.seats.values())
            queue.see(worker, now, passes=passes)
            spared = spared or passes
        return Pulled(found, bool(queue.waiting()), spared)

    def _take(
        self,
        queue: ModelQueue,
        priority: PriorityClass,
        search: Search,
        seats: dict[PriorityClass, int],
        capacity: int,
    ) -> Delivery | None:
        found = queue.classes[priority]
        first = search.first_of(found)
        if first is None or (first[2].request.params.n > seats[priority] and seats[priority] < capacity):
            seats[priority] = 0
            return None
        tenant, lane, item = first
        queue.clock = max(queue.clock, found.start)
        found.start += item.cost / CLASS_WEIGHTS[priority]
        found.clock = max(found.clock, lane.start)
        began, lane.start = lane.start, lane.start + item.cost
        queue.leave(priority, tenant, item.request.id)
        found.resting = {name: start for name, start in found.resting.items() if start > began}
        self._drained(queue, priority, item.cost)
        for other in PriorityClass:
            seats[other] -= item.request.params.n
        if item.aim not in ("", search.worker) and self._router:
            self._router.count(queue.model, "returned")
        queue.deliveries += 1
        entry = f"{queue.deliveries}-0"
        routed = item.aim != ""
        queue.held[entry] = Held(
            item.request, priority, search.worker, self._clock(), item.cost, routed, item.backlog
        )
        return Delivery(item.request, Claim(item.request.id, queue.model, priority, entry), 1, item.backlog)

    def _drained(self, queue: ModelQueue, priority: PriorityClass, cost: int) -> None:
        now = self._clock()
        if now - queue.at > 5 * WINDOW_S:
            queue.since = now
        kept = math.exp(-(now - queue.at) / WINDOW_S)
        for each in queue.classes.values():
            each.drained *= kept
        queue.classes[priority].drained += 1
        queue.tokens = queue.tokens * kept + cost
        queue.at = now

    def _kept(self, queue: ModelQueue) -> float:
        """Return the factor from a decayed sum to a rate per second; 0 before anything was pulled."""
        now = self._clock()
        seen = WINDOW_S * (1 - math.exp(-max(now - queue.since, 1) / WINDOW_S))
        return math.exp(-(now - queue.at) / WINDOW_S) / seen

    async def claim(self, model: str, worker: str, room: Room) -> Pulled:
        queue, now = self._queue(model), self._clock()
        queue.workers[worker] = now
        expired = [entry for entry, held in queue.held.items() if now - held.beat >= self._lease]
        for entry in expired:
            queue.forget(queue.held[entry].worker)
        queue.pullers[worker] = room.capacity
        if self._is_routed(model):
            queue.seen.setdefault(worker, Sighting(now)).at = now
        found: list[Delivery] = []
        spared = False
        while expired and len(found) < max(room.seats.values()):
            if spared := queue.leaves(len(expired), worker, queue.left, now):
                break
            found.append(self._take_over(queue, expired.pop(0), worker))
        if found or not spared:
            queue.left = None
        if spared and queue.left is None:
            queue.left = now
            self._live.publish(keys.wake_channel(model), b"released")
        return Pulled(found, bool(expired), spared)

    def _take_over(self, queue: ModelQueue, entry: str, worker: str) -> Delivery:
        held = queue.held[entry]
        held.worker, held.beat = worker, self._clock()
        held.attempt += 1
        claim = Claim(held.request.id, queue.model, held.priority, entry)
        return Delivery(held.request, claim, held.attempt, held.backlog)

    async def renew(self, model: str, worker: str, claims: Sequence[Claim]) -> list[Claim]:
        queue, lost = self._queue(model), []
        if worker in queue.seen:
            queue.seen[worker].at = self._clock()
        for claim in claims:
            held = queue.held.get(claim.entry)
            if held is None or held.worker != worker:
                lost.append(claim)
            else:
                held.beat = self._clock()
        return lost

    async def release(self, model: str, worker: str, claims: Sequence[Claim], *, lost: bool = False) -> None:
        queue = self._queue(model)
        for claim in claims:
            held = queue.held.get(claim.entry)
            if held is not None and held.worker == worker:
                held.beat, held.attempt = -math.inf, held.attempt - (not lost)
        self._live.publish(keys.wake_channel(model), b"released")

    async def leave(self, model: str, worker: str) -> None:
        self._queue(model).forget(worker)
        self._live.publish(keys.wake_channel(model), b"published")

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

    async def backlogs(self, ticket: Ticket) -> Backlogs | None:
        queue = self._queue(ticket.model)
        lane = queue.classes[ticket.priority].lanes.get(ticket.tenant)
        if lane is None or ticket.job_id not in lane.requests:
            return None
        item, rank = lane.requests[ticket.job_id], list(lane.requests).index(ticket.job_id)
        return Backlogs(queue.backlog(ticket.priority, ticket.tenant, rank, item), item.backlog)

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
            queue.forget(name)
        return len(gone)

    async def _loads(self, model: str) -> dict[str, int]:
        return self._queue(model).loads(self._clock(), self._lease)

    def _is_routed(self, model: str) -> bool:
        return self._router is not None and self._router.routes(model)

    def _queue(self, model: str) -> ModelQueue:
        return self._queues.setdefault(model, ModelQueue(model))
