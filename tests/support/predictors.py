"""Tiny models of numpy, and a driver of their engine in the thread that a worker uses."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared.errors import HeadraceError
from shared.protocol import Infer, PriorityClass, Request, SamplingParams, Tensor, Token, new_job_id
from shared.repository.spec import ModelSpec, TensorSpec
from tests.support.waiting import LIMIT_S
from workers.engine.interface import EngineOutput, EngineRequest, Source
from workers.engine_thread import EngineThread
from workers.predictors.engine import PredictorEngine
from workers.predictors.interface import Array, Arrays, Execution
from workers.predictors.tensors.arrays import to_array, to_tensor

X = TensorSpec(name="X", datatype="FP32", dims=(-1,))
Y = TensorSpec(name="Y", datatype="FP32", dims=(-1,))


def model(**fields: Any) -> ModelSpec:
    """Return the description of a model from X to Y in FP32, of one dimension and a batch dimension."""
    return ModelSpec(**{"name": "m", "max_batch_size": 8, "inputs": (X,), "outputs": (Y,), **fields})


def floats(*rows: Sequence[float]) -> Array:
    return np.array(rows, np.float32)


def infer(array: Array, name: str = "X", datatype: Any = "FP32", **fields: Any) -> Infer:
    return Infer(inputs=(to_tensor(name, datatype, array),), **fields)


def engine_request(
    work: Infer,
    *,
    priority: PriorityClass = PriorityClass.STANDARD,
    tenant: str = "t",
    logged: Sequence[Token] = (),
) -> EngineRequest:
    request = Request(id=new_job_id(), model="m", work=work, priority=priority, tenant=tenant)
    source = Source(request, tuple(logged))
    return EngineRequest(f"{request.id}/1", (), SamplingParams(), priority=priority, tenant=tenant, source=source)


class Doubler:
    """Predictor whose output Y is twice its input X. It records its executions.

    A value below zero makes it fail. With `gate`, an execution waits until `let_go` is called, once for each.
    """

    memory_bytes = 100

    def __init__(self, *, gate: bool = False) -> None:
        self.calls: list[Execution] = []
        self.closed = threading.Event()
        self.begun = threading.Semaphore(0)
        self._gate = threading.Semaphore(0) if gate else None

    @property
    def batches(self) -> list[list[float]]:
        """Return the first value of each row, by execution."""
        return [[float(row[0]) for row in call.inputs["X"]] for call in self.calls]

    def predict(self, call: Execution) -> Arrays:
        self.calls.append(call)
        self.begun.release()
        if self._gate is not None:
            assert self._gate.acquire(timeout=LIMIT_S)
        if (call.inputs["X"] < 0).any():
            raise ValueError("a secret of the caller")
        return {"Y": call.inputs["X"] * 2}

    def stream(self, call: Execution) -> Iterator[Arrays]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed.set()

    def await_begin(self) -> None:
        """Wait until one more execution has begun."""
        assert self.begun.acquire(timeout=LIMIT_S)

    def let_go(self, executions: int = 1) -> None:
        assert self._gate is not None
        self._gate.release(executions)


@dataclass
class Answer:
    """Outputs of one request."""

    tokens: list[Token] = field(default_factory=list)
    tensors: tuple[Tensor, ...] = ()
    version: str = ""
    error: HeadraceError | None = None
    finished: bool = False

    def array(self, name: str = "Y") -> Array:
        assert self.error is None, self.error
        return to_array(next(tensor for tensor in self.tensors if tensor.name == name))


class PredictorDriver:
    """Runs requests on an engine as a worker does. Waits take at most LIMIT_S."""

    def __init__(self, engine: PredictorEngine) -> None:
        self.engine = engine
        self.order: list[str] = []  # in which requests ended
        self._changed = threading.Condition()
        self._answers: dict[str, Answer] = defaultdict(Answer)
        self.thread = EngineThread(engine, self._take)
        self.thread.start()

    @classmethod
    @contextmanager
    def of(cls, engine: PredictorEngine) -> Iterator[PredictorDriver]:
        driver = cls(engine)
        try:
            yield driver
        finally:
            driver.thread.stop()
            engine.close()
            assert driver.thread.failure is None

    def start(self, work: Infer, **fields: Any) -> str:
        request = engine_request(work, **fields)
        self.thread.add(request)
        return request.id

    def wait(self, request_id: str, tokens: int | None = None) -> Answer:
        """Wait until a request has ended, or has that many tokens."""
        answer = self._answers[request_id]
        self.until(lambda: answer.finished or (tokens is not None and len(answer.tokens) >= tokens))
        return answer

    def ask(self, work: Infer, **fields: Any) -> Answer:
        return self.wait(self.start(work, **fields))

    def until(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(reached, LIMIT_S)

    def await_stats(self, *, running: int | None = None, waiting: int | None = None) -> None:
        """Poll the engine's statistics until they are as expected."""
        for _ in range(int(LIMIT_S / 0.005)):
            stats = self.engine.stats()
            if running in (None, stats.running) and waiting in (None, stats.waiting):
                return
            threading.Event().wait(0.005)
        raise AssertionError(stats)

    def _take(self) -> None:
        self._note(self.thread.take())

    def _note(self, outputs: list[EngineOutput]) -> None:
        with self._changed:
            for output in outputs:
                answer = self._answers[output.job_id]
                assert not answer.finished, "an output after the end of a request"
                answer.tokens += output.tokens
                answer.error, answer.finished = output.error, output.finished
                if output.result is not None:
                    answer.tensors, answer.version = output.result.tensors, output.result.version
                if output.finished:
                    self.order.append(output.job_id)
            self._changed.notify_all()
