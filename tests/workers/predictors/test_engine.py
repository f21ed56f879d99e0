"""The engine of a predictor: its versions, and the requests on them while they change."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from shared.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Unavailable, VersionNotFound
from shared.protocol import Embed, Infer, Request, SamplingParams
from shared.repository.spec import DynamicBatching
from tests.support.predictors import Doubler, PredictorDriver, engine_request, floats, infer, model
from tests.support.waiting import LIMIT_S
from workers.engine.interface import EngineOutput, EngineRequest, Source
from workers.predictors.engine import PredictorEngine


@pytest.fixture
def driver() -> Iterator[PredictorDriver]:
    with PredictorDriver.of(PredictorEngine(model(dynamic_batching=DynamicBatching()))) as driver:
        yield driver


def one(value: float, **fields: object) -> Infer:
    return infer(floats([value]), **fields)


def test_a_request_gets_the_outputs_of_its_inputs(driver: PredictorDriver) -> None:
    driver.engine.add_version("1", [Doubler()])
    answer = driver.ask(infer(floats([1, 2], [3, 4])))
    assert answer.array().tolist() == [[2, 4], [6, 8]]
    assert answer.version == "1"


def test_the_newest_version_is_the_default(driver: PredictorDriver) -> None:
    for version in ("9", "10", "2"):
        driver.engine.add_version(version, [Doubler()])
    assert driver.engine.versions == ("2", "9", "10")
    assert driver.ask(one(1)).version == "10"
    assert driver.ask(one(1, version="9")).version == "9"


def test_a_missing_version_is_a_404(driver: PredictorDriver) -> None:
    driver.engine.add_version("1", [Doubler()])
    error = driver.ask(one(1, version="7")).error
    assert isinstance(error, VersionNotFound)
    assert (error.status, error.param, "7" in error.message) == (404, "version", True)
    with pytest.raises(VersionNotFound):
        driver.engine.remove_version("7")


def test_without_a_version_requests_are_refused_or_wait(driver: PredictorDriver) -> None:
    assert isinstance(driver.ask(one(1)).error, Unavailable)
    driver.engine.await_versions()
    newest, explicit, missing = (driver.start(one(1, version=version)) for version in ("", "2", "3"))
    driver.await_stats(waiting=3)
    driver.engine.add_version("2", [Doubler()])
    assert driver.wait(newest).version == driver.wait(explicit).version == "2"
    driver.engine.settle(EngineFailed("version 3 cannot be loaded"))
    assert isinstance(driver.wait(missing).error, EngineFailed)
    assert isinstance(driver.ask(one(1, version="3")).error, VersionNotFound)


def test_a_removed_version_finishes_its_requests(driver: PredictorDriver) -> None:
    old, new = Doubler(gate=True), Doubler()
    driver.engine.add_version("1", [old])
    running = driver.start(one(1))
    old.await_begin()
    waiting = driver.start(one(2))
    driver.await_stats(running=1, waiting=1)
    driver.engine.add_version("2", [new])
    removed = driver.engine.remove_version("1")
    assert driver.ask(one(3)).version == "2"
    assert isinstance(driver.ask(one(1, version="1")).error, VersionNotFound)
    assert not removed.done()
    old.let_go(2)
    assert driver.wait(running).array().tolist() == [[2]]
    assert driver.wait(waiting).version == "1"
    removed.result(LIMIT_S)
    assert old.closed.is_set()
    assert not new.closed.is_set()


def test_no_request_is_lost_while_versions_change(driver: PredictorDriver) -> None:
    driver.engine.add_version("0", [Doubler(), Doubler()])
    asked: list[tuple[str, float]] = []
    removed = []
    for version in range(1, 20):
        asked += [(driver.start(one(value)), float(value)) for value in range(50)]
        driver.engine.add_version(str(version), [Doubler(), Doubler()])
        removed.append(driver.engine.remove_version(str(version - 1)))
        asked += [(driver.start(one(value)), float(value)) for value in range(50)]
    answers = [(driver.wait(run), value) for run, value in asked]
    assert all(answer.array().tolist() == [[2 * value]] for answer, value in answers)
    assert len({answer.version for answer, _ in answers}) > 2
    for future in removed:
        future.result(LIMIT_S)


def test_a_version_is_replaced_under_load(driver: PredictorDriver) -> None:
    first, second = Doubler(gate=True), Doubler()
    driver.engine.add_version("1", [first])
    running = driver.start(one(1))
    first.await_begin()
    driver.engine.add_version("1", [second])
    assert driver.ask(one(2)).array().tolist() == [[4]]
    first.let_go()
    assert driver.wait(running).array().tolist() == [[2]]
    assert first.closed.wait(LIMIT_S)


def test_a_waiting_request_is_dropped_by_an_abort(driver: PredictorDriver) -> None:
    doubler = Doubler(gate=True)
    driver.engine.add_version("1", [doubler])
    running = driver.start(one(1))
    doubler.await_begin()
    late = driver.start(one(2))
    driver.await_stats(waiting=1)
    driver.thread.abort(late, DeadlineExceeded("too late"))
    assert isinstance(driver.wait(late).error, DeadlineExceeded)
    doubler.let_go()
    driver.wait(running)
    assert doubler.batches == [[1]]
    counts = driver.engine.statistics()["1"]
    assert (counts.failures, counts.success.count) == ({"CANCELED": 1}, 1)


def test_a_running_request_that_is_aborted_gives_nothing(driver: PredictorDriver) -> None:
    doubler = Doubler(gate=True)
    driver.engine.add_version("1", [doubler])
    aborted = driver.start(one(1))
    doubler.await_begin()
    driver.thread.abort(aborted)
    other = driver.start(one(2))
    driver.await_stats(waiting=1)  # its command follows the abort
    doubler.let_go(2)
    driver.wait(other)
    assert aborted not in driver.order
    assert driver.engine.statistics()["1"].success.count == 1
    driver.await_stats(running=0, waiting=0)


def test_closing_ends_the_instances(driver: PredictorDriver) -> None:
    doublers = [Doubler(), Doubler()]
    driver.engine.add_version("1", doublers)
    driver.engine.close()
    assert all(doubler.closed.is_set() for doubler in doublers)


def test_work_of_another_kind_is_refused(driver: PredictorDriver) -> None:
    request = EngineRequest(
        "r", (), SamplingParams(), source=Source(Request(id="r", model="m", work=Embed(("a",))))
    )
    with pytest.raises(InvalidRequest):
        driver.engine.add(request)


def test_other_threads_submit_and_get_the_outputs(driver: PredictorDriver) -> None:
    driver.engine.add_version("1", [Doubler()])
    outputs: SimpleQueue[EngineOutput] = SimpleQueue()
    driver.engine.submit(engine_request(one(4)), outputs.put)
    result = outputs.get(timeout=LIMIT_S).result
    assert result is not None
    assert result.version == "1"
    assert not driver.engine.has_work()
