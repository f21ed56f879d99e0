"""The discrete-event simulation of a queue, its workers and an autoscaler."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, auto

from headrace.sim.arrivals import Arrival
from headrace.sim.autoscaler import SYNC_S, Autoscaler, Observation
from headrace.sim.outcome import Outcome, Sample
from headrace.sim.step_times import StepTimes
from headrace.sim.worker import Job, SimWorker

MAX_OVERTIME_S = 7 * 86_400.0  # after the last arrival; then the workers cannot keep up


class Event(IntEnum):
    """Kinds of events; of those at one time, the first kind goes first."""

    WORKER = auto()
    READY = auto()
    ARRIVAL = auto()
    SYNC = auto()


@dataclass(frozen=True)
class Machine:
    """Capacity of a worker.

    Attributes:
        seats: requests that it computes at a time (`max_num_seqs`).
        cold_start_s: seconds from the decision to add it until it takes requests.
    """

    step_times: StepTimes
    seats: int = 32
    cold_start_s: float = 60.0


class Simulation:
    """One run. Requests wait in one line, and a worker with a free seat takes the first of them; of several such
    workers, the least loaded one. A worker that is removed hands its answers over, which continue elsewhere first.
    """

    def __init__(self, arrivals: Iterable[Arrival], machine: Machine, autoscaler: Autoscaler) -> None:
        self._arrivals = iter(arrivals)
        self._machine = machine
        self._autoscaler = autoscaler
        self._step_s = [math.inf, *map(machine.step_times.seconds, range(1, machine.seats + 1))]
        self._events: list[tuple[float, Event, int, SimWorker | Arrival | None, int]] = []
        self._order = 0
        self._waiting: deque[Job] = deque()
        self._workers: list[SimWorker] = []
        self._busy_seen: dict[SimWorker, float] = {}
        self._now = 0.0
        self._last_arrival = 0.0
        self._more = True
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Run until every request has ended. Raises AssertionError if they cannot end."""
        self._scale(self._autoscaler.initial, cold=False)
        self._arrive_next()
        self._schedule(SYNC_S, Event.SYNC)
        while self._more or self._waiting or any(worker.jobs for worker in self._workers):
            self._now, kind, _, subject, version = heapq.heappop(self._events)
            assert self._now < self._last_arrival + MAX_OVERTIME_S, "requests that never end"
            if kind is Event.WORKER:
                assert isinstance(subject, SimWorker)
                self._advance(subject, version)
            elif kind is Event.ARRIVAL:
                assert isinstance(subject, Arrival)
                self._arrive(subject)
            elif kind is Event.READY:
                assert isinstance(subject, SimWorker)
                self._begin(subject)
            else:
                self._sync()
        for worker in self._workers:
            self._outcome.worker_seconds += self._now - worker.created
        self._outcome.seconds = self._now
        return self._outcome

    def _schedule(
        self, at: float, kind: Event, subject: SimWorker | Arrival | None = None, version: int = 0
    ) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, kind, self._order, subject, version))

    def _arrive_next(self) -> None:
        arrival = next(self._arrivals, None)
        self._more = arrival is not None
        if arrival is not None:
            self._last_arrival = arrival.at
            self._schedule(arrival.at, Event.ARRIVAL, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        self._arrive_next()
        self._outcome.arrived += 1
        self._waiting.append(Job(arrival))
        if not self._workers:
            self._scale(self._autoscaler.wake(self._observe()))
        self._dispatch()

    def _advance(self, worker: SimWorker, version: int) -> None:
        if version != worker.version:
            return  # it has got or lost an answer since this event was scheduled
        self._end(worker.collect(self._now))
        self._dispatch()
        self._follow(worker)

    def _follow(self, worker: SimWorker) -> None:
        if worker.jobs:
            self._schedule(worker.next_at(), Event.WORKER, worker, worker.version)

    def _end(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._outcome.add(job)

    def _dispatch(self) -> None:
        while self._waiting:
            free = [worker for worker in self._workers if worker.ready and len(worker.jobs) < worker.seats]
            if not free:
                return
            worker = min(free, key=lambda each: len(each.jobs))
            worker.add(self._waiting.popleft(), self._now)
            self._follow(worker)

    def _begin(self, worker: SimWorker) -> None:
        if worker in self._busy_seen:  # it has not been removed meanwhile
            worker.ready = True
            self._dispatch()

    def _observe(self) -> Observation:
        spent = []
        for worker in self._workers:
            worker.advance(self._now)
            if worker.ready:
                spent.append(min(100.0, 100 * (worker.busy_s - self._busy_seen[worker]) / SYNC_S))
            self._busy_seen[worker] = worker.busy_s
        held = sum(len(worker.jobs) for worker in self._workers)
        return Observation(self._now, len(self._workers), spent, len(self._waiting), held)

    def _sync(self) -> None:
        seen = self._observe()
        age = self._now - self._waiting[0].arrival.at if self._waiting else 0.0
        ready = sum(worker.ready for worker in self._workers)
        self._outcome.samples.append(Sample(self._now, seen.replicas, ready, seen.waiting, age))
        self._scale(self._autoscaler.decide(seen))
        self._schedule(self._now + SYNC_S, Event.SYNC)

    def _scale(self, wanted: int, *, cold: bool = True) -> None:
        while len(self._workers) < wanted:
            worker = SimWorker(self._now, self._step_s, self._machine.step_times.prompt_token_s)
            self._workers.append(worker)
            self._busy_seen[worker] = 0.0
            self._outcome.started += 1
            self._schedule(self._now + (self._machine.cold_start_s if cold else 0.0), Event.READY, worker)
        while len(self._workers) > wanted:
            self._remove(self._workers.pop())
        self._dispatch()

    def _remove(self, worker: SimWorker) -> None:
        """Remove a worker, the newest as a ReplicaSet does, whose answers continue elsewhere."""
        del self._busy_seen[worker]
        self._end(worker.collect(self._now))
        left = worker.hand_over(self._now)
        self._outcome.handed_over += len(left)
        self._outcome.worker_seconds += self._now - worker.created
        self._waiting.extendleft(reversed(left))
