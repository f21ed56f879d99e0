"""Warm-up of the instances of a version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import ConfigError
from shared.repository.spec import WarmUp, WarmUpInput
from tests.support.predictors import Doubler, PredictorDriver, floats, infer, model
from workers.predictors.engine import PredictorEngine
from workers.predictors.execution.warmup import warm_up
from workers.predictors.interface import Arrays, Execution


def sample(batch_size: int = 1, count: int = 0, **given: Any) -> WarmUp:
    described = WarmUpInput(**{"datatype": "FP32", "dims": (3,), **given})
    return WarmUp(name="sample", batch_size=batch_size, count=count, inputs={"X": described})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "warmup").mkdir()
    return tmp_path


def test_each_instance_executes_each_sample() -> None:
    instances = [Doubler(), Doubler()]
    warm_up(model(warm_ups=(sample(2, count=2), sample(source="random_data"))), instances, None)
    for instance in instances:
        first, second, third = (call.inputs["X"] for call in instance.calls)
        assert first.tolist() == second.tolist() == np.zeros((2, 3)).tolist()
        assert third.shape == (1, 3)
        assert third.any()


def test_a_sample_comes_from_a_file(folder: Path) -> None:
    (folder / "warmup" / "x.bin").write_bytes(floats([1, 2, 3]).tobytes())
    doubler = Doubler()
    warm_up(model(warm_ups=(sample(2, source="input_data_file", file="x.bin"),)), [doubler], folder)
    assert doubler.calls[0].inputs["X"].tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "INT8", "UINT64", "FP16", "BF16"])
def test_random_data_has_the_type_of_the_input(datatype: Any) -> None:
    doubler = Recorder()
    warm_up(model(warm_ups=(sample(datatype=datatype, source="random_data"),)), [doubler], None)
    found = doubler.calls[0].inputs["X"]
    assert found.dtype == {"BYTES": object, "BF16": np.float32, "FP16": np.float16}.get(datatype, datatype.lower())


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (sample(9), "at most 8"),
        (sample(dims=(-1,)), "must be fixed"),
        (sample(source="input_data_file", file="none.bin"), "none.bin cannot be read"),
        (sample(source="input_data_file", file="../config.pbtxt"), "must be a file in the folder"),
        (sample(source="input_data_file", file="short.bin"), "3 items of 4 bytes"),
        (sample(source="input_data_file", file="short.bin", datatype="BYTES"), "3 items of BYTES"),
    ],
)
def test_an_unusable_sample_is_the_load_error(folder: Path, sample: WarmUp, text: str) -> None:
    (folder / "warmup" / "short.bin").write_bytes(b"\1\0\0\0")
    with pytest.raises(ConfigError, match=text):
        warm_up(model(warm_ups=(sample,)), [Doubler()], folder)


class Recorder(Doubler):
    def predict(self, call: Execution) -> Arrays:
        self.calls.append(call)
        return {}

    def stream(self, call: Execution) -> Iterator[Arrays]:
        self.calls.append(call)
        yield {}
        yield {}


class Broken(Doubler):
    def predict(self, call: Execution) -> Arrays:
        raise RuntimeError("no such operator")


def test_a_decoupled_model_is_warmed_by_a_whole_stream() -> None:
    recorder = Recorder()
    warm_up(model(warm_ups=(sample(),), decoupled=True), [recorder], None)
    assert len(recorder.calls) == 1


def test_a_version_is_ready_only_after_its_warm_up() -> None:
    instances = [Doubler(), Broken()]
    with PredictorDriver.of(PredictorEngine(model(warm_ups=(sample(),)))) as driver:
        with pytest.raises(ConfigError, match="RuntimeError: no such operator"):
            driver.engine.add_version("1", instances)
        assert driver.engine.versions == ()
        assert all(instance.closed.is_set() for instance in instances)
        driver.engine.add_version("2", [Doubler()])
        assert driver.ask(infer(floats([1]))).version == "2"
        assert driver.engine.statistics()["2"].execution_count == 1
