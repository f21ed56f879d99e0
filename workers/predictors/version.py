"""One version of a model: what checks its requests, runs them and counts them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.errors import ConfigError, HeadraceError
from shared.protocol import Infer, Result
from shared.repository.spec import ModelSpec
from shared.repository.status import VersionStatistics
from workers.engine.interface import EngineOutput, EngineRequest
from workers.predictors.execution.ensemble import EnsembleRunner, FindModel
from workers.predictors.execution.executor import BatchExecutor, Clock, Executor, VersionParts
from workers.predictors.execution.instances import InstanceRunner
from workers.predictors.execution.sequence_executor import SequenceExecutor
from workers.predictors.execution.stream import StreamExecutor
from workers.predictors.execution.warmup import warm_up
from workers.predictors.interface import Predictor
from workers.predictors.response_cache import ResponseCache, response_digest
from workers.predictors.scheduling.batcher import Batcher
from workers.predictors.scheduling.direct import DirectBatcher
from workers.predictors.scheduling.dynamic import DynamicBatcher
from workers.predictors.scheduling.job import Deliver, Job, SequenceKey
from workers.predictors.scheduling.oldest import OldestBatcher
from workers.predictors.scheduling.ordering import OrderedDelivery
from workers.predictors.statistics import Statistics
from workers.predictors.tensors.inputs import InputReader
from workers.predictors.tensors.outputs import OutputWriter


class Runner(Protocol):
    """Runs the requests of one version. Its methods are called with the engine's lock held, except the last two."""

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def closed(self) -> Future[None]: ...

    def add(self, job: Job) -> None: ...

    def remove(self, job: Job) -> bool: ...

    def knows(self, key: SequenceKey) -> bool: ...

    def close(self, *, sequences: bool = True) -> None: ...

    def begin(self, job: Job) -> None: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class Context:
    """Parts of the engine that its versions use.

    Attributes:
        folder: of the model; None if no file of it is needed.
        deliver: takes the outputs of requests, from any thread, without the lock.
        find: finds the models of an ensemble's steps.
    """

    folder: Path | None
    lock: threading.Lock
    clock: Clock
    deliver: Callable[[Job, EngineOutput], None]
    find: FindModel
    cache: ResponseCache | None


class Version:
    """Serves one version. Methods are called with the lock of its engine held, except where they say otherwise.

    It is ready once it is made. Raises ConfigError if the warm-up of an instance fails.
    """

    def __init__(self, version: str, spec: ModelSpec, instances: Sequence[Predictor], context: Context) -> None:
        if not spec.inputs or not spec.outputs:
            raise ConfigError(f"the description of {spec.name} must name its inputs and outputs")
        warm_up(spec, instances, context.folder)
        self.version = version
        self.spec = spec
        caches = spec.response_cache and not spec.decoupled and spec.sequence_batching is None
        self.parts = VersionParts(
            spec,
            version,
            InputReader(spec),
            OutputWriter(spec),
            Statistics(sum(each.memory_bytes for each in instances)),
            context.clock,
            context.cache if caches else None,
        )
        self._cache_salt = f"{spec.name} {version} ".encode() + secrets.token_bytes(8)  # it may be loaded again
        batching = spec.dynamic_batching
        preserves = batching is not None and batching.preserve_ordering
        self._ordered = OrderedDelivery(context.deliver) if preserves else None
        self._deliver = context.deliver if self._ordered is None else self._ordered.put
        self._runner = self._make_runner(instances, context)

    def _make_runner(self, instances: Sequence[Predictor], context: Context) -> Runner:
        if self.spec.ensemble:
            return EnsembleRunner(self.parts, context.find, lock=context.lock, deliver=self._deliver)
        return InstanceRunner(
            f"{self.spec.name}-{self.version}",
            [_executor(self.parts, each) for each in instances],
            _batcher(self.spec, len(instances)),
            lock=context.lock,
            clock=context.clock,
            deliver=self._deliver,
            refuse=self._refuse,
        )

    @property
    def running(self) -> int:
        return self._runner.running

    @property
    def waiting(self) -> int:
        return self._runner.waiting

    @property
    def closed(self) -> Future[None]:
        """Complete when the version is closed and its last request has ended."""
        return self._runner.closed

    def statistics(self) -> VersionStatistics:
        return self.parts.statistics.read(self.waiting)

    def add(self, request: EngineRequest, work: Infer, deliver: Deliver) -> Job:
        """Queue a request; `begin` must follow. Raises HeadraceError if it is refused."""
        checked = self.parts.reader.check(work)
        job = Job(request, work, checked, deliver, self.parts.clock())
        if self._ordered is not None:
            self._ordered.expect(job)
        self._look_up(job)
        if job.cached is None:
            self._add(job)
        return job

    def _add(self, job: Job) -> None:
        try:
            self._runner.add(job)
        except HeadraceError:
            if self._ordered is not None:
                self._ordered.forget(job)
            self.parts.statistics.count_failure("REJECTED", 0)
            raise

    def begin(self, job: Job) -> None:
        """Go on with a request that was added, without the lock: deliver its cached response, or start it."""
        if job.cached is None:
            self._runner.begin(job)
            return
        self.parts.statistics.count_hit(self.parts.clock() - job.arrived_ns, job.lookup_ns)
        result = Result(tensors=job.cached, version=self.version)
        self._deliver(job, EngineOutput(job.id, finished=True, result=result))

    def _look_up(self, job: Job) -> None:
        if self.parts.cache is not None:
            began = self.parts.clock()
            job.cache_key = self._cache_salt + response_digest(job.request)
            job.cached = self.parts.cache.get(job.cache_key)
            job.lookup_ns = self.parts.clock() - began

    def remove(self, job: Job) -> None:
        """Drop a request that waits; the outputs of one that is being executed are dropped."""
        job.cancelled = True
        self._runner.remove(job)
        if self._ordered is not None:
            self._ordered.forget(job)
        self.parts.statistics.count_failure("CANCELED", self.parts.clock() - job.arrived_ns)

    def flush(self) -> None:
        """Finish, without the lock, what dropping a request has begun."""
        self._runner.flush()
        if self._ordered is not None:
            self._ordered.flush()

    def knows(self, key: SequenceKey) -> bool:
        """Return whether a sequence has begun here and may get further requests."""
        return self._runner.knows(key)

    def close(self, *, sequences: bool = True) -> None:
        """Execute the requests that the version has, and those of its `sequences`; then close its instances."""
        self._runner.close(sequences=sequences)

    def _refuse(self, job: Job, error: HeadraceError) -> None:
        self.parts.statistics.count_failure("REJECTED", self.parts.clock() - job.arrived_ns)
        self._deliver(job, EngineOutput(job.id, finished=True, error=error))


def _executor(parts: VersionParts, predictor: Predictor) -> Executor:
    if parts.spec.decoupled:
        return StreamExecutor(parts, predictor)
    if parts.spec.sequence_batching is not None:
        return SequenceExecutor(parts, predictor)
    return BatchExecutor(parts, predictor)


def _batcher(spec: ModelSpec, instances: int) -> Batcher:
    if spec.sequence_batching is None:
        return DynamicBatcher(spec)
    if spec.sequence_batching.strategy == "oldest":
        return OldestBatcher(spec, instances)
    return DirectBatcher(spec, instances)
