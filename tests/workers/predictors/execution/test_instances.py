"""Instances in their threads: concurrency, failures, timeouts and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from shared.errors import EngineFailed, InvalidRequest, QueueFull, QueueTimeout
from shared.repository.spec import DynamicBatching, QueuePolicy
from tests.support.predictors import Doubler, PredictorDriver, floats, infer, model
from tests.support.waiting import LIMIT_S
from workers.predictors.engine import PredictorEngine
from workers.predictors.interface import Arrays, Execution, PredictorLost

Serve = Callable[..., AbstractContextManager[PredictorDriver]]


def serving(*instances: Doubler, clock: Callable[[], int] | None = None, **fields: Any) -> Any:
    """Return a driver of a model with these instances."""
    spec = model(**{"dynamic_batching": DynamicBatching(), **fields})
    engine = PredictorEngine(spec) if clock is None else PredictorEngine(spec, clock=clock)
    engine.add_version("1", instances)
    return PredictorDriver.of(engine)


def one(value: float, **fields: Any) -> Any:
    return infer(floats([value]), **fields)


def test_an_idle_model_answers_at_once_and_a_busy_one_joins() -> None:
    doubler = Doubler(gate=True)
    with serving(doubler) as driver:
        runs = [driver.start(one(0))]
        doubler.await_begin()
        runs += [driver.start(one(value)) for value in range(1, 5)]
        driver.await_stats(running=1, waiting=4)
        doubler.let_go(2)
        assert [driver.wait(run).array().tolist() for run in runs] == [[[2.0 * value]] for value in range(5)]
    assert doubler.batches == [[0], [1, 2, 3, 4]]


def test_requests_of_several_rows_get_their_own() -> None:
    doubler = Doubler(gate=True)
    with serving(doubler) as driver:
        driver.start(one(0))
        doubler.await_begin()
        first, second = driver.start(infer(floats([1], [2]))), driver.start(infer(floats([3], [4], [5])))
        driver.await_stats(waiting=2)
        doubler.let_go(2)
        assert driver.wait(first).array().tolist() == [[2], [4]]
        assert driver.wait(second).array().tolist() == [[6], [8], [10]]


def test_instances_run_at_the_same_time() -> None:
    instances = [Doubler(gate=True), Doubler(gate=True)]
    with serving(*instances) as driver:
        runs = [driver.start(one(1))]
        driver.await_stats(running=1)
        runs.append(driver.start(one(2)))
        for instance in instances:
            instance.await_begin()
        for instance in instances:
            instance.let_go()
        for run in runs:
            driver.wait(run)


def test_only_the_request_at_fault_ends() -> None:
    doubler = Doubler(gate=True)
    with serving(doubler) as driver:
        driver.start(one(0))
        doubler.await_begin()
        good, bad, other = (driver.start(one(value)) for value in (1, -1, 2))
        driver.await_stats(waiting=3)
        doubler.let_go(9)
        assert driver.wait(good).array().tolist() == [[2]]
        assert driver.wait(other).array().tolist() == [[4]]
        error = driver.wait(bad).error
        assert isinstance(error, EngineFailed)
        assert "secret" not in error.message
        counts = driver.engine.statistics()["1"]
        assert (counts.success.count, counts.failures) == (3, {"BACKEND": 1})
    assert doubler.batches == [[0], [1, -1, 2], [1], [-1], [2]]


class Raising(Doubler):
    """Predictor that raises the error of its test."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def predict(self, call: Execution) -> Arrays:
        raise self.error


def test_the_errors_of_a_model_reach_the_caller() -> None:
    with serving(Raising(InvalidRequest("X must be a word", param="X"))) as driver:
        error = driver.ask(one(1)).error
        assert isinstance(error, InvalidRequest)
        assert (error.message, error.param) == ("X must be a word", "X")
    with serving(Raising(PredictorLost("its process was killed"))) as driver:
        error = driver.ask(one(1)).error
        assert isinstance(error, EngineFailed)
        assert error.message == "m failed: its process was killed"


class Returning(Doubler):
    """Predictor that returns the outputs of its test."""

    def __init__(self, **outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def predict(self, call: Execution) -> Arrays:
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"Y": floats([1], [2])}, r"\[2, 1\] for a batch of 1"),
        ({"Y": np.array([[1.5]])}, "float64"),
        ({"Y": np.float32(1)}, "for a batch of 1"),
    ],
)
def test_outputs_unlike_the_description_fail_the_request(outputs: dict[str, Any], text: str) -> None:
    with serving(Returning(**outputs)) as driver:
        error = driver.ask(one(1)).error
        assert isinstance(error, EngineFailed)
        with pytest.raises(EngineFailed, match=text):
            raise error


