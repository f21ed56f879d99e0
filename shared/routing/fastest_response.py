"""The worker that should answer first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from shared.routing.interface import RequestTraits, WorkerState

EXPLORE_EVERY = 20  # choices, of which one goes to the worker that was chosen the longest ago


class FastestResponse:
    """Choose the worker with the least time to the first token, times its work.

    As in Finagle's Peak EWMA balancer, the moving average is multiplied by the tokens in flight, so that a fast
    worker does not get everything until its next heartbeat. A worker that was not measured yet counts as the
    fastest. One choice in EXPLORE_EVERY goes to the worker that was not chosen for the longest time, so that one
    that was slow once is measured again.
    """

    def __init__(self) -> None:
        self._choices = 0
        self._chosen_at: Counter[str] = Counter()

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        self._choices += 1
        if self._choices % EXPLORE_EVERY == 0:
            chosen = min(workers, key=lambda worker: self._chosen_at[worker.id])
        else:
            chosen = min(workers, key=_expected_times(request, workers))
        self._chosen_at = Counter({worker.id: self._chosen_at[worker.id] for worker in workers})
        self._chosen_at[chosen.id] = self._choices
        return chosen.id


def _expected_times(
    request: RequestTraits, workers: Sequence[WorkerState]
) -> Callable[[WorkerState], tuple[float, bool]]:
    """Return the order of the workers: by expected time, and those that were not measured before equal ones."""
    least = min((worker.first_token_s for worker in workers if worker.first_token_s is not None), default=1.0)

    def expected(worker: WorkerState) -> tuple[float, bool]:
        first_token_s = least if worker.first_token_s is None else worker.first_token_s
        return first_token_s * (worker.tokens_in_flight + request.tokens), worker.first_token_s is not None

    return expected
