"""The queue of one model in memory: its lanes of waiting requests, what workers hold, and who pulls."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from shared.protocol import Backlog, PriorityClass, Request, Stay, Ticket
from shared.queue import interface
from shared.queue.memory_history import QueueHistory
from shared.queue.memory_rate import DrainRate
from shared.queue.survey import SERVED_WINDOW_S, Gate, LaneSurvey, RecentRequest

MAX_RECENT = 10_000  # requests of one queue that are remembered in the order of their publication

Served = Counter[tuple[PriorityClass, str]]  # tokens by class and tenant


@dataclass
class Waiting:
    """A waiting request, its order in its lane in ticks, and the worker it is aimed at; empty for any."""

    request: Request
    cost: int
    born: float
    order: int
    aim: str
    stay: Stay


@dataclass
class Lane:
    """A tenant's waiting requests by id, earliest deadline first, and its virtual time."""

    start: float
    requests: dict[str, Waiting] = field(default_factory=dict)

    def add(self, item: Waiting) -> None:
        """Add a request. It is usually the last; only one with a target may go before others."""
        last = next(reversed(self.requests.values()), None)
        self.requests[item.request.id] = item
        if last is not None and item.order <= last.order:
            ordered = sorted(self.requests.items(), key=lambda pair: (pair[1].order, pair[0]))
            self.requests = dict(ordered)

    def ahead_of(self, order: int) -> int:
        return sum(item.order < order for item in self.requests.values())


