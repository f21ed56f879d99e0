"""Sequences on an engine: controls, implicit state and versions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.errors import EngineFailed, InvalidRequest
from shared.protocol import SequenceStep
from shared.repository.spec import SequenceControl, SequenceState
from tests.support.predictors import PredictorDriver, engine_request, floats, infer, model
from tests.support.sequence_models import Adder, sequence_model, step
from tests.support.waiting import LIMIT_S
from workers.predictors.engine import PredictorEngine
from workers.predictors.execution.sequence_tensors import SequenceTensors
from workers.predictors.interface import Arrays, Execution
from workers.predictors.scheduling.job import Job, Row
from workers.predictors.tensors.inputs import InputReader


def serving(*adders: Adder, **fields: Any) -> Any:
    engine = PredictorEngine(sequence_model(**fields))
    engine.add_version("1", adders)
    return PredictorDriver.of(engine)


def test_state_is_carried_from_request_to_request() -> None:
    with serving(Adder()) as driver:
        assert driver.ask(step(7, 1, start=True)).array().tolist() == [[1]]
        assert driver.ask(step(8, 10, start=True)).array().tolist() == [[10]]
        assert driver.ask(step(7, 2)).array().tolist() == [[3]]
        assert driver.ask(step(8, 20, end=True)).array().tolist() == [[30]]
        assert driver.ask(step(7, 3, end=True)).array().tolist() == [[6]]
        assert driver.ask(step(7, 5, start=True)).array().tolist() == [[5]]
        assert driver.ask(step(7, 1, start=True)).array().tolist() == [[1]]  # again, without an end
        assert isinstance(driver.ask(step(8, 1)).error, InvalidRequest)


def test_a_model_without_batching_keeps_state_too() -> None:
    with serving(Adder(), max_batch_size=0) as driver:
        work = [infer(np.float32([value]), sequence=SequenceStep(5, start=value == 1)) for value in (1, 2)]
        assert [driver.ask(each).array().tolist() for each in work] == [[1], [3]]


def test_the_model_sees_slots_and_controls() -> None:
    adder = Adder(gate=True)
    with serving(adder) as driver:
        driver.start(step(1, 1, start=True))
        adder.await_begin()
        runs = [driver.start(step(number, number, start=True, end=number == 3)) for number in (2, 3)]
        driver.await_stats(waiting=2)
        adder.let_go(2)
        for run in runs:
            driver.wait(run)
    assert adder.controls(0) == {"START": [1], "READY": [1], "END": [0], "ID": [1]}
    assert adder.controls(1) == {"START": [0, 1, 1], "READY": [0, 1, 1], "END": [0, 0, 1], "ID": [0, 2, 3]}
    assert adder.calls[1].inputs["START"].shape == (3, 1)


class Failing(Adder):
    def predict(self, call: Execution) -> Arrays:
        outputs = super().predict(call)
        return {"Y": floats()} if (call.inputs["X"] == 13).any() else outputs


def test_a_failed_step_leaves_state_and_neighbours_alone() -> None:
    adder = Failing(gate=True)
    with serving(adder) as driver:
        begun = [driver.start(step(1, 1, start=True))]
        adder.await_begin()
        begun += [driver.start(step(2, 2, start=True)), driver.start(step(1, 13))]
        driver.await_stats(waiting=2)
        adder.let_go(9)
        for run in begun:
            driver.wait(run)
        assert isinstance(driver.wait(begun[2]).error, EngineFailed)
        assert driver.ask(step(2, 3)).array().tolist() == [[5]]
        assert driver.ask(step(1, 4)).array().tolist() == [[5]]


def test_only_wanted_outputs_are_returned_and_state_is_kept() -> None:
    adder = Adder()
    with serving(adder) as driver:
        first = infer(floats([1]), outputs=("Y",), sequence=SequenceStep(1, start=True))
        assert [tensor.name for tensor in driver.ask(first).tensors] == ["Y"]
        assert driver.ask(step(1, 2)).array().tolist() == [[3]]
    assert [call.outputs for call in adder.calls] == [("Y", "NEW_SUM"), ()]


def test_a_sequence_ends_on_the_version_that_it_began_on() -> None:
    old, new = Adder(), Adder()
    with serving(old) as driver:
        assert driver.ask(step(1, 1, start=True)).version == "1"
        driver.engine.add_version("2", [new])
        removed = driver.engine.remove_version("1")
        assert driver.ask(step(2, 1, start=True)).version == "2"
        answer = driver.ask(step(1, 2))
        assert (answer.version, answer.array().tolist()) == ("1", [[3]])
        assert not removed.done()
        assert driver.ask(step(1, 3, end=True)).version == "1"
        removed.result(LIMIT_S)
        assert isinstance(driver.ask(step(1, 4)).error, InvalidRequest)


def test_closing_does_not_wait_for_sequences() -> None:
    adder = Adder()
    with serving(adder, max_sequence_idle_microseconds=3_600_000_000) as driver:
        driver.ask(step(1, 1, start=True))
    assert adder.closed.is_set()


@pytest.mark.parametrize(
    ("datatype", "sequence_id", "expected"),
    [
        ("UINT64", 2**64 - 1, 2**64 - 1),
        ("INT64", 2**64 - 1, -1),
        ("UINT32", 2**32 + 5, 5),
        ("INT32", 2**32 - 1, -1),
        ("BYTES", "name", b"name"),
        ("BYTES", 12, b"12"),
    ],
)
def test_the_model_gets_the_id_of_the_sequence(datatype: Any, sequence_id: int | str, expected: object) -> None:
    control = SequenceControl(name="ID", kind="CONTROL_SEQUENCE_CORRID", datatype=datatype)
    tensors = SequenceTensors(sequence_model(control_input=(control,), state=()))
    assert tensors.inputs(_row(sequence_id))["ID"].tolist() == [[expected]]


def test_a_text_is_no_id_for_a_model_that_takes_numbers() -> None:
    with pytest.raises(InvalidRequest, match="must be a number"):
        SequenceTensors(sequence_model()).inputs(_row("name"))


def test_state_begins_with_zeros_of_its_dims() -> None:
    states = (
        SequenceState(input_name="A", output_name="B", datatype="INT64", dims=(-1, 3)),
        SequenceState(input_name="C", output_name="D", datatype="BYTES", dims=(1,)),
    )
    found = SequenceTensors(sequence_model(control_input=(), state=states)).inputs(_row(1))
    assert (found["A"].shape, found["A"].dtype, found["A"].any()) == ((1, 1, 3), np.int64, np.False_)
    assert found["C"].tolist() == [[b""]]


def _row(sequence_id: int | str) -> Row:
    work = step(sequence_id, 1)
    return Row(Job(engine_request(work), work, InputReader(model()).check(work), print, 0))
