"""Waiting requests in the order in which they are executed, under the queue policies of their priority levels."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.errors import HeadraceError, QueueFull, QueueTimeout
from shared.protocol import PriorityClass
from shared.repository.spec import DynamicBatching, QueuePolicy
from workers.predictors.scheduling.job import Job

CLASS_ORDER = {priority: order for order, priority in enumerate(PriorityClass)}
NS_PER_US = 1_000


@dataclass
class _Lane:
    """Requests of one class and level: those in time, then those that exceeded their time and are delayed."""

    policy: QueuePolicy
    in_time: deque[Job] = field(default_factory=deque)
    delayed: deque[Job] = field(default_factory=deque)


class PolicyQueue:
    """Requests by class, then priority level, then arrival."""

    def __init__(self, batching: DynamicBatching) -> None:
        self._batching = batching
        self._lanes: dict[tuple[int, int], _Lane] = {}  # in order
        self._level_sizes: Counter[int] = Counter()
        self._size = 0
        policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
        self.expires = any(each.default_timeout_microseconds or each.allow_timeout_override for each in policies)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Job]:
        for lane in self._lanes.values():
            yield from lane.in_time
            yield from lane.delayed

    def add(self, job: Job, now: int) -> None:
        """Raises QueueFull if the queue of the request's level is full."""
        job.level = self._level(job.work.level)
        policy = self._policy(job.level)
        if policy.max_queue_size and self._level_sizes[job.level] >= policy.max_queue_size:
            raise QueueFull(f"the model's queue is full: it holds at most {policy.max_queue_size} requests")
        timeout_us = _timeout_us(policy, job.work.timeout_us)
        job.expires_ns = now + timeout_us * NS_PER_US if timeout_us else None
        self._lane(job, policy).in_time.append(job)
        self._level_sizes[job.level] += 1
        self._size += 1

    def remove(self, job: Job) -> bool:
        lane = self._lanes.get(_key(job))
        for jobs in (lane.in_time, lane.delayed) if lane else ():
            if job in jobs:
                jobs.remove(job)
                self._level_sizes[job.level] -= 1
                self._size -= 1
                return True
        return False

    def expire(self, now: int) -> list[tuple[Job, HeadraceError]]:
        """Apply the timeouts: delay requests, or remove and return them with their error."""
        rejected: list[tuple[Job, HeadraceError]] = []
        for lane in self._lanes.values():
            for job in [job for job in lane.in_time if job.expires_ns is not None and job.expires_ns <= now]:
                if lane.policy.timeout_action == "DELAY":
                    lane.in_time.remove(job)
                    lane.delayed.append(job)
                else:
                    self.remove(job)
                    waited_us = (now - job.arrived_ns) // NS_PER_US
                    rejected.append(
                        (job, QueueTimeout(f"the request waited for {waited_us} us in the model's queue"))
                    )
        return rejected

    def next_expiry(self) -> int | None:
        """Return when the next request exceeds its time."""
        return min(
            (job.expires_ns for lane in self._lanes.values() for job in lane.in_time if job.expires_ns is not None),
            default=None,
        )

    def _level(self, wanted: int) -> int:
        """Return the level of a request; as in Triton, one out of range gets the default."""
        in_range = 1 <= wanted <= self._batching.priority_levels
        return wanted if in_range else self._batching.default_priority_level

    def _policy(self, level: int) -> QueuePolicy:
        return self._batching.priority_queue_policy.get(level, self._batching.default_queue_policy)

    def _lane(self, job: Job, policy: QueuePolicy) -> _Lane:
        key = _key(job)
        if key not in self._lanes:
            self._lanes[key] = _Lane(policy)
            self._lanes = dict(sorted(self._lanes.items()))
        return self._lanes[key]


def _key(job: Job) -> tuple[int, int]:
    return CLASS_ORDER[job.request.priority], job.level


def _timeout_us(policy: QueuePolicy, wanted: int) -> int:
    """Return the time that a request may wait; 0 for any. A request may shorten the model's, if that allows it."""
    default = policy.default_timeout_microseconds
    if not policy.allow_timeout_override or wanted <= 0:
        return default
    return min(wanted, default) if default else wanted
