"""The worker with the least work."""

from __future__ import annotations

from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState


class LeastConnections:
    """Choose the worker with the fewest tokens in flight; equal ones in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        fewest = min(worker.tokens_in_flight for worker in workers)
        equal = [worker.id for worker in workers if worker.tokens_in_flight == fewest]
        self._turn += 1
        return equal[self._turn % len(equal)]
