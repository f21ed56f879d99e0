"""The module `triton_python_backend_utils`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.predictors.triton_python import pb_utils


def test_tensors_are_found_by_name() -> None:
    request = pb_utils.InferenceRequest(inputs=[pb_utils.Tensor("x", np.zeros(2, "f4"))])
    found = pb_utils.get_input_tensor_by_name(request, "x")
    assert found is not None
    assert (found.name(), found.shape(), found.is_cpu()) == ("x", (2,), True)
    assert pb_utils.get_input_tensor_by_name(request, "y") is None


def test_types_have_tritons_numbers() -> None:
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    assert [pb_utils.numpy_to_triton_type(each) for each in (bool, "u1", "f4", object, "S3")] == [1, 2, 11, 13, 13]
    assert [pb_utils.triton_to_numpy_type(each) for each in (1, 11, 13)] == [bool, np.float32, np.object_]
    assert pb_utils.numpy_to_triton_type("c8") is None


def test_tensors_exchange_memory_with_torch() -> None:
    array = np.arange(3, dtype="f4")
    shared = torch.from_dlpack(pb_utils.Tensor("x", array))
    shared[0] = 7
    assert array.tolist() == [7, 1, 2]
    assert pb_utils.Tensor.from_dlpack("y", shared).as_numpy().tolist() == [7, 1, 2]


def test_other_models_cannot_be_called() -> None:
    with pytest.raises(pb_utils.TritonModelException, match="use an ensemble"):
        pb_utils.InferenceRequest(model_name="other").exec()


def test_texts_must_be_objects() -> None:
    with pytest.raises(pb_utils.TritonModelException, match="texts of the type"):
        pb_utils.Tensor("x", np.array(["a"]))
