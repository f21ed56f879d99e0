"""Delivery of outputs in the order in which the requests arrived, for models that preserve it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from workers.engine.interface import EngineOutput
from workers.predictors.scheduling.job import Job


class OrderedDelivery:
    """Holds the outputs of a request back until all earlier requests have ended.

    Args:
        deliver: called without a lock, by one thread at a time.
    """

    def __init__(self, deliver: Callable[[Job, EngineOutput], None]) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._held: dict[Job, list[EngineOutput]] = {}  # by arrival
        self._delivering = False

    def expect(self, job: Job) -> None:
        """Give a request its place."""
        with self._lock:
            self._held[job] = []

    def forget(self, job: Job) -> None:
        """Give up a place. `flush` must follow."""
        with self._lock:
            self._held.pop(job, None)

    def put(self, job: Job, output: EngineOutput) -> None:
        """Deliver an output when it is its turn, and others whose turn it is then."""
        with self._lock:
            if job in self._held:
                self._held[job].append(output)
        self.flush()

    def flush(self) -> None:
        """Deliver the outputs whose turn it is, unless another thread is delivering."""
        while True:
            with self._lock:
                ready = None if self._delivering else self._next()
                if ready is None:
                    return
                self._delivering = True
            self._deliver(*ready)
            with self._lock:
                self._delivering = False

    def _next(self) -> tuple[Job, EngineOutput] | None:
        first = next(iter(self._held), None)
        if first is None or not self._held[first]:
            return None
        output = self._held[first].pop(0)
        if output.finished:
            del self._held[first]
        return first, output
