"""Workers in turn."""

from __future__ import annotations

from collections.abc import Sequence

from shared.routing.interface import RequestTraits, WorkerState


class RoundRobin:
    """Choose the workers in the order of their ids, one request each."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, request: RequestTraits, workers: Sequence[WorkerState]) -> str:
        self._last = next((worker.id for worker in workers if worker.id > self._last), workers[0].id)
        return self._last
