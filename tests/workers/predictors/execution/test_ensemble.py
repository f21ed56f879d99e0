"""Ensembles on the engines of their steps' models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from shared.errors import ConfigError, EngineFailed, InvalidRequest, VersionNotFound
from shared.protocol import SequenceStep
from shared.repository.spec import EnsembleStep, ModelSpec, TensorSpec
from tests.support.predictors import Doubler, PredictorDriver, floats, infer, model
from tests.support.sequence_models import Adder, sequence_model
from tests.support.waiting import LIMIT_S
from workers.predictors.engine import PredictorEngine
from workers.predictors.execution.ensemble_plan import check_ensemble
from workers.predictors.interface import Arrays, Execution
from workers.predictors.response_cache import ResponseCache


def tensor(name: str, **fields: Any) -> TensorSpec:
    return TensorSpec(**{"name": name, "datatype": "FP32", "dims": (-1,), **fields})


def doubling(name: str, given: str, gives: str, **fields: Any) -> EnsembleStep:
    return EnsembleStep(model_name=name, input_map={"X": given}, output_map={"Y": gives}, **fields)


SUM = ModelSpec(name="sum", max_batch_size=8, inputs=(tensor("A"), tensor("B")), outputs=(tensor("C"),))
JOIN = EnsembleStep(model_name="sum", input_map={"A": "left", "B": "right"}, output_map={"C": "OUT"})
# IN goes to two models at a time, and their outputs to a third one; the steps are listed the other way round
DIAMOND = (JOIN, doubling("b", "IN", "right"), doubling("a", "IN", "left"))


def ensemble(*steps: EnsembleStep, **fields: Any) -> ModelSpec:
    given = {"name": "e", "max_batch_size": 8, "inputs": (tensor("IN"),), "outputs": (tensor("OUT"),)}
    return ModelSpec(**{**given, "ensemble": steps or DIAMOND, **fields})


class Sum(Doubler):
    def predict(self, call: Execution) -> Arrays:
        self.calls.append(call)
        return {"C": call.inputs["A"] + call.inputs["B"]}


class Bench:
    """Engines of the models a, b and sum, and of the ensemble e."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.a, self.b, self.sum = Doubler(gate=True), Doubler(gate=True), Sum()
        self.engines: dict[str, PredictorEngine] = {}
        self.drivers: dict[str, PredictorDriver] = {}
        self.load(model(name="a"), self.a)
        self.load(model(name="b"), self.b)
        self.load(SUM, self.sum)

    def load(self, spec: ModelSpec, *instances: Doubler, **parts: Any) -> PredictorDriver:
        engine = self.engines[spec.name] = PredictorEngine(spec, find=self.engines.get, **parts)
        driver = self.drivers[spec.name] = self._stack.enter_context(PredictorDriver.of(engine))
        engine.add_version("1", instances)
        return driver

    def let_go(self, executions: int = 1) -> None:
        self.a.let_go(executions)
        self.b.let_go(executions)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


def test_steps_run_as_soon_as_their_inputs_are_there(bench: Bench) -> None:
    driver = bench.load(ensemble())
    run = driver.start(infer(floats([1, 2], [3, 4]), name="IN"))
    bench.a.await_begin()
    bench.b.await_begin()  # at the same time
    driver.await_stats(running=1)
    bench.let_go()
    answer = driver.wait(run)
    assert answer.array("OUT").tolist() == [[4, 8], [12, 16]]
    assert [tensor.name for tensor in answer.tensors] == ["OUT"]
    assert answer.version == "1"
    driver.await_stats(running=0)
    for name in ("a", "b", "sum", "e"):
        counts = bench.engines[name].statistics()["1"]
        assert (counts.success.count, counts.inference_count, counts.execution_count) == (1, 2, 1)


def test_an_ensemble_may_be_a_step_and_return_intermediate_tensors(bench: Bench) -> None:
    bench.load(ensemble())
    outer = ensemble(
        EnsembleStep(model_name="e", input_map={"IN": "IN"}, output_map={"OUT": "inner"}),
        doubling("a", "inner", "OUT"),
        name="outer",
        outputs=(tensor("OUT"), tensor("inner")),
    )
    driver = bench.load(outer)
    bench.let_go(2)
    answer = driver.ask(infer(floats([1]), name="IN"))
    assert answer.array("inner").tolist() == [[4]]
    assert answer.array("OUT").tolist() == [[8]]


def test_a_failed_step_is_named_and_stops_the_others(bench: Bench) -> None:
    driver = bench.load(ensemble())
    bench.a.let_go()
    error = driver.ask(infer(floats([-1]), name="IN")).error
    assert isinstance(error, EngineFailed)
    assert error.message.startswith("step a: ")
    bench.b.let_go()
    assert bench.sum.calls == []
    assert bench.engines["e"].statistics()["1"].failures == {"OTHER": 1}
    assert bench.engines["a"].statistics()["1"].failures == {"BACKEND": 1}


def test_a_step_may_want_a_version_that_is_missing(bench: Bench) -> None:
    driver = bench.load(ensemble(doubling("a", "IN", "OUT", model_version=9)))
    error = driver.ask(infer(floats([1]), name="IN")).error
    assert isinstance(error, VersionNotFound)
    assert error.message == "step a: a has no ready version 9"


