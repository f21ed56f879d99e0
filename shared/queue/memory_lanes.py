"""The queue of one model in memory: its lanes of waiting requests, what workers hold, and who pulls."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from shared.protocol import PriorityClass, Request
from shared.queue import interface


@dataclass
class Waiting:
    request: Request
    cost: int
    born: float


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
    attempt: int = 1


class ModelQueue:
    """The queue of one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.classes = {priority: LaneClass() for priority in PriorityClass}
        self.held: dict[str, Held] = {}
        self.overdue: dict[str, float] = {}
        self.workers: dict[str, float] = {}
        self.pullers: dict[str, int] = {}  # seats by worker
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
