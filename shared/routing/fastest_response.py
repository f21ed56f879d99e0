"""The worker that should answer first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState

EXPLORE_EVERY = 20  # choices, of which one goes to the worker that was chosen the longest ago


class FastestResponse:
    """Choose the worker with the least time to the first token, times its work.

    As in Finagle's Peak EWMA balancer, the moving average is multiplied by the tokens in flight, so that a fast
    worker does not get everything until its next heartbeat. One choice in EXPLORE_EVERY goes to the worker that was
    not chosen for the longest time, so that one that was slow once is measured again.
    """

    def __init__(self) -> None:
        self._choices = 0
        self._chosen_at: Counter[str] = Counter()

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        self._choices += 1
        unmeasured = [worker for worker in workers if worker.first_token_s is None]
        if unmeasured or self._choices % EXPLORE_EVERY == 0:
            chosen = min(unmeasured or workers, key=lambda worker: self._chosen_at[worker.id])
        else:
            chosen = min(workers, key=lambda worker: _expected(worker, request))
        self._chosen_at = Counter({worker.id: self._chosen_at[worker.id] for worker in workers})
        self._chosen_at[chosen.id] = self._choices
        return chosen.id


def _expected(worker: WorkerState, request: RequestTraits) -> float:
    assert worker.first_token_s is not None
    return worker.first_token_s * (worker.tokens_in_flight + request.tokens)
