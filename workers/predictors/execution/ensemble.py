"""Ensembles: requests whose steps other models of the process execute, each as soon as its inputs are there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

import msgspec

from shared.errors import EngineFailed, HeadraceError, Unavailable
from shared.protocol import Infer, Result, Tensor
from shared.repository.spec import EnsembleStep, ModelSpec
from workers.engine.interface import EngineOutput, EngineRequest, Source
from workers.predictors.execution.ensemble_plan import check_ensemble
from workers.predictors.execution.executor import VersionParts, failed
from workers.predictors.scheduling.job import Deliver, Job, SequenceKey
from workers.predictors.statistics import Times

NEWEST = -1


class StepModel(Protocol):
    """A model that executes steps of ensembles."""

    @property
    def spec(self) -> ModelSpec: ...

    def submit(self, request: EngineRequest, deliver: Deliver) -> None: ...

    def cancel(self, request_id: str) -> bool: ...


FindModel = Callable[[str], StepModel | None]


class EnsembleRunner:
    """Runs the requests of one version of an ensemble. Its methods are called with the engine's lock held, except
    `begin` and `flush`.

    Raises ConfigError if the ensemble cannot be executed.

    Attributes:
        running: the number of requests whose steps are being executed.
        closed: completes when the last request has ended after `close`.
    """

    waiting = 0

    def __init__(
        self,
        parts: VersionParts,
        find: FindModel,
        *,
        lock: threading.Lock,
        deliver: Callable[[Job, EngineOutput], None],
    ) -> None:
        names = {step.model_name for step in parts.spec.ensemble}
        found = {name: model.spec for name in names if (model := find(name)) is not None}
        check_ensemble(parts.spec, found)
        self.parts = parts
        self.find = find
        self._lock = lock
        self._deliver = deliver
        self._runs: dict[Job, _Run] = {}
        self._cancelled: list[_Run] = []
        self._closing = False
        self.closed: Future[None] = Future()

    @property
    def running(self) -> int:
        return len(self._runs)

    def add(self, job: Job) -> None:
        self._runs[job] = _Run(job, self)

    def begin(self, job: Job) -> None:
        """Start the steps of a request that was added."""
        run = self._runs.get(job)
        if run is not None:
            run.advance()

    def remove(self, job: Job) -> bool:
        """Drop a request; `flush` must follow, which cancels its steps."""
        run = self._runs.pop(job, None)
        if run is not None:
            self._cancelled.append(run)
        self._check_closed()
        return run is not None

    def flush(self) -> None:
        while self._cancelled:
            self._cancelled.pop().cancel()

    def knows(self, key: SequenceKey) -> bool:
        """Return false: the models of the steps keep the state of sequences."""
        return False

    def close(self, *, sequences: bool = True) -> None:
        self._closing = True
        self._check_closed()

    def end(self, job: Job, output: EngineOutput) -> None:
        """Deliver the outcome of a request, without the lock."""
        with self._lock:
            self._runs.pop(job, None)
        self._deliver(job, output)
        with self._lock:
            self._check_closed()

    def _check_closed(self) -> None:
        if self._closing and not self._runs and not self.closed.done():
            self.closed.set_result(None)


class _Run:
    """One request on an ensemble. Its steps end in the threads of their models."""

    def __init__(self, job: Job, runner: EnsembleRunner) -> None:
        self._job = job
        self._runner = runner
        self._lock = threading.Lock()
        self._tensors: dict[str, Tensor] = {tensor.name: tensor for tensor in job.work.inputs}
        inputs = (each.name for each in runner.parts.spec.inputs)
        self._decided = {*inputs, *self._tensors}  # that are there, or optional and missing
        self._waiting = dict(enumerate(runner.parts.spec.ensemble))
        self._running: dict[int, StepModel] = {}
        self._ended = False

    def advance(self) -> None:
        """Start the steps whose inputs are there, or end with the outputs."""
        with self._lock:
            if self._ended:
                return
            ready = {
                number: step
                for number, step in self._waiting.items()
                if self._decided.issuperset(step.input_map.values())
            }
            for number in ready:
                del self._waiting[number]
            self._ended = not ready and not self._running
            done = self._ended
            requests = {number: self._request(number, step) for number, step in ready.items()}
            models = {number: self._runner.find(step.model_name) for number, step in ready.items()}
            self._running.update({number: model for number, model in models.items() if model is not None})
        if done:
            self._finish()
        for number, step in ready.items():
            self._start(number, step, requests[number], models[number])

    def cancel(self) -> None:
        with self._lock:
            self._ended = True
            running, self._running = self._running, {}
        for number, model in running.items():
            model.cancel(self._step_id(number))

    def _start(self, number: int, step: EnsembleStep, request: EngineRequest, model: StepModel | None) -> None:
        try:
            if model is None:
                raise Unavailable("the model is not loaded")
            model.submit(request, lambda output: self._on_output(number, step, output))
        except HeadraceError as error:
            self._fail(step, error)

    def _on_output(self, number: int, step: EnsembleStep, output: EngineOutput) -> None:
        if output.error is not None:
            self._fail(step, output.error)
            return
        assert output.result is not None
        found = {tensor.name: tensor for tensor in output.result.tensors}
        missing = [theirs for theirs in step.output_map if theirs not in found]
        if missing:
            self._fail(step, EngineFailed(f"the model did not return its output {missing[0]}"))
            return
        with self._lock:
            self._running.pop(number, None)
            for theirs, name in step.output_map.items():
                self._tensors[name] = msgspec.structs.replace(found[theirs], name=name)
                self._decided.add(name)
        self.advance()

    def _fail(self, step: EnsembleStep, error: HeadraceError) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self.cancel()
        named = type(error)(
            f"step {step.model_name}: {error.message}", param=error.param, retry_after=error.retry_after
        )
        self._runner.end(self._job, failed(self._job, named, self._runner.parts, "OTHER"))

    def _finish(self) -> None:
        parts, job = self._runner.parts, self._job
        wanted = job.work.outputs or tuple(each.name for each in parts.spec.outputs)
        result = Result(tensors=tuple(self._tensors[name] for name in wanted), version=parts.version)
        parts.keep_response(job, result.tensors)
        total = parts.clock() - job.arrived_ns
        parts.statistics.count_execution(job.checked.batch_size, Times(compute_infer=total))
        parts.statistics.count_success(job.checked.batch_size, total, 0, Times(compute_infer=total))
        parts.statistics.count_first_response(total)
        self._runner.end(job, EngineOutput(job.id, finished=True, result=result))

    def _request(self, number: int, step: EnsembleStep) -> EngineRequest:
        """Return the request of one step; it inherits what the ensemble's request says beside its tensors."""
        source = self._job.request.source
        assert source is not None
        work = self._work(step, self._tensors)
        request = msgspec.structs.replace(source.request, model=step.model_name, work=work)
        return replace(self._job.request, id=self._step_id(number), source=Source(request))

    def _work(self, step: EnsembleStep, tensors: Mapping[str, Tensor]) -> Infer:
        inputs = (
            msgspec.structs.replace(tensors[name], name=theirs)
            for theirs, name in step.input_map.items()
            if name in tensors
        )
        version = "" if step.model_version == NEWEST else str(step.model_version)
        return msgspec.structs.replace(
            self._job.work, inputs=tuple(inputs), outputs=tuple(step.output_map), version=version
        )

    def _step_id(self, number: int) -> str:
        return f"{self._job.id}/{self._runner.parts.spec.name}/{number}"
