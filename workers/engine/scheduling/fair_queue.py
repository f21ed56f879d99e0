"""Who is next of those that wait: by class, then whoever gave way, then the least served tenant, then arrival.

Finding the next costs the same however many wait, and a little more for each tenant that is passed over. It knows
nothing of blocks or seats.
"""

from __future__ import annotations

import bisect
import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping

from shared.protocol import PriorityClass
from workers.engine.sequence import Sequence

REMEMBERED = 1024  # tenants, before those that have nothing waiting are forgotten


class FairQueue:
    """The waiting sequences of one class.

    A tenant's service is counted in tokens, divided by its weight, for as long as there are some that wait. Who has
    nothing waiting saves nothing up: on coming back it starts where the one that was taken last stood (start-time
    fair queueing, https://doi.org/10.1109/90.649569; with tokens as the unit, https://arxiv.org/abs/2401.00588).
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.preempted: list[Sequence] = []  # oldest first
        self._weights = weights
        self._served: dict[str, float] = {}
        self._floor = 0.0
        self._remembered = REMEMBERED
        self._tenants: dict[str, OrderedDict[Sequence, None]] = {}  # each has one entry in the heap
        self._heap: list[tuple[float, int, str]] = []  # service, first arrival, tenant; may lag behind
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting + len(self.preempted)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._tenants.get(sequence.tenant, ()) or sequence in self.preempted

    def add(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        queue = self._tenants.get(tenant)
        if not queue:
            self._served[tenant] = max(self._served.get(tenant, 0.0), self._floor)
        if queue is None:
            queue = self._tenants[tenant] = OrderedDict()
            heapq.heappush(self._heap, (self._served[tenant], sequence.order, tenant))
        queue[sequence] = None
        self._waiting += 1

    def put_back(self, sequence: Sequence) -> None:
        """Wait again, before all that have not run yet."""
        bisect.insort(self.preempted, sequence, key=lambda other: other.order)

    def remove(self, sequence: Sequence) -> None:
        if sequence in self.preempted:
            self.preempted.remove(sequence)
        else:
            del self._tenants[sequence.tenant][sequence]
            self._waiting -= 1
            if not self._waiting:
                self._forget()

    def head(self, fits: Callable[[Sequence], bool] = lambda sequence: True) -> Sequence | None:
        """Return the next sequence that fits: the first that gave way, or a tenant's first."""
        if self.preempted and fits(self.preempted[0]):
            return self.preempted[0]
        passed: list[tuple[float, int, str]] = []
        try:
            return self._least_served(fits, passed)
        finally:
            for entry in passed:
                heapq.heappush(self._heap, entry)

    def _least_served(
        self, fits: Callable[[Sequence], bool], passed: list[tuple[float, int, str]]
    ) -> Sequence | None:
        """Move the entries of tenants whose first sequence does not fit from the heap to `passed`."""
        while self._heap:  # entries only ever grow: one that is up to date and on top is the least
            tenant = self._heap[0][2]
            queue = self._tenants[tenant]
            if not queue:
                heapq.heappop(self._heap)
                del self._tenants[tenant]
                continue
            first = next(iter(queue))
            entry = (self._served[tenant], first.order, tenant)
            if self._heap[0] != entry:
                heapq.heapreplace(self._heap, entry)
            elif fits(first):
                return first
            else:
                passed.append(heapq.heappop(self._heap))
        return None

    def take(self, sequence: Sequence) -> None:
        """The sequence begins to run, or goes on; a tenant pays for a prompt once."""
        if sequence not in self.preempted:
            self._floor = max(self._floor, self._served[sequence.tenant])
            self.charge(sequence.tenant, sequence.num_uncomputed_tokens)
        self.remove(sequence)

    def _forget(self) -> None:
        self._tenants.clear()
        self._served.clear()
        self._heap.clear()
        self._floor = 0.0

    def charge(self, tenant: str, tokens: int) -> None:
        self._served[tenant] = self._served.get(tenant, self._floor) + tokens / self._weights.get(tenant, 1.0)
        if len(self._served) > self._remembered:
            self._served = {t: s for t, s in self._served.items() if t in self._tenants}
            self._remembered = max(REMEMBERED, 2 * len(self._served))


class WaitingQueue:
    """A FairQueue for each class, most urgent first."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._classes = {priority: FairQueue(weights or {}) for priority in PriorityClass}

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._classes[sequence.priority]

    def add(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].add(sequence)

    def put_back(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].put_back(sequence)

    def remove(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].remove(sequence)

    def take(self, sequence: Sequence) -> None:
        self._classes[sequence.priority].take(sequence)

    def charge(self, sequence: Sequence) -> None:
        """Count a generated token."""
        self._classes[sequence.priority].charge(sequence.tenant, 1)

    def head(self, fits: Callable[[Sequence], bool]) -> Sequence | None:
        """Return the next that fits, of the most urgent class in which any wait."""
        queue = next((queue for queue in self._classes.values() if len(queue)), None)
        return None if queue is None else queue.head(fits)

    def preempted(self) -> list[Sequence]:
        """Those that gave way and may still hold blocks, most urgent first."""
        return [sequence for queue in self._classes.values() for sequence in queue.preempted]
