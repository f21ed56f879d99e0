"""One version of a model: what checks its requests, runs them and counts them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from shared.errors import HeadraceError
from shared.protocol import Infer
from shared.repository.spec import ModelSpec
from shared.repository.status import VersionStatistics
from workers.engine.interface import EngineOutput, EngineRequest
from workers.predictors.execution.executor import BatchExecutor, Clock, Executor, VersionParts
from workers.predictors.execution.instances import InstanceRunner
from workers.predictors.execution.stream import StreamExecutor
from workers.predictors.interface import Predictor
from workers.predictors.scheduling.dynamic import DynamicBatcher
from workers.predictors.scheduling.job import Deliver, Job
from workers.predictors.statistics import Statistics
from workers.predictors.tensors.inputs import InputReader
from workers.predictors.tensors.outputs import OutputWriter


class Version:
    """Serves one version. Methods are called with the lock of its engine held, except where they say otherwise.

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
        self.version = version
        self.spec = spec
        memory = sum(each.memory_bytes for each in instances)
        self.parts = VersionParts(spec, version, InputReader(spec), OutputWriter(spec), Statistics(memory), clock)
        self._deliver = deliver
        executor = StreamExecutor if spec.decoupled else BatchExecutor
        executors: list[Executor] = [executor(self.parts, each) for each in instances]
        self._runner = InstanceRunner(
            f"{spec.name}-{version}",
            executors,
            DynamicBatcher(spec),
            lock=lock,
            clock=clock,
            deliver=deliver,
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
            self._runner.add(job)
        except HeadraceError:
            self.parts.statistics.count_failure("REJECTED", 0)
            raise
        return job

    def remove(self, job: Job) -> None:
        """Drop a request that waits; the outputs of one that is being executed are dropped."""
        job.cancelled = True
        self._runner.remove(job)
        self.parts.statistics.count_failure("CANCELED", self.parts.clock() - job.arrived_ns)

    def close(self) -> None:
        """Execute the requests that the version has, then close its instances."""
        self._runner.close()

    def _refuse(self, job: Job, error: HeadraceError) -> None:
        self.parts.statistics.count_failure("REJECTED", self.parts.clock() - job.arrived_ns)
        self._deliver(job, EngineOutput(job.id, finished=True, error=error))
