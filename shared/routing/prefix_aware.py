"""The worker that has computed the longest prefix of the prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState
from shared.routing.load_bound import affinity, below_bound

MAX_PREFIXES = 65_536  # remembered; the least recently used are forgotten first
MAX_HOLDERS = 8  # workers remembered for one prefix, the last ones


class PrefixAware:
    """Choose the worker that was sent the longest prefix of the prompt, among those whose load is below a bound.

    Among several, and for a prompt without a known prefix, choose the one with the fewest tokens in flight.

    Args:
        load_bound: times the mean tokens in flight that a worker may have, at least 1.
    """

    def __init__(self, load_bound: float) -> None:
        self._load_bound = load_bound
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        allowed = below_bound(request, workers, self._load_bound)
        candidates = self._longest_match(request.prefixes, allowed) or allowed
        first = request.prefixes[0] if request.prefixes else b""
        # replicas that know different prefixes agree about equally loaded workers
        chosen = min(candidates, key=lambda worker: (worker.tokens_in_flight, affinity(first, worker)))
        self._remember(request.prefixes, chosen.id)
        return chosen.id

    def _longest_match(self, prefixes: Sequence[bytes], workers: Sequence[WorkerState]) -> list[WorkerState]:
        for prefix in reversed(prefixes):
            holders = self._holders.get(prefix, ())
            if found := [worker for worker in workers if worker.id in holders]:
                return found
        return []

    def _remember(self, prefixes: Sequence[bytes], worker: str) -> None:
        for prefix in prefixes:
            others = [holder for holder in self._holders.pop(prefix, ()) if holder != worker]
            self._holders[prefix] = (*others[1 - MAX_HOLDERS :], worker)
        while len(self._holders) > MAX_PREFIXES:
            self._holders.popitem(last=False)