def test_inputs_are_those_of_the_ensemble(bench: Bench) -> None:
    driver = bench.load(ensemble())
    error = driver.ask(infer(floats([1]))).error
    assert isinstance(error, InvalidRequest)
    assert error.param == "X"


def test_a_dropped_request_drops_its_steps(bench: Bench) -> None:
    driver = bench.load(ensemble())
    busy = driver.start(infer(floats([1]), name="IN"))
    bench.a.await_begin()
    bench.b.await_begin()
    dropped = driver.start(infer(floats([2]), name="IN"))
    driver.await_stats(running=2)
    for name in ("a", "b"):
        bench.drivers[name].await_stats(waiting=1)
    driver.thread.abort(dropped)
    driver.await_stats(running=1)
    for name in ("a", "b"):
        assert bench.engines[name].stats().waiting == 0
    bench.let_go()
    driver.wait(busy)


def test_a_removed_version_finishes_its_requests(bench: Bench) -> None:
    driver = bench.load(ensemble())
    run = driver.start(infer(floats([1]), name="IN"))
    bench.a.await_begin()
    removed = bench.engines["e"].remove_version("1")
    assert not removed.done()
    bench.let_go()
    assert driver.wait(run).error is None
    removed.result(LIMIT_S)


def test_sequences_go_through_an_ensemble(bench: Bench) -> None:
    adder = Adder()
    bench.load(msgspec.structs.replace(sequence_model(), name="adder"), adder)
    driver = bench.load(ensemble(EnsembleStep(model_name="adder", input_map={"X": "IN"}, output_map={"Y": "OUT"})))
    for value, total in ((1, 1), (2, 3)):
        work = infer(floats([value]), name="IN", sequence=SequenceStep(1, start=value == 1))
        assert driver.ask(work).array("OUT").tolist() == [[total]]


def test_a_cached_response_of_an_ensemble_runs_no_step(bench: Bench) -> None:
    driver = bench.load(ensemble(response_cache=True), cache=ResponseCache(10_000))
    bench.let_go()
    for _ in range(2):
        assert driver.ask(infer(floats([1]), name="IN")).array("OUT").tolist() == [[4]]
    assert len(bench.sum.calls) == 1
    counts = bench.engines["e"].statistics()["1"]
    assert (counts.cache_hit.count, counts.cache_miss.count) == (1, 1)


MODELS = {"a": model(name="a"), "b": model(name="b"), "sum": SUM, "stream": model(name="stream", decoupled=True)}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ensemble(doubling("c", "IN", "OUT")), "step c: the model is not loaded"),
        (ensemble(doubling("stream", "IN", "OUT")), "step stream: the model is decoupled"),
        (ensemble(doubling("a", "what", "OUT")), "nothing produces tensor what"),
        (ensemble(doubling("a", "IN", "other")), "no step produces its output OUT"),
        (ensemble(doubling("a", "IN", "OUT"), doubling("b", "IN", "OUT")), "step b: tensor OUT is produced twice"),
        (ensemble(doubling("a", "IN", "IN")), "tensor IN is produced twice"),
        (
            ensemble(EnsembleStep(model_name="a", input_map={"Z": "IN"}, output_map={"Y": "OUT"})),
            "the model has no input Z",
        ),
        (
            ensemble(EnsembleStep(model_name="a", input_map={"X": "IN"}, output_map={"Z": "OUT"})),
            "the model has no output Z",
        ),
        (
            ensemble(EnsembleStep(model_name="sum", input_map={"A": "IN"}, output_map={"C": "OUT"})),
            "step sum: input B of the model is not mapped",
        ),
        (ensemble(doubling("a", "y", "OUT"), doubling("b", "OUT", "y")), "the steps a, b wait for each other"),
        (ensemble(inputs=(tensor("IN", datatype="INT32"),)), "must be FP32, but INT32 is produced"),
        (ensemble(inputs=(tensor("IN", dims=(2, 2)),)), r"must be \[-1, -1\], but \[-1, 2, 2\] is produced"),
        (ensemble(outputs=(tensor("OUT", datatype="FP64"),)), "output OUT: the datatype must be FP64"),
    ],
)
def test_an_ensemble_is_checked_when_it_is_loaded(spec: ModelSpec, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_ensemble(spec, MODELS)
    engine = PredictorEngine(spec)
    with pytest.raises(ConfigError):
        engine.add_version("1", [])
    check_ensemble(ensemble(), MODELS)


def test_shapes_of_models_with_and_without_batching_are_compared() -> None:
    whole = ModelSpec(name="a", inputs=(tensor("X", dims=(4, 3)),), outputs=(tensor("Y", dims=(4, 3)),))
    check_ensemble(ensemble(doubling("a", "IN", "OUT")), {"a": whole})
    fixed = ensemble(doubling("a", "IN", "OUT"), inputs=(tensor("IN", dims=(2,)),))
    with pytest.raises(ConfigError, match=r"must be \[4, 3\], but \[-1, 2\] is produced"):
        check_ensemble(fixed, {"a": whole})
