"""Seats of a worker by priority class.

A more urgent request may take the seat of a less urgent one, which the engine then preempts. Each class keeps a
number of seats in proportion to its weight, so that no class starves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shared.protocol import PriorityClass, Request
from shared.queue.interface import CLASS_WEIGHTS, Room

TOTAL_WEIGHT = sum(CLASS_WEIGHTS.values())


def free_seats(running: Iterable[Request], capacity: int) -> Room:
    """Return how many more sequences of each class an engine of `capacity` sequences can take beside `running`."""
    used: Counter[PriorityClass] = Counter()
    for request in running:
        used[request.priority] += request.params.n
    urgency = tuple(PriorityClass)
    seats = {}
    for i, priority in enumerate(urgency):
        as_urgent = sum(used[other] for other in urgency[: i + 1])
        kept = sum(min(used[other], _guaranteed_seats(other, capacity)) for other in urgency[i + 1 :])
        seats[priority] = max(0, capacity - as_urgent - kept)
    return Room(capacity, seats)


def _guaranteed_seats(priority: PriorityClass, capacity: int) -> int:
    return -(-capacity * CLASS_WEIGHTS[priority] // TOTAL_WEIGHT)
