"""The same worker for the same key."""

from __future__ import annotations

from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState
from shared.routing.load_bound import affinity, below_bound


class ConsistentHash:
    """Choose by rendezvous hashing of the request's key, among the workers whose load is below a bound.

    Args:
        load_bound: times the mean tokens in flight that a worker may have, at least 1.
    """

    def __init__(self, load_bound: float) -> None:
        self._load_bound = load_bound

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        candidates = below_bound(request, workers, self._load_bound)
        return max(candidates, key=lambda worker: affinity(request.key, worker)).id