def test_a_model_gets_the_wanted_outputs_and_parameters() -> None:
    doubler = Doubler()
    with serving(doubler) as driver:
        driver.ask(one(1, outputs=("Y",), parameters={"mode": "fast"}))
        driver.ask(one(1))
    first, second = doubler.calls
    assert (first.outputs, first.parameters) == (("Y",), {"mode": "fast"})
    assert (second.outputs, second.parameters) == ((), {})


class HandClock:
    """Clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Iterator[HandClock]:
    return HandClock()


def test_a_delay_ends_with_a_full_batch(clock: HandClock) -> None:
    doubler = Doubler()
    batching = DynamicBatching(preferred_batch_size=(2,), max_queue_delay_microseconds=3_600_000_000)
    with serving(doubler, clock=clock, dynamic_batching=batching) as driver:
        first = driver.start(one(1))
        driver.await_stats(waiting=1)
        driver.ask(one(2))
        driver.wait(first)
    assert doubler.batches == [[1, 2]]


def test_a_request_that_waited_too_long_is_refused_while_all_are_busy(clock: HandClock) -> None:
    doubler = Doubler(gate=True)
    policy = QueuePolicy(default_timeout_microseconds=100, max_queue_size=2)
    with serving(doubler, clock=clock, dynamic_batching=DynamicBatching(default_queue_policy=policy)) as driver:
        running = driver.start(one(1))
        doubler.await_begin()
        late = driver.start(one(2))
        driver.await_stats(waiting=1)
        clock.now = 100_000
        in_time = driver.start(one(3))
        assert isinstance(driver.wait(late).error, QueueTimeout)
        driver.start(one(4))
        assert isinstance(driver.ask(one(5)).error, QueueFull)
        doubler.let_go(2)
        assert driver.wait(running).error is None
        assert driver.wait(in_time).error is None
        assert driver.engine.statistics()["1"].failures == {"REJECTED": 2}
    assert doubler.batches == [[1], [3, 4]]


def test_order_is_preserved_if_the_model_wants_it() -> None:
    instances = [Doubler(gate=True), Doubler(gate=True)]
    with serving(*instances, dynamic_batching=DynamicBatching(preserve_ordering=True)) as driver:
        first = driver.start(one(1))
        driver.await_stats(running=1)
        second = driver.start(one(2))
        for instance in instances:
            instance.await_begin()
        slow, fast = instances if instances[0].batches == [[1]] else reversed(instances)
        fast.let_go()
        driver.await_stats(running=1)
        assert driver.order == []
        slow.let_go()
        driver.wait(first)
        driver.wait(second)
        assert driver.order == [first, second]
        third = driver.start(one(3))
        driver.await_stats(running=1)
        fourth = driver.start(one(4))
        for instance in instances:
            instance.await_begin()
        slow, fast = instances if instances[0].batches[-1] == [3] else reversed(instances)
        fast.let_go()
        driver.await_stats(running=1)
        driver.thread.abort(third)
        assert driver.wait(fourth).array().tolist() == [[8]]
        slow.let_go()


def test_statistics_count_requests_rows_and_executions() -> None:
    doubler = Doubler(gate=True)
    ticks = iter(range(0, 10**9, 1_000))
    with serving(doubler, clock=lambda: next(ticks)) as driver:
        driver.start(one(0))
        doubler.await_begin()
        runs = [driver.start(one(1)), driver.start(infer(floats([1], [2])))]
        driver.await_stats(waiting=2)
        assert driver.engine.statistics()["1"].pending == 2
        doubler.let_go(2)
        for run in runs:
            driver.wait(run)
        counts = driver.engine.statistics()["1"]
    assert (counts.inference_count, counts.execution_count, counts.pending) == (4, 2, 0)
    assert (counts.success.count, counts.queue.count, counts.compute_infer.count) == (3, 3, 3)
    assert counts.success.ns > counts.queue.ns > 0
    assert [(each.batch_size, each.compute_infer.count) for each in counts.batches] == [(1, 1), (3, 1)]
    assert counts.last_inference > 0
    assert counts.memory_bytes == 100


def test_a_version_that_fails_to_close_is_closed_for_its_engine() -> None:
    class Stuck(Doubler):
        def close(self) -> None:
            raise RuntimeError("cannot close")

    with serving(Stuck()) as driver:
        driver.engine.remove_version("1").result(LIMIT_S)
