"""The queue in the memory of one process, under the same contract: for tests, and for use without a server.

No call awaits before it is complete, so that no other sees it half done. Nothing outlives the process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from shared.errors import HeadraceError, QueueFull, TargetUnreachable, TenantQueueFull
from shared.protocol import Outlook, PriorityClass, Request, Stay, Ticket
from shared.queue import interface
from shared.queue.interface import (
    CLASS_WEIGHTS,
    FORGET_AFTER_S,
    Bounds,
    Claim,
    Delivery,
    Demand,
    Lost,
    Pulled,
    QueueDepth,
    Room,
    Wait,
    drain_refusal,
    lane_order,
    late,
    latest_start,
    refusal,
)
from shared.queue.memory_lanes import Held, Lane, ModelQueue, Search, Sighting, Waiting
from shared.queue.memory_rate import WINDOW_S
from shared.queue.router import Router
from shared.queue.survey import RecentRequest
from shared.redis import keys
from shared.token_log.memory import MemoryLive
from shared.validation.token_estimate import token_estimate


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
        queue, priority, tenant = self.queue(request.model), request.priority, request.tenant
        [aim] = await self._router.aims([request], self._loads) if self._router else [""]
        cost = token_estimate(request)
        ticket = Ticket(request.id, request.model, priority, tenant)
        if await self.outlook(ticket) is not None:
            return ticket
        self._check(queue, request, cost)
        now = self._clock()
        arrival = queue.arrive(now)
        order = lane_order(request)
        order = arrival if order is None else order
        self._check_start(queue, request, order)
        found = queue.classes[priority]
        rank = 1 + queue.ahead_of(priority, tenant, order)
        backlog = queue.backlog(priority, tenant, rank) if queue.waiting() else None
        if not found.waiting:
            found.start = max(found.start, queue.clock)
        if tenant not in found.lanes:
            found.lanes[tenant] = Lane(max(found.resting.pop(tenant, 0.0), found.clock))
        found.lanes[tenant].add(Waiting(request, cost, now, order, aim, Stay(now, backlog)))
        if request.deadline is not None:
            queue.overdue[request.id] = request.deadline
        queue.published += 1
        queue.recent.append(RecentRequest((int(self._clock() * 1000), queue.published), request.id))
        self.announce(request.model)
        return ticket

    async def publish_many(self, requests: Sequence[Request]) -> list[Ticket | HeadraceError]:
        places: list[Ticket | HeadraceError] = []
        for request in requests:
            try:
                places.append(await self.publish(request))
            except (QueueFull, TenantQueueFull, TargetUnreachable) as refused:
                places.append(refused)
        return places

    def _check(self, queue: ModelQueue, request: Request, cost: int) -> None:
        bounds = self._bounds
        for name in ("", request.tenant):
            if queue.gates.get(name) == "draining":
                raise drain_refusal(request.model, whole_model=not name)
        for whole_model, items, depth, tokens in (
            (True, queue.waiting(), bounds.depth, bounds.tokens),
            (False, queue.waiting(request.tenant), bounds.tenant_depth, bounds.tenant_tokens),
        ):
            total = sum(item.cost for item in items)
            if len(items) >= depth or (items and total + cost > tokens):
                speed = queue.rate.tokens_per_s(self._clock())
                excess = max(total / len(items) * max(1.0, depth / 10), total + cost - tokens)
                raise refusal(request.model, whole_model=whole_model, wait=excess / speed if speed else None)

    def _check_start(self, queue: ModelQueue, request: Request, order: int) -> None:
        """Raise TargetUnreachable if the request must start earlier than it is expected to."""
        if (by := latest_start(request)) is None:
            return
        if queue.is_paused(request.tenant):
            return
        wait = self._expected_wait(queue, request, order)
        if wait is not None and (overdue := self._clock() + wait - by) > 0:
            raise late(request, overdue)

    def _expected_wait(self, queue: ModelQueue, request: Request, order: int) -> float | None:
        """Return the seconds until a new request is pulled, at the recent rate; None if unknown."""
        ahead = queue.ahead_of(request.priority, request.tenant, order)
        place = queue.place(request.priority, request.tenant, 1 + ahead)
        free = sum(queue.pullers.values()) - len(queue.held)
        others = [item for item in queue.waiting() if item.request.priority is not request.priority]
        if sum(not queue.is_paused(item.request.tenant) for item in others) + place <= free:
            return 0.0
        if self._clock() - queue.rate.at > WINDOW_S:
            return None
        speed = queue.rate.requests_per_s(self._clock(), request.priority)
        return place / speed if speed else None

    async def pull(self, model: str, worker: str, room: Room) -> Pulled:
        queue, now = self.queue(model), self._clock()
        seats = dict.fromkeys(PriorityClass, 0) if queue.gates.get("") == "paused" else dict(room.seats)
        queue.workers[worker] = now
        queue.pullers[worker] = room.capacity
        patience = self._router.patience(model) if self._router else 0.0
        search = queue.search(worker, now, lease=self._lease, patience=patience)
        found: list[Delivery] = []
        if any(seats[each] > 0 and queue.classes[each].lanes for each in PriorityClass):
            queue.history.note_step(now)
        while open_classes := [p for p in PriorityClass if seats[p] > 0 and queue.classes[p].lanes]:
            search.shares = queue.leaves(queue.available(), worker, queue.spared, now)
            priority = min(open_classes, key=lambda p: queue.classes[p].start)
            if delivery := self._take(queue, priority, search, seats, room.capacity):
                found.append(delivery)
        left = queue.available()
        spared = search.shares and left > 0
        if found or not left:
            queue.spared = None
        if spared and queue.spared is None:
            queue.spared = now
        if self._is_routed(model):
            used = sum(delivery.request.params.n for delivery in found)
            passes = search.passed and used < max(room.seats.values())
            queue.see(worker, now, passes=passes)
            spared = spared or passes
        return Pulled(found, left > 0, spared)

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
        if all(queue.is_paused(tenant) for tenant in found.lanes):
            # else a tenant that arrives later is served for what these missed
            found.start = max(found.start, queue.clock)
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
        queue.rate.note(self._clock(), priority, item.cost)
        queue.note_served(self._clock(), priority, tenant, item.cost)
        for other in PriorityClass:
            seats[other] -= item.request.params.n
        if item.aim not in ("", search.worker) and self._router:
            self._router.count(queue.model, "returned")
        queue.deliveries += 1
        entry = f"{queue.deliveries}-0"
        routed = item.aim != ""
        now = self._clock()
        stay = queue.history.extend(item.stay, priority, tenant, 1, now, min_wait=interface.STEP_S)
        queue.history.note_taken(priority)
        queue.held[entry] = Held(item.request, priority, search.worker, now, item.cost, routed, stay)
        return Delivery(item.request, Claim(item.request.id, queue.model, priority, entry), 1, stay)

    async def claim(self, model: str, worker: str, room: Room) -> Pulled:
        queue, now = self.queue(model), self._clock()
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
        return Delivery(held.request, claim, held.attempt, held.stay)

    async def renew(self, model: str, worker: str, claims: Sequence[Claim]) -> list[Claim]:
        queue, lost = self.queue(model), []
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
        queue = self.queue(model)
        for claim in claims:
            held = queue.held.get(claim.entry)
            if held is not None and held.worker == worker:
                held.beat, held.attempt = -math.inf, held.attempt - (not lost)
        self._live.publish(keys.wake_channel(model), b"released")

    async def leave(self, model: str, worker: str) -> None:
        self.queue(model).forget(worker)
        self.announce(model)

    async def acknowledge(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            queue = self.queue(claim.model)
            queue.held.pop(claim.entry, None)
            queue.overdue.pop(claim.job_id, None)

    async def discard(self, ticket: Ticket) -> Stay | None:
        queue, wait = self.queue(ticket.model), await self.wait_of(ticket)
        if queue.leave(ticket.priority, ticket.tenant, ticket.job_id):
            queue.overdue.pop(ticket.job_id, None)
        return wait.stay if wait else None

    async def depth(self, model: str) -> QueueDepth:
        return self.queue(model).depth(self._clock())

    async def demand(self, model: str) -> Demand:
        return self.queue(model).demand(self._clock())

    async def outlook(self, ticket: Ticket) -> Outlook | None:
        queue = self.queue(ticket.model)
        if (rank := queue.rank(ticket)) is None:
            return None
        place = queue.place(ticket.priority, ticket.tenant, rank)
        paused = queue.is_paused(ticket.tenant)
        speed = 0.0 if paused else queue.rate.requests_per_s(self._clock(), ticket.priority)
        return Outlook(place, place / speed if speed else None)

    async def wait_of(self, ticket: Ticket) -> Wait | None:
        queue = self.queue(ticket.model)
        if (rank := queue.rank(ticket)) is None:
            return None
        item = queue.classes[ticket.priority].lanes[ticket.tenant].requests[ticket.job_id]
        place = queue.place(ticket.priority, ticket.tenant, rank)
        return Wait(
            queue.backlog(ticket.priority, ticket.tenant, rank, item),
            queue.history.extend(item.stay, ticket.priority, ticket.tenant, place, self._clock()),
        )

    async def overdue(self, model: str, most: int) -> list[str]:
        now = self._clock()
        return [job_id for job_id, deadline in self.queue(model).overdue.items() if deadline <= now][:most]

    async def forget(self, model: str, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            self.queue(model).overdue.pop(job_id, None)

    async def missing(self, model: str, job_ids: Sequence[str]) -> list[str]:
        queue = self.queue(model)
        known = {item.request.id for item in queue.waiting()} | {held.request.id for held in queue.held.values()}
        return [job_id for job_id in job_ids if job_id not in known]

    async def lapsed(self, model: str) -> list[str]:
        return []  # nothing passes through Kafka

    async def lost(self, model: str) -> Lost:
        return Lost([])  # no other program reaches this memory

    async def tidy(self, model: str) -> int:
        queue, now = self.queue(model), self._clock()
        busy = {held.worker for held in queue.held.values()}
        gone = [name for name, seen in queue.workers.items() if name not in busy and now - seen > FORGET_AFTER_S]
        for name in gone:
            del queue.workers[name]
            queue.forget(name)
        return len(gone)

    async def _loads(self, model: str) -> dict[str, int]:
        return self.queue(model).loads(self._clock(), self._lease)

    def _is_routed(self, model: str) -> bool:
        return self._router is not None and self._router.routes(model)

    def queue(self, model: str) -> ModelQueue:
        """Return the queue of a model."""
        return self._queues.setdefault(model, ModelQueue(model))

    def now(self) -> float:
        return self._clock()

    def announce(self, model: str) -> None:
        """Wake the workers of a model."""
        self._live.publish(keys.wake_channel(model), b"published")
