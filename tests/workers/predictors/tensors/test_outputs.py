"""The tensors of a result: choice, shape and type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.protocol import Infer
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.tensors.outputs import ModelFault, OutputWriter

ASK = Infer(inputs=())


def spec(max_batch_size: int = 0, **fields: Any) -> ModelSpec:
    output = TensorSpec(**{"name": "P", "datatype": "FP32", "dims": (-1,), **fields})
    other = TensorSpec(name="N", datatype="INT32", dims=(-1,))
    return ModelSpec(name="m", max_batch_size=max_batch_size, outputs=(output, other))


def f4(values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


def test_all_outputs_or_the_wanted_ones_are_returned() -> None:
    arrays = {"N": np.array([1], np.int32), "P": f4([0.5]), "extra": f4([1])}
    writer = OutputWriter(spec())
    assert [tensor.name for tensor in writer.write(arrays, ASK)] == ["P", "N"]
    assert [tensor.name for tensor in writer.write(arrays, Infer(inputs=(), outputs=("N",)))] == ["N"]


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"N": np.array([1], np.int32)}, "did not return its output P"),
        ({"P": np.array([0.5])}, "float64"),
        ({"P": f4([[0.5]])}, r"output P, \[1, 1\], differs"),
    ],
)
def test_outputs_unlike_the_description_are_a_fault(arrays: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelFault, match=text):
        OutputWriter(spec()).write(arrays, Infer(inputs=(), outputs=("P",)))


def test_an_output_gets_the_shape_of_the_description() -> None:
    (tensor,) = OutputWriter(spec(4, dims=(1,), reshape=())).write({"P": f4([1, 2, 3])}, ASK)
    assert tensor.shape == (3, 1)
