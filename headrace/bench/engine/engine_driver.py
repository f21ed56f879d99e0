"""Driver of an engine in this process, which records the arrival times of each request's tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from headrace.bench.harness.timed_stream import Sample
from shared.models.model_store import ModelRepository
from shared.settings import load
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest

POLL_S = 0.001  # while a batch waits for more requests


def load_engine(model: str, **settings: Any) -> Engine:
    """Load an engine with default settings but the given ones. Raises ConfigError if there is no such model."""
    return Engine.load(EngineConfig(model=ModelRepository(load({"model": model}).settings).folder(), **settings))


class EngineDriver:
    """Driver of an engine's steps. `samples` holds the measurements of each request, by its id."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.samples: dict[str, Sample] = {}
        self.running: set[str] = set()

    def add(self, request: EngineRequest) -> None:
        self.samples[request.id] = Sample(time.perf_counter(), prompt_tokens=len(request.prompt))
        self.running.add(request.id)
        self._engine.add(request)

    def step(self) -> None:
        """Run one step and record its tokens. Raises the error of a request that failed."""
        outputs = self._engine.step()
        now = time.perf_counter()
        for output in outputs:
            if output.error is not None:
                raise output.error
            sample = self.samples[output.job_id]
            sample.output_tokens += len(output.tokens)
            if output.tokens:
                sample.arrivals.append(now)
            if output.finished:
                sample.ended = now
                self.running.discard(output.job_id)
        if not self._engine.stats().running and self._engine.has_work():
            time.sleep(POLL_S)

    def step_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.step()

    def closed_loop(self, requests: Iterable[EngineRequest], concurrency: int) -> float:
        """Run all requests, `concurrency` at a time, and return the seconds that it took."""
        begin = time.perf_counter()
        todo: Iterator[EngineRequest] = iter(requests)
        more = True
        while more or self.running:
            while more and len(self.running) < concurrency:
                request = next(todo, None)
                more = request is not None
                if request is not None:
                    self.add(request)
            if self.running:
                self.step()
        return time.perf_counter() - begin
