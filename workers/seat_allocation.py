"""How many more sequences a worker may take of each class.

A more urgent request may take the seat of a less urgent one, which the engine then preempts; but each class keeps
seats in proportion to its weight, so that none starves. It knows nothing of queues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shared.protocol import PriorityClass, Request
from shared.queue.interface import CLASS_WEIGHTS, Room

TOTAL_WEIGHT = sum(CLASS_WEIGHTS.values())


def room(held: Iterable[Request], capacity: int) -> Room:
    """The room that is left beside `held`, in an engine of `capacity` sequences."""
    taken: Counter[PriorityClass] = Counter()
    for request in held:
        taken[request.priority] += request.params.n
    urgency = tuple(PriorityClass)
    seats = {}
    for i, priority in enumerate(urgency):
        above = sum(taken[other] for other in urgency[: i + 1])
        kept = sum(min(taken[other], _own_seats(other, capacity)) for other in urgency[i + 1 :])
        seats[priority] = max(0, capacity - above - kept)
    return Room(capacity, seats)


def _own_seats(priority: PriorityClass, capacity: int) -> int:
    return -(-capacity * CLASS_WEIGHTS[priority] // TOTAL_WEIGHT)
