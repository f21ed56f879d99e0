"""The worker that has computed the longest prefix of the prompt, unless another has much less work."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState
from shared.routing.load_bound import affinity, below_bound

MAX_PREFIXES = 65_536  # remembered; the least recently used are forgotten first
MAX_HOLDERS = 8  # workers remembered for one prefix, the last ones
# Tokens in flight that a worker may have more than another if it knows the whole prompt, as a multiple of those of
# the request. `headrace bench routing` had the most tokens/s at 4, with chats of several turns.
MATCH_WORTH = 4


class PrefixAware:
    """Choose by the longest prefix that a worker was sent, and by its tokens in flight, below a bound on these.

    A match counts by its share of the prompt: a short prefix that all prompts have does not keep requests from a
    worker that has just joined.

    Args:
        load_bound: times the mean tokens in flight that a worker may have, at least 1.
    """

    def __init__(self, load_bound: float) -> None:
        self._load_bound = load_bound
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        matches = self._matches(request.prefixes)
        first = request.prefixes[0] if request.prefixes else b""

        def cost(worker: WorkerState) -> tuple[float, bytes]:
            saved = MATCH_WORTH * request.tokens * matches.get(worker.id, 0) / max(1, len(request.prefixes))
            # replicas that know different prefixes agree about equally loaded workers
            return worker.tokens_in_flight - saved, affinity(first, worker)

        chosen = min(below_bound(request, workers, self._load_bound), key=cost)
        self._remember(request.prefixes, chosen.id)
        return chosen.id

    def _matches(self, prefixes: Sequence[bytes]) -> dict[str, int]:
        """Return the number of the longest prefix that each worker knows, from 1."""
        found: dict[str, int] = {}
        for number, prefix in enumerate(prefixes, 1):
            found |= dict.fromkeys(self._holders.get(prefix, ()), number)
        return found

    def _remember(self, prefixes: Sequence[bytes], worker: str) -> None:
        for prefix in prefixes:
            others = [holder for holder in self._holders.pop(prefix, ()) if holder != worker]
            self._holders[prefix] = (*others[1 - MAX_HOLDERS :], worker)
        while len(self._holders) > MAX_PREFIXES:
            self._holders.popitem(last=False)
