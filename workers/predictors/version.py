"""One version of a model: what checks its requests, runs them and counts them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from shared.errors import ConfigError, HeadraceError
from shared.protocol import Infer
from shared.repository.spec import ModelSpec
from shared.repository.status import VersionStatistics
from workers.engine.interface import EngineOutput, EngineRequest
from workers.predictors.execution.executor import BatchExecutor, Clock, Executor, VersionParts
from workers.predictors.execution.instances import InstanceRunner
from workers.predictors.execution.sequence_executor import SequenceExecutor
from workers.predictors.execution.stream import StreamExecutor
from workers.predictors.execution.warmup import warm_up
from workers.predictors.interface import Predictor
from workers.predictors.scheduling.batcher import Batcher
from workers.predictors.scheduling.direct import DirectBatcher
from workers.predictors.scheduling.dynamic import DynamicBatcher
from workers.predictors.scheduling.job import Deliver, Job, SequenceKey
from workers.predictors.scheduling.oldest import OldestBatcher
from workers.predictors.scheduling.ordering import OrderedDelivery
from workers.predictors.statistics import Statistics
from workers.predictors.tensors.inputs import InputReader
from workers.predictors.tensors.outputs import OutputWriter


class Version:
    """Serves one version. Methods are called with the lock of its engine held, except where they say otherwise.

    It is ready once it is made. Raises ConfigError if the warm-up of an instance fails.

    Args:
        folder: of the model; None if no file of it is needed.
        deliver: takes the outputs of requests, from any thread, without the lock.
    """

    def __init__(
        self,
        version: str,
        spec: ModelSpec,
        instances: Sequence[Predictor],
        *,
        folder: Path | None,
        lock: threading.Lock,
        clock: Clock,
        deliver: Callable[[Job, EngineOutput], None],
    ) -> None:
        if not spec.inputs or not spec.outputs:
            raise ConfigError(f"the description of {spec.name} must name its inputs and outputs")
        warm_up(spec, instances, folder)
        self.version = version
        self.spec = spec
        memory = sum(each.memory_bytes for each in instances)
        self.parts = VersionParts(spec, version, InputReader(spec), OutputWriter(spec), Statistics(memory), clock)
        batching = spec.dynamic_batching
        self._ordered = OrderedDelivery(deliver) if batching is not None and batching.preserve_ordering else None
        self._deliver = deliver if self._ordered is None else self._ordered.put
        self._runner = InstanceRunner(
            f"{spec.name}-{version}",
            [_executor(self.parts, each) for each in instances],
            _batcher(spec, len(instances)),
            lock=lock,
            clock=clock,
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
        """Queue a request. Raises HeadraceError if it is refused."""
        checked = self.parts.reader.check(work)
        job = Job(request, work, checked, deliver, self.parts.clock())
        try:
            if self._ordered is not None:
                self._ordered.expect(job)
            self._runner.add(job)
        except HeadraceError:
            if self._ordered is not None:
                self._ordered.forget(job)
            self.parts.statistics.count_failure("REJECTED", 0)
            raise
        return job

    def remove(self, job: Job) -> None:
        """Drop a request that waits; the outputs of one that is being executed are dropped."""
        job.cancelled = True
        self._runner.remove(job)
        if self._ordered is not None:
            self._ordered.forget(job)
        self.parts.statistics.count_failure("CANCELED", self.parts.clock() - job.arrived_ns)

    def flush(self) -> None:
        """Deliver, without the lock, the outputs that waited for a request that was dropped."""
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
