"""Models written for Triton's python backend, in a process of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from shared.errors import ConfigError, EngineFailed, InvalidRequest
from shared.repository.spec import DynamicBatching, ModelSpec, TensorSpec
from tests.support.python_models import TRITON, place
from tests.support.redis_servers import until
from workers.predictors.interface import Execution, Predictor
from workers.predictors.select import module_for

SPEC = ModelSpec(
    name="double",
    backend="python",
    inputs=(TensorSpec(name="x", datatype="FP32", dims=(-1,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(-1,)),),
    max_batch_size=8,
)
HELPER = "def double(x):\n    return 2 * x\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(TRITON, tmp_path_factory.mktemp("double"), helper=HELPER)


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Iterator[Predictor]:
    opened = module_for(SPEC).load(SPEC, folder, threads=1)
    yield opened
    opened.close()


def numbers(*items: float) -> Execution:
    return Execution(inputs={"x": np.array([items], "f4")})


def test_response_is_computed(predictor: Predictor) -> None:
    assert predictor.predict(numbers(1, 2.5))["y"].tolist() == [[2, 5]]


def test_error_of_a_response_has_its_code(predictor: Predictor) -> None:
    with pytest.raises(InvalidRequest, match=r"^x is empty$"):
        predictor.predict(numbers())


def test_raised_error_reaches_the_caller(predictor: Predictor) -> None:
    with pytest.raises(EngineFailed, match=r"^x is negative$"):
        predictor.predict(numbers(-1))


def test_decoupled_model_sends_from_its_threads(folder: Path) -> None:
    spec = msgspec.structs.replace(SPEC, decoupled=True)
    predictor = module_for(spec).load(spec, folder, threads=1)
    assert [each["y"].tolist() for each in predictor.stream(numbers(3))] == [[[0]], [[1]], [[2]]]
    assert list(predictor.stream(numbers(0))) == []
    endless = predictor.stream(numbers(1e6))
    assert next(endless)["y"].tolist() == [[0]]
    endless.close()  # type: ignore[attr-defined]
    until(lambda: next(predictor.stream(numbers(-1)))["y"].tolist() == [[1]])  # the model saw it
    assert len(list(predictor.stream(numbers(100)))) == 100
    predictor.close()


def test_model_completes_its_description(folder: Path) -> None:
    spec = ModelSpec(name="double", backend="python")
    completed = module_for(spec).complete(spec, folder)
    assert completed == msgspec.structs.replace(SPEC, dynamic_batching=DynamicBatching())


def test_tensors_must_be_declared(tmp_path: Path) -> None:
    spec = ModelSpec(name="bare", backend="python")
    with pytest.raises(ConfigError, match="model bare must declare its inputs and outputs"):
        module_for(spec).complete(spec, place("class Model: ...\n", tmp_path))
