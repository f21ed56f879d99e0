"""The check of a request's inputs against the description of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.errors import InvalidRequest
from shared.protocol import Infer
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.tensors.arrays import to_tensor
from workers.predictors.tensors.inputs import InputReader

SPEC = ModelSpec(
    name="m",
    max_batch_size=4,
    inputs=(
        TensorSpec(name="A", datatype="FP32", dims=(2, -1)),
        TensorSpec(name="B", datatype="INT64", dims=(1,), optional=True, reshape=()),
    ),
    outputs=(TensorSpec(name="Y", datatype="FP32", dims=(1,)), TensorSpec(name="T", datatype="BYTES", dims=(1,))),
)


def infer(
    a: tuple[int, ...] | None = (1, 2, 3), b: tuple[int, ...] | None = None, datatype: Any = "FP32", **fields: Any
) -> Infer:
    tensors = []
    if a is not None:
        tensors.append(to_tensor("A", datatype, np.zeros(a, "f4" if datatype == "FP32" else "f8")))
    if b is not None:
        tensors.append(to_tensor("B", "INT64", np.zeros(b, "i8")))
    return Infer(inputs=tuple(tensors), **fields)


@pytest.mark.parametrize(
    ("work", "param"),
    [
        (infer(a=None, b=(1, 1)), "A"),
        (Infer(inputs=(to_tensor("C", "BOOL", np.zeros(1, bool)),)), "C"),
        (infer(datatype="FP64"), "A"),
        (infer((1, 3, 3)), "A"),
        (infer(()), "A"),
        (infer((5, 2, 3)), "A"),
        (infer((2, 2, 3), (3, 1)), "B"),
        (infer(outputs=("Z",)), "Z"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(work: Infer, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        InputReader(SPEC).check(work)
    assert refused.value.param == param


def test_optional_inputs_may_be_missing() -> None:
    reader = InputReader(SPEC)
    assert reader.check(infer((3, 2, 5))).batch_size == 3
    assert set(reader.read(infer())) == {"A"}


def test_an_input_gets_the_shape_that_the_model_takes() -> None:
    assert InputReader(SPEC).read(infer((3, 2, 5), (3, 1)))["B"].shape == (3,)
    spec = ModelSpec(
        name="m", inputs=(TensorSpec(name="A", datatype="FP32", dims=(2, -1, 3, -1), reshape=(-1, 6, -1, 1)),)
    )
    assert InputReader(spec).read(infer((2, 4, 3, 5)))["A"].shape == (4, 6, 5, 1)


def test_equal_shapes_inputs_and_parameters_may_be_joined() -> None:
    reader = InputReader(SPEC)
    first = reader.check(infer((1, 2, 3))).joins
    assert reader.check(infer((2, 2, 3))).joins == first
    assert reader.check(infer((1, 2, 4))).joins != first
    assert reader.check(infer((1, 2, 3), (1, 1))).joins != first
    assert reader.check(infer((1, 2, 3), parameters={"mode": "fast"})).joins != first


def test_ragged_inputs_may_be_joined_and_are_flat() -> None:
    spec = ModelSpec(
        name="m",
        max_batch_size=4,
        inputs=(TensorSpec(name="A", datatype="FP32", dims=(-1, -1), allow_ragged_batch=True),),
    )
    reader = InputReader(spec)
    assert reader.check(infer((1, 2, 3))).joins == reader.check(infer((1, 4, 5))).joins
    assert reader.read(infer((1, 2, 3)))["A"].shape == (6,)


def test_without_batching_the_dims_are_the_whole_shape() -> None:
    spec = ModelSpec(name="m", inputs=(TensorSpec(name="A", datatype="FP32", dims=(2, -1)),))
    assert InputReader(spec).check(infer((2, 9))).batch_size == 1
    with pytest.raises(InvalidRequest, match=r"\[2, -1\]"):
        InputReader(spec).check(infer((1, 2, 9)))
