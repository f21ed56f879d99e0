"""Workers in turn, in proportion to their weights."""

from __future__ import annotations

from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState


class WeightedRoundRobin:
    """Smooth weighted round-robin, as in nginx: the turns of a worker are spread evenly over those of the others.

    At each choice, every worker earns its weight, and the one with the most credit pays the sum of all weights.
    """

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        weights = effective_weights(workers)
        credit = {worker: self._credit.get(worker, 0.0) + weight for worker, weight in weights.items()}
        chosen = max(credit, key=credit.__getitem__)  # the first by id among equals
        credit[chosen] -= sum(weights.values())
        self._credit = credit
        return chosen


def effective_weights(workers: Sequence[WorkerState]) -> dict[str, float]:
    """Return the set weights, or the measured speeds if no worker has a weight.

    A worker without a value gets the mean of the others.
    """
    values = {worker.id: worker.weight for worker in workers}
    if not any(values.values()):
        values = {worker.id: worker.tokens_per_s for worker in workers}
    known = [value for value in values.values() if value]
    mean = sum(known) / len(known) if known else 1.0
    return {worker: value or mean for worker, value in values.items()}
