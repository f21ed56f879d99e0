"""Triton's generate extension for models of tensors: fields of a body as inputs, outputs as fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from producer_api.kserve.parameters import InferCall
from producer_api.kserve.served_models import ServedModel
from producer_api.kserve.tensor_data import from_json
from producer_api.kserve.tensor_generation import response, tensor_call
from producer_api.schemas.kserve import GenerateBody
from shared.errors import InvalidRequest
from shared.protocol import Infer, Result
from shared.repository.spec import ModelSpec, TensorSpec
from shared.repository.status import ModelStatus


def served(*dims: int, **more: Any) -> ServedModel:
    spec = ModelSpec(name="m", inputs=(TensorSpec(name="x", datatype="INT32", dims=dims),), **more)
    return ServedModel(ModelStatus(name="m", spec=spec), "2")


@pytest.mark.parametrize(
    ("model", "given", "shape"),
    [
        (served(1), 7, (1,)),
        (served(-1), [1, 2, 3], (3,)),
        (served(-1), 7, (1,)),
        (served(2, -1), [1, 2, 3, 4], (2, 2)),
        (served(-1, -1), [1, 2], (1, 2)),
        (served(1, max_batch_size=4), 7, (1, 1)),
        (served(-1, max_batch_size=4), [1, 2], (1, 2)),
        (served(2, max_batch_size=4), [1, 2, 3, 4], (2, 2)),
    ],
)
def test_items_fill_the_innermost_free_size(model: ServedModel, given: Any, shape: tuple[int, ...]) -> None:
    call = tensor_call(GenerateBody(x=given), model)
    assert (call.work.inputs[0].shape, call.work.version) == (shape, "2")


@pytest.mark.parametrize(
    ("model", "given"), [(served(2), [1, 2, 3]), (served(2), [1]), (served(2, -1), [1]), (served(0), [1])]
)
def test_items_that_do_not_fit_are_refused(model: ServedModel, given: Any) -> None:
    with pytest.raises(InvalidRequest, match="x must have a number of items that fits its shape") as refusal:
        tensor_call(GenerateBody(x=given), model)
    assert refusal.value.param == "x"


def test_other_fields_are_parameters() -> None:
    body = GenerateBody(x=1, speed=0.5, parameters={"loud": True, "nothing": None})
    assert tensor_call(body, served(1)).work.parameters == {"speed": 0.5, "loud": True}
    with pytest.raises(InvalidRequest, match="speed must be a boolean, number or string"):
        tensor_call(GenerateBody(x=1, speed=[1]), served(1))


@pytest.mark.parametrize(
    ("data", "shown"), [([1.5], "1.5"), ([float("nan")], "NaN"), ([1.5, 2], "[1.5, 2.0]"), ([], "[]")]
)
def test_a_single_item_is_written_without_a_list(data: list[float], shown: str) -> None:
    result = Result(tensors=(from_json("y", "FP32", [len(data)], data),), version="2", parameters={"cost": 3})
    written = response(InferCall("7", Infer(inputs=())), served(1), result)
    head = {"id": "7", "model_name": "m", "model_version": "2", "cost": 3}
    assert str(json.loads(written)) == str({**head, "y": json.loads(shown)})
