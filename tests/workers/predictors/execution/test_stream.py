"""Decoupled models: any number of responses to a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from shared.errors import EngineFailed
from shared.protocol import Result, Token
from tests.support.predictors import Answer, Doubler, PredictorDriver, engine_request, floats, infer, model
from tests.support.waiting import LIMIT_S
from workers.engine.interface import EngineOutput
from workers.predictors import outbox
from workers.predictors.engine import PredictorEngine
from workers.predictors.interface import Arrays, Execution
from workers.predictors.tensors.arrays import to_array


class Repeater(Doubler):
    """Decoupled predictor that sends as many responses as X says: 0, 1, 2, …

    It fails after them if X has two values. With `gate`, each response waits until it is let go.
    """

    def __init__(self, *, gate: bool = False) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0) if gate else None
        self.ended = threading.Event()

    def stream(self, call: Execution) -> Iterator[Arrays]:
        self.calls.append(call)
        try:
            for number in range(int(call.inputs["X"][0, 0])):
                self.begun.release()
                if self.gate is not None:
                    assert self.gate.acquire(timeout=LIMIT_S)
                yield {"Y": floats([number])}
            if call.inputs["X"].shape[1] > 1:
                raise RuntimeError("broken")
        finally:
            self.ended.set()


def serving(repeater: Repeater) -> Any:
    engine = PredictorEngine(model(decoupled=True))
    engine.add_version("1", [repeater])
    return PredictorDriver.of(engine)


def values(answer: Answer) -> list[float]:
    results = [msgspec.json.decode(token.text, type=Result) for token in answer.tokens]
    assert {result.version for result in results} <= {"1"}
    return [float(to_array(result.tensors[0])[0, 0]) for result in results]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_response_is_a_token_before_the_end(count: int) -> None:
    with serving(Repeater()) as driver:
        answer = driver.ask(infer(floats([count])))
        assert values(answer) == list(range(count))
        assert (answer.tensors, answer.error) == ((), None)
        assert all(token.id < 0 and token.finish_reason is None for token in answer.tokens)
        counts = driver.engine.statistics()["1"]
        assert (counts.success.count, counts.execution_count) == (1, 1)


def test_a_response_arrives_before_the_next_one_is_computed() -> None:
    repeater = Repeater(gate=True)
    assert repeater.gate is not None
    with serving(repeater) as driver:
        run = driver.start(infer(floats([2])))
        repeater.gate.release()
        assert values(driver.wait(run, tokens=1)) == [0]
        repeater.gate.release()
        assert values(driver.wait(run)) == [0, 1]


def test_a_continued_request_gets_the_responses_that_are_not_logged() -> None:
    with serving(Repeater()) as driver:
        logged = driver.ask(infer(floats([4]))).tokens[:2]
        assert values(driver.ask(infer(floats([4])), logged=logged)) == [2, 3]


def test_a_failure_ends_the_request_after_its_responses() -> None:
    with serving(Repeater()) as driver:
        answer = driver.ask(infer(floats([2, 0])))
        assert values(answer) == [0, 1]
        assert isinstance(answer.error, EngineFailed)
        assert driver.engine.statistics()["1"].failures == {"BACKEND": 1}


def test_an_abort_stops_the_stream() -> None:
    repeater = Repeater(gate=True)
    assert repeater.gate is not None
    with serving(repeater) as driver:
        run = driver.start(infer(floats([1_000_000])))
        repeater.gate.release()
        driver.wait(run, tokens=1)
        driver.thread.abort(run)
        driver.await_stats(running=1)
        while not repeater.ended.wait(0.005):
            repeater.gate.release()
        driver.await_stats(running=0)
        assert repeater.begun.acquire(timeout=LIMIT_S)
        assert driver.engine.statistics()["1"].failures == {"CANCELED": 1}


def test_requests_are_executed_one_at_a_time() -> None:
    repeater = Repeater(gate=True)
    assert repeater.gate is not None
    with serving(repeater) as driver:
        runs = [driver.start(infer(floats([1]))) for _ in range(3)]
        driver.await_stats(running=1, waiting=2)
        repeater.gate.release(3)
        assert [values(driver.wait(run)) for run in runs] == [[0]] * 3


def test_responses_wait_while_the_worker_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BUFFERED_CHARS", 1)
    repeater = Repeater()
    engine = PredictorEngine(model(decoupled=True))
    engine.add_version("1", [repeater])
    engine.add(engine_request(infer(floats([3]))))
    found: list[EngineOutput] = []
    for number in range(3):
        for _ in range(number + 1 - len(found)):
            assert repeater.begun.acquire(timeout=LIMIT_S)
        while len(found) <= number:
            taken = engine.step()
            assert len(taken) <= 2  # a response, and the end without one
            found += taken
    while not found[-1].finished:
        found += engine.step()
    assert [len(output.tokens) for output in found] == [1, 1, 1, 0]
    engine.close()
    assert all(isinstance(token, Token) for output in found for token in output.tokens)
