"""Fair queue of waiting sequences: by class, then preempted ones first, then the least served tenant, then the
earliest due, then arrival.

The cost of finding the next sequence does not depend on the number that wait; it grows with each tenant that is
skipped because its first sequence does not fit.
"""

from __future__ import annotations

import bisect
import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping

from shared.protocol import PriorityClass
from workers.engine.sequence import Sequence

MAX_REMEMBERED_TENANTS = 1024  # beyond that, tenants without waiting sequences are forgotten


class FairQueue:
    """Waiting sequences of one class.

    While any sequence waits, each tenant's service is counted in tokens divided by its weight. A tenant with
    nothing waiting saves nothing up: when it returns, it starts at the virtual time, the service of the tenant
    taken last (start-time fair queueing, https://doi.org/10.1109/90.649569; in tokens,
    https://arxiv.org/abs/2401.00588).
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.preempted: list[Sequence] = []  # oldest first
        self._weights = weights
        self._served: dict[str, float] = {}
        self._virtual_time = 0.0
        self._max_remembered = MAX_REMEMBERED_TENANTS
        self._tenants: dict[str, OrderedDict[Sequence, None]] = {}  # each tenant has one entry in the heap
        self._heap: list[tuple[float, int, str]] = []  # service, first arrival, tenant; entries may be outdated
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting + len(self.preempted)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._tenants.get(sequence.tenant, ()) or sequence in self.preempted

    def add(self, sequence: Sequence) -> None:
        """Add a sequence that has not run yet."""
        tenant = sequence.tenant
        queue = self._tenants.get(tenant)
        if not queue:
            self._served[tenant] = max(self._served.get(tenant, 0.0), self._virtual_time)
        if queue is None:
            queue = self._tenants[tenant] = OrderedDict()
            heapq.heappush(self._heap, (self._served[tenant], sequence.arrival, tenant))
        last = next(reversed(queue), None)
        queue[sequence] = None
        if last is not None and sequence.due < last.due:  # only one with a target, or one that was taken over
            self._tenants[tenant] = OrderedDict.fromkeys(sorted(queue, key=_due))
        self._waiting += 1

    def requeue(self, sequence: Sequence) -> None:
        """Add a preempted sequence, ahead of all that have not run yet."""
        bisect.insort(self.preempted, sequence, key=lambda other: other.arrival)

    def remove(self, sequence: Sequence) -> None:
        if sequence in self.preempted:
            self.preempted.remove(sequence)
        else:
            del self._tenants[sequence.tenant][sequence]
            self._waiting -= 1
            if not self._waiting:
                self._reset()

    def head(self, fits: Callable[[Sequence], bool] = lambda sequence: True) -> Sequence | None:
        """Return the next sequence that fits: the first preempted one, or the first of a tenant."""
        if self.preempted and fits(self.preempted[0]):
            return self.preempted[0]
        skipped: list[tuple[float, int, str]] = []
        try:
            return self._least_served(fits, skipped)
        finally:
            for entry in skipped:
                heapq.heappush(self._heap, entry)

    def _least_served(
        self, fits: Callable[[Sequence], bool], skipped: list[tuple[float, int, str]]
    ) -> Sequence | None:
        """Return the first sequence of the least served tenant where it fits; move skipped tenants off the heap."""
        while self._heap:  # entries only grow, so an up-to-date one on top is the least
            tenant = self._heap[0][2]
            queue = self._tenants[tenant]
            if not queue:
                heapq.heappop(self._heap)
                del self._tenants[tenant]
                continue
            first = next(iter(queue))
            entry = (self._served[tenant], first.arrival, tenant)
            if self._heap[0] != entry:
                heapq.heapreplace(self._heap, entry)
            elif fits(first):
                return first
            else:
                skipped.append(heapq.heappop(self._heap))
        return None

    def take(self, sequence: Sequence) -> None:
        """Remove a sequence that starts or resumes. Its tenant pays for its prompt once."""
        if sequence not in self.preempted:
            self._virtual_time = max(self._virtual_time, self._served[sequence.tenant])
            self.charge(sequence.tenant, sequence.num_uncomputed_tokens)
        self.remove(sequence)

    def _reset(self) -> None:
        self._tenants.clear()
        self._served.clear()
        self._heap.clear()
        self._virtual_time = 0.0

    def charge(self, tenant: str, tokens: int) -> None:
        """Add tokens to a tenant's service."""
        served = self._served.get(tenant, self._virtual_time)
        self._served[tenant] = served + tokens / self._weights.get(tenant, 1.0)
        if len(self._served) > self._max_remembered:
            self._served = {t: s for t, s in self._served.items() if t in self._tenants}
            self._max_remembered = max(MAX_REMEMBERED_TENANTS, 2 * len(self._served))


def _due(sequence: Sequence) -> tuple[float, int]:
    return sequence.due, sequence.arrival


class WaitingQueue:
    """Fair queues of all classes, most urgent class first."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._classes = {priority: FairQueue(weights or {}) for priority in PriorityClass}

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._classes[sequence.priority]

    def add(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].add(sequence)

    def requeue(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].requeue(sequence)

    def remove(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].remove(sequence)

    def take(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].take(sequence)

    def charge(self, priority: PriorityClass, tenant: str, tokens: int) -> None:
        """Charge generated tokens of sequences of a class to their tenant."""
        self._classes[priority].charge(tenant, tokens)

    def head(self, fits: Callable[[Sequence], bool]) -> Sequence | None:
        """Return the next sequence that fits, from the most urgent class with waiting sequences."""
        queue = next((queue for queue in self._classes.values() if len(queue)), None)
        return None if queue is None else queue.head(fits)

    def preempted(self) -> list[Sequence]:
        """Return the preempted sequences, which may still hold blocks, most urgent first."""
        return [sequence for queue in self._classes.values() for sequence in queue.preempted]