@dataclass
class LaneClass:
    """The lanes of one class under start-time fair queueing."""

    start: float = 0.0
    clock: float = 0.0
    lanes: dict[str, Lane] = field(default_factory=dict)
    resting: dict[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        return sum(len(lane.requests) for lane in self.lanes.values())


@dataclass
class Held:
    request: Request
    priority: PriorityClass
    worker: str
    beat: float
    cost: int
    routed: bool
    stay: Stay
    attempt: int = 1


@dataclass
class Sighting:
    """The last call of a worker that requests are aimed at.

    `passing`: since when it has had room and passed over what was aimed at others.
    """

    at: float
    passing: float | None = None


@dataclass
class Search:
    """The requests that a pulling worker may take.

    These are its own, those of no worker or of one that is not `present`, and those of others that have waited
    since `before`. With `shares`, those of no worker or of one that is not present are left to less loaded workers.
    Those of `paused` tenants are left where they are.
    """

    worker: str
    present: set[str]
    before: float
    paused: frozenset[str] = frozenset()
    shares: bool = False
    passed: bool = False

    def is_open(self, item: Waiting) -> bool:
        if item.aim == self.worker:
            return True
        if item.aim in self.present:
            return item.born <= self.before
        return not self.shares

    def first_of(self, lanes: LaneClass) -> tuple[str, Lane, Waiting] | None:
        """Return the next request of a class with its tenant and lane; None if it has none."""
        going = [(tenant, lane) for tenant, lane in lanes.lanes.items() if tenant not in self.paused]
        for tenant, lane in sorted(going, key=lambda pair: (pair[1].start, pair[0])):
            for item in lane.requests.values():
                if self.is_open(item):
                    return tenant, lane, item
        self.passed = self.passed or bool(going)
        return None


class ModelQueue:
    """The queue of one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.classes = {priority: LaneClass() for priority in PriorityClass}
        self.held: dict[str, Held] = {}
        self.overdue: dict[str, float] = {}
        self.workers: dict[str, float] = {}
        self.pullers: dict[str, int] = {}  # seats by worker
        self.seen: dict[str, Sighting] = {}
        self.spared: float | None = None  # since when requests are left to less loaded workers
        self.left: float | None = None  # the same for requests of lost workers
        self.clock = 0.0
        self.ordinal = 0  # the last arrival, in ticks
        self.deliveries = 0
        self.rate = DrainRate()
        self.history = QueueHistory()
        self.gates: dict[str, Gate] = {}  # by tenant, the model's under ""; those that are not open
        self.recent: deque[RecentRequest] = deque(maxlen=MAX_RECENT)
        self.published = 0
        self.served: dict[int, Served] = {}  # by period of SERVED_WINDOW_S

    def waiting(self, tenant: str | None = None) -> list[Waiting]:
        return [
            item
            for found in self.classes.values()
            for name, lane in found.lanes.items()
            if tenant in (None, name)
            for item in lane.requests.values()
        ]

    def backlog(self, priority: PriorityClass, tenant: str, rank: int, itself: Waiting | None = None) -> Backlog:
        """Return what waits beside a request with the rank `rank`, from 1, in its lane."""
        lanes = self.classes[priority].lanes
        others = [item for item in self.waiting() if item is not itself]
        of_tenant = [item for item in others if item.request.tenant == tenant]
        interactive, standard, batch = (
            sum(item.request.priority is each for item in others) for each in PriorityClass
        )
        return Backlog(
            self.place(priority, tenant, rank),
            (interactive, standard, batch),
            len(of_tenant),
            len(lanes) + (tenant not in lanes),
            sum(item.cost for item in others),
            sum(item.cost for item in of_tenant),
        )

    def arrive(self, now: float) -> int:
        """Return the order of a request that arrives: the time in ticks, or one more than the last if later."""
        self.ordinal = max(self.ordinal + 1, int(now * interface.TICKS_PER_S))
        return self.ordinal

    def place(self, priority: PriorityClass, tenant: str, rank: int) -> int:
        """Return the place in its class of the request with the rank `rank`, from 1, in its lane."""
        found = self.classes[priority]
        lane = found.lanes.get(tenant)
        own, tenants = (len(lane.requests), len(found.lanes)) if lane else (0, len(found.lanes) + 1)
        return rank + min(found.waiting - own, rank * (tenants - 1))

    def ahead_of(self, priority: PriorityClass, tenant: str, order: int) -> int:
        """Return how many requests are before one with the order `order` in its lane."""
        lane = self.classes[priority].lanes.get(tenant)
        return lane.ahead_of(order) if lane else 0

    def rank(self, ticket: Ticket) -> int | None:
        """Return the rank of a request in its lane, from 1; None if it is not there."""
        lane = self.classes[ticket.priority].lanes.get(ticket.tenant)
        return list(lane.requests).index(ticket.job_id) + 1 if lane and ticket.job_id in lane.requests else None

    def less_loaded(self, worker: str) -> dict[str, int]:
        """Return how many requests each less loaded worker takes until its load is that of `worker`."""
        if len(self.pullers) == 1:
            return {}
        held = Counter(each.worker for each in self.held.values())
        load = min(1.0, held[worker] / self.pullers[worker])
        owed = {name: math.ceil(load * seats) - held[name] for name, seats in self.pullers.items()}
        return {name: requests for name, requests in owed.items() if requests > 0 and name != worker}

    def leaves(self, count: int, worker: str, since: float | None, now: float) -> bool:
        """Return True if `worker` leaves `count` requests to less loaded ones.

        Forget those that took none since `since` within SPARE_S.
        """
        less_loaded = self.less_loaded(worker)
        if count > sum(less_loaded.values()):
            return False
        if since is None or now - since < interface.SPARE_S:
            return True
        for silent in less_loaded:
            del self.pullers[silent]
        return False

    def search(self, worker: str, now: float, *, lease: float, patience: float) -> Search:
        """Return the search of a worker that pulls."""
        known = self.seen.get(worker)
        patient = known is None or known.passing is None or now - known.passing < patience
        paused = frozenset(name for name, gate in self.gates.items() if gate == "paused")
        return Search(worker, self.present(now, lease), -math.inf if patient else now - patience, paused)

    def is_paused(self, tenant: str) -> bool:
        return "paused" in (self.gates.get(""), self.gates.get(tenant))

    def available(self) -> int:
        """Return how many waiting requests are not paused."""
        return len(self._open())

    def catch_up(self, tenant: str) -> None:
        """Resume the lanes of a tenant where those of the others are: it gains nothing by having been paused."""
        for found in self.classes.values():
            if (lane := found.lanes.get(tenant)) is not None:
                lane.start = max(lane.start, found.clock)
                found.start = max(found.start, self.clock)

    def note_served(self, now: float, priority: PriorityClass, tenant: str, cost: int) -> None:
        period = int(now // SERVED_WINDOW_S)
        self.served = {each: counts for each, counts in self.served.items() if each >= period - 1}
        self.served.setdefault(period, Counter())[priority, tenant] += cost

    def served_lately(self, now: float) -> Served:
        period = int(now // SERVED_WINDOW_S)
        return sum((self.served.get(each, Counter()) for each in (period - 1, period)), Counter())

    def depth(self, now: float) -> interface.QueueDepth:
        items = self.waiting()
        oldest = min((item.born for item in items), default=now)
        speeds = [
            (lanes.waiting, self.rate.requests_per_s(now, priority))
            for priority, lanes in self.classes.items()
            if lanes.waiting
        ]
        known = all(speed for _, speed in speeds)
        wait = max((waiting / speed for waiting, speed in speeds), default=0.0) if known else None
        tokens, open_items = sum(item.cost for item in items), self._open()
        return interface.QueueDepth(
            len(items),
            tokens,
            len(self.held),
            now - oldest,
            wait,
            len(items) - len(open_items),
            tokens - sum(item.cost for item in open_items),
            now - min((item.born for item in open_items), default=now),
        )

    def _open(self, priority: PriorityClass | None = None) -> list[Waiting]:
        """Return the waiting requests that are not paused, of one class or of all."""
        return [
            item
            for each in ([priority] if priority else self.classes)
            for tenant, lane in self.classes[each].lanes.items()
            if "paused" not in (self.gates.get(""), self.gates.get(tenant))
            for item in lane.requests.values()
        ]

    def demand(self, now: float) -> interface.Demand:
        held = Counter(each.priority for each in self.held.values())
        found: dict[PriorityClass, interface.ClassDemand] = {}
        for priority in self.classes:
            items = self._open(priority)
            oldest = min((item.born for item in items), default=now)
            speed = self.rate.requests_per_s(now, priority)
            found[priority] = interface.ClassDemand(len(items), held[priority], now - oldest, speed)
        return interface.Demand(self.depth(now), found)

    def survey_lane(self, priority: PriorityClass, tenant: str, served: Served) -> LaneSurvey:
        lane = self.classes[priority].lanes.get(tenant)
        items = list(lane.requests.values()) if lane else []
        return LaneSurvey(len(items), served[priority, tenant], min((i.born for i in items), default=None))

    def see(self, worker: str, now: float, *, passes: bool) -> None:
        """Note a pull; `passes`: the worker has room left, and passed over requests that are aimed at others."""
        known = self.seen.get(worker)
        since = known.passing if known and known.passing is not None else now
        self.seen[worker] = Sighting(now, since if passes else None)

    def present(self, now: float, lease: float) -> set[str]:
        return {worker for worker, sighting in self.seen.items() if now - sighting.at < lease}

    def loads(self, now: float, lease: float) -> dict[str, int]:
        """Return the tokens in flight by worker that takes requests."""
        tokens = dict.fromkeys(self.present(now, lease), 0)
        owners = [(item.aim, item.cost) for item in self.waiting()]
        owners += [(held.worker, held.cost) for held in self.held.values() if held.routed]
        for worker, cost in owners:
            if worker in tokens:
                tokens[worker] += cost
        return tokens

    def forget(self, worker: str) -> None:
        """Take no more account of a worker until it pulls again."""
        self.pullers.pop(worker, None)
        self.seen.pop(worker, None)

    def leave(self, priority: PriorityClass, tenant: str, job_id: str) -> Waiting | None:
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
