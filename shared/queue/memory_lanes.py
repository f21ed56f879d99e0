"""The queue of one model in memory: its lanes of waiting requests, what workers hold, and who pulls."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from shared.protocol import Backlog, PriorityClass, Request
from shared.queue import interface


@dataclass
class Waiting:
    """A waiting request, and the worker it is aimed at; empty for any."""

    request: Request
    cost: int
    born: float
    aim: str = ""
    backlog: Backlog | None = None


@dataclass
class Lane:
    """A tenant's waiting requests by id, oldest first, and its virtual time."""

    start: float
    requests: dict[str, Waiting] = field(default_factory=dict)


@dataclass
class LaneClass:
    """The lanes of one class under start-time fair queueing."""

    start: float = 0.0
    clock: float = 0.0
    lanes: dict[str, Lane] = field(default_factory=dict)
    resting: dict[str, float] = field(default_factory=dict)
    drained: float = 0.0

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
    backlog: Backlog | None
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
    """

    worker: str
    present: set[str]
    before: float
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
        for tenant, lane in sorted(lanes.lanes.items(), key=lambda pair: (pair[1].start, pair[0])):
            for item in lane.requests.values():
                if self.is_open(item):
                    return tenant, lane, item
        self.passed = True
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
        self.deliveries = 0
        self.tokens = 0.0
        self.since = self.at = -math.inf

    def waiting(self, tenant: str | None = None) -> list[Waiting]:
        return [
            item
            for found in self.classes.values()
            for name, lane in found.lanes.items()
            if tenant in (None, name)
            for item in lane.requests.values()
        ]

    def backlog(self, priority: PriorityClass, tenant: str, rank: int, itself: Waiting | None = None) -> Backlog:
        """Return what waits beside a request with `rank` others of its tenant before it in its lane."""
        found = self.classes[priority]
        lane = found.lanes.get(tenant)
        own = len(lane.requests) if lane else 0
        tenants = len(found.lanes) + (own == 0)
        others = [item for item in self.waiting() if item is not itself]
        of_tenant = [item for item in others if item.request.tenant == tenant]
        interactive, standard, batch = (
            sum(item.request.priority is each for item in others) for each in PriorityClass
        )
        return Backlog(
            rank + 1 + min(found.waiting - own, (rank + 1) * (tenants - 1)),
            (interactive, standard, batch),
            len(of_tenant),
            tenants,
            sum(item.cost for item in others),
            sum(item.cost for item in of_tenant),
        )

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
        return Search(worker, self.present(now, lease), -math.inf if patient else now - patience)

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
