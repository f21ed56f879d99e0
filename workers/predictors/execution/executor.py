"""Execution of batches on one instance of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from shared.errors import EngineFailed, HeadraceError
from shared.protocol import Result, Tensor
from shared.repository.spec import ModelSpec
from workers.engine.interface import EngineOutput
from workers.engine.stage import Stage
from workers.predictors.execution.joining import divide, join
from workers.predictors.interface import Arrays, Execution, Predictor, PredictorLost
from workers.predictors.response_cache import ResponseCache
from workers.predictors.scheduling.job import Batch, Job
from workers.predictors.statistics import FailureReason, Statistics, Times
from workers.predictors.tensors.inputs import InputReader
from workers.predictors.tensors.outputs import ModelFault, OutputWriter

Clock = Callable[[], int]  # monotonic, in nanoseconds


@dataclass(frozen=True)
class VersionParts:
    """Parts that the instances of one version share."""

    spec: ModelSpec
    version: str
    reader: InputReader
    writer: OutputWriter
    statistics: Statistics
    clock: Clock
    cache: ResponseCache | None = None

    def keep_response(self, job: Job, tensors: tuple[Tensor, ...]) -> None:
        """Store the response of a request that was not found in the cache."""
        if self.cache is not None and job.cache_key:
            began = self.clock()
            self.cache.put(job.cache_key, tensors)
            self.statistics.count_miss(job.lookup_ns + self.clock() - began)


class Executor(Protocol):
    """Executes batches on one instance, in one thread."""

    def run(self, batch: Batch) -> Iterator[tuple[Job, EngineOutput]]:
        """Yield the outputs of the batch's requests as they are computed; each request ends."""

    def close(self) -> None: ...


class BatchExecutor:
    """Executes models that return one response to a request."""

    def __init__(self, parts: VersionParts, predictor: Predictor) -> None:
        self._parts = parts
        self._predictor = predictor

    def run(self, batch: Batch) -> Iterator[tuple[Job, EngineOutput]]:
        started = self._parts.clock()
        try:
            results, times = self._compute(batch)
        except HeadraceError as error:
            if len(batch.jobs) > 1:  # repeated one by one, so that only the request at fault ends
                for job in batch.jobs:
                    yield from self.run(batch.alone(job))
                return
            yield batch.jobs[0], failed(batch.jobs[0], error, self._parts)
            return
        self._count(batch, started, times)
        for job, result in zip(batch.jobs, results, strict=True):
            self._parts.keep_response(job, result.tensors)
            yield job, EngineOutput(job.id, finished=True, result=result)

    def close(self) -> None:
        self._predictor.close()

    def _compute(self, batch: Batch) -> tuple[list[Result], Times]:
        """Return a result for each request. Raises HeadraceError."""
        clock = self._parts.clock
        with calling_model(self._parts, batch.jobs[0]):
            began = clock()
            call = self._call(batch)
            called = clock()
            outputs = self._predictor.predict(call)
            returned = clock()
            results = self._results(batch, outputs)
            return results, Times(called - began, returned - called, clock() - returned)

    def _call(self, batch: Batch) -> Execution:
        parts = [self._parts.reader.read(job.work) for job in batch.jobs]
        return Execution(join(parts), batch.wanted_outputs(), batch.jobs[0].work.parameters)

    def _results(self, batch: Batch, outputs: Arrays) -> list[Result]:
        parts = self._divide(batch, outputs)
        return [self._result(job, part) for job, part in zip(batch.jobs, parts, strict=True)]

    def _result(self, job: Job, outputs: Arrays) -> Result:
        return Result(tensors=self._parts.writer.write(outputs, job.work), version=self._parts.version)

    def _divide(self, batch: Batch, outputs: Arrays) -> list[Arrays]:
        if not self._parts.spec.max_batch_size:
            return [outputs]
        names = [each.name for each in self._parts.spec.outputs]
        return [*divide(outputs, names, [job.checked.batch_size for job in batch.jobs])]

    def _count(self, batch: Batch, started: int, times: Times) -> None:
        statistics, now = self._parts.statistics, self._parts.clock()
        statistics.count_execution(sum(job.checked.batch_size for job in batch.jobs), times)
        for job in batch.jobs:
            waited = started - job.arrived_ns
            statistics.count_success(job.checked.batch_size, now - job.arrived_ns, waited, times)
            statistics.count_first_response(now - job.arrived_ns)


@contextmanager
def calling_model(parts: VersionParts, job: Job) -> Iterator[None]:
    """Replace any exception of the model by EngineFailed; a HeadraceError passes through unchanged."""
    with Stage("model", model=parts.spec.name, version=parts.version, run_id=job.id):
        try:
            yield
        except (ModelFault, PredictorLost) as error:
            raise EngineFailed(f"{parts.spec.name} failed: {error}") from error


def failed(job: Job, error: HeadraceError, parts: VersionParts, reason: FailureReason = "BACKEND") -> EngineOutput:
    """Count a failed request, and return its last output."""
    parts.statistics.count_failure(reason, parts.clock() - job.arrived_ns)
    return EngineOutput(job.id, finished=True, error=error)
