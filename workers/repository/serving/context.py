"""Objects that the models of one worker process share."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from shared.backend import Backend
from shared.errors import Unavailable
from shared.models.worker_registry import WorkerInfo, worker_id_prefix
from shared.settings import Settings
from workers.active_request import ActiveRequest
from workers.metrics import WorkerMetrics
from workers.predictors.engine import PredictorEngine
from workers.predictors.machine import MachineCollector
from workers.predictors.metrics import PredictorCollector
from workers.predictors.response_cache import ResponseCache
from workers.repository.serving.loading_record import LoadingRecord
from workers.repository.serving.memory_budget import MemoryBudget
from workers.sole_request import SoleRequestRecord
from workers.worker import Worker

log = structlog.get_logger(__name__)


class Workers:
    """The workers of one process.

    Attributes:
        sole_request: whether a request runs alone in the process, whichever model it is for.
    """

    def __init__(self, backend: Backend, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._models: dict[Worker, str] = {}
        self.sole_request = SoleRequestRecord(backend.token_log, self._active_requests)

    @asynccontextmanager
    async def present(self, worker: Worker, model: str) -> AsyncIterator[None]:
        """Count a worker of a model while the body runs; its gauges are shown until the model's last one ends."""
        self._models[worker] = model
        try:
            yield
        finally:
            del self._models[worker]
            if model not in self._models.values():
                self._metrics.forget(model)

    def running(self) -> list[Worker]:
        return list(self._models)

    def _active_requests(self) -> list[ActiveRequest]:
        return [active for worker in self._models for active in worker.active_requests()]


class Engines:
    """The engines of the models that take tensors, for ensembles and for metrics. Any thread may call `find`."""

    def __init__(self) -> None:
        self._engines: dict[str, PredictorEngine] = {}
        self.collector = PredictorCollector()

    def find(self, name: str) -> PredictorEngine | None:
        return self._engines.get(name)

    def add(self, engine: PredictorEngine) -> None:
        """Use an engine in place of another one of its model."""
        self._engines[engine.name] = engine
        self.collector.add(engine)

    def remove(self, engine: PredictorEngine) -> None:
        self.collector.remove(engine)
        if self._engines.get(engine.name) is engine:
            del self._engines[engine.name]


@dataclass
class HostContext:
    """Objects that the models of one worker process share.

    Attributes:
        changed: called when the state of a model has changed.
        failed: called with the error after which the process must end.
        grace: seconds that a model's requests may take to end when it is unloaded; None for the setting.
    """

    settings: Settings
    backend: Backend
    metrics: WorkerMetrics
    budget: MemoryBudget
    changed: Callable[[], None]
    failed: Callable[[BaseException], None]
    grace: float | None = None
    workers: Workers = field(init=False)
    engines: Engines = field(default_factory=Engines)
    cache: ResponseCache = field(init=False)
    loading_record: LoadingRecord = field(init=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.backend, self.metrics)
        self.loading_record = LoadingRecord(self.backend, self.settings.max_attempts)
        self.cache = ResponseCache(self.settings.response_cache_bytes)
        if self.settings.triton_metrics:
            self.metrics.registry.register(self.engines.collector)
            self.metrics.registry.register(MachineCollector())

    def new_worker(self, model: str) -> WorkerInfo:
        """Return the registry entry of a new worker, which loads a model."""
        worker_id = worker_id_prefix(os.getpid()) + secrets.token_hex(3)
        return WorkerInfo(id=worker_id, pid=os.getpid(), model=model, state="loading")

    def worker_ids(self) -> list[str]:
        """Return the ids of the running workers."""
        return [worker.id for worker in self.workers.running()]

    def hurry(self, grace: float) -> None:
        """Give the requests of all models `grace` seconds to end, from now."""
        self.grace = grace
        for worker in self.workers.running():
            worker.drain(grace)

    async def leave(self, worker: WorkerInfo) -> None:
        """Remove a worker that only loaded something; without Redis, it expires."""
        try:
            await self.backend.registry.leave(worker.id)
        except Unavailable as error:
            log.warning("leave_failed", worker=worker.id, error=error.message)
