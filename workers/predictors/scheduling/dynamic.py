"""Dynamic batching, with the rules of Triton's dynamic batcher.

A batch is formed when an instance is idle, so batches grow while all are busy. Unlike in Triton, a request of
another shape does not end a batch: each shape forms batches of its own, in the order of their first requests.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from shared.errors import HeadraceError
from shared.repository.spec import DynamicBatching, ModelSpec
from workers.predictors.scheduling.job import Batch, Job, Row, SequenceKey
from workers.predictors.scheduling.policy_queue import NS_PER_US, PolicyQueue


class BatchSizes:
    """Rules for the size of a batch.

    Args:
        preferred: sizes that are executed without delay; empty for the largest one.
        delay_us: how long a request may wait for others if the batch has no preferred size.
    """

    def __init__(self, largest: int, preferred: Sequence[int] = (), delay_us: int = 0) -> None:
        self._largest = largest
        self._preferred = frozenset(preferred) or frozenset({largest})
        self._delay_ns = delay_us * NS_PER_US

    def due_at(self, jobs: Sequence[Job]) -> int:
        """Return when the requests are executed even as a batch without a preferred size."""
        return min(job.arrived_ns for job in jobs) + self._delay_ns

    def count(self, jobs: Sequence[Job], now: int) -> int:
        """Return how many of the requests, in order, to execute now; 0 to wait for others."""
        most_preferred = max(self._preferred)
        total = count = preferred = 0
        full = False
        for job in jobs:
            size = total + job.checked.batch_size
            if count and not preferred and size > most_preferred:
                preferred = count
            if size > self._largest and count:
                full = True
                break
            total, count = size, count + 1
            if total in self._preferred:
                preferred = count
        overdue = now >= self.due_at(jobs[:count])
        if preferred and not (self._delay_ns and overdue):
            return preferred
        return count if full or overdue or total >= most_preferred else 0


class DynamicBatcher:
    """Requests of a model without sequences. A model without dynamic batching executes them one by one."""

    binds = False

    def __init__(self, spec: ModelSpec) -> None:
        batching = spec.dynamic_batching or DynamicBatching()
        self._joins = spec.dynamic_batching is not None and spec.max_batch_size > 1 and not spec.decoupled
        self._sizes = BatchSizes(
            spec.max_batch_size, batching.preferred_batch_size, batching.max_queue_delay_microseconds
        )
        self._queue = PolicyQueue(batching)
        self.expires = self._queue.expires
        self.wake_at: int | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job, now: int) -> None:
        self._queue.add(job, now)

    def remove(self, job: Job) -> bool:
        return self._queue.remove(job)

    def take(self, instance: int, now: int) -> Batch | None:
        self.wake_at = None
        chosen = self._choose(now)
        for job in chosen:
            self._queue.remove(job)
        if chosen:
            return Batch(tuple(Row(job) for job in chosen), instance)
        return None

    def finish(self, batch: Batch, now: int) -> None:
        """Do nothing: requests do not depend on each other."""

    def expire(self, now: int) -> list[tuple[Job, HeadraceError]]:
        return self._queue.expire(now)

    @property
    def drained(self) -> bool:
        return not self._queue

    def knows(self, key: SequenceKey) -> bool:
        return False

    def forget(self) -> None:
        """Do nothing: there are no sequences."""

    def next_expiry(self) -> int | None:
        return self._queue.next_expiry()

    def _choose(self, now: int) -> list[Job]:
        """Return the requests of the first batch that is ready; otherwise set `wake_at`."""
        if not self._joins:
            return [next(iter(self._queue))] if self._queue else []
        groups: dict[Hashable, list[Job]] = {}
        for job in self._queue:
            groups.setdefault(job.checked.joins, []).append(job)
        for jobs in groups.values():
            if count := self._sizes.count(jobs, now):
                return jobs[:count]
        self.wake_at = min((self._sizes.due_at(jobs) for jobs in groups.values()), default=None)
        return []
