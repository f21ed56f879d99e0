"""The tensors of a result: choice, shape, type and classification."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import ConfigError
from shared.protocol import Infer
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.tensors.arrays import to_array
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
        ({"P": f4([[0.5]])}, r"shape \[1, 1\]"),
    ],
)
def test_outputs_unlike_the_description_are_a_fault(arrays: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelFault, match=text):
        OutputWriter(spec()).write(arrays, Infer(inputs=(), outputs=("P",)))


def test_an_output_gets_the_shape_of_the_description() -> None:
    (tensor,) = OutputWriter(spec(4, dims=(1,), reshape=())).write({"P": f4([1, 2, 3])}, ASK)
    assert tensor.shape == (3, 1)


@pytest.mark.parametrize(
    ("values", "datatype", "expected"),
    [
        ([1.0, 3.25, 0.5, 3.25], "FP32", [b"3.250000:1:b", b"3.250000:3", b"1.000000:0:a"]),
        ([10, -5, 20], "INT32", [b"20:2:c", b"10:0:a", b"-5:1:b"]),
    ],
)
def test_the_best_classes_are_named(
    tmp_path: Path, values: list[float], datatype: str, expected: list[bytes]
) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    described = spec(datatype=datatype, label_filename="labels.txt")
    array = np.array(values, "f4" if datatype == "FP32" else "i4")
    work = Infer(inputs=(), classifications={"P": 3})
    (tensor,) = OutputWriter(described, tmp_path).write({"P": array}, work)
    assert (tensor.datatype, tensor.shape) == ("BYTES", (3,))
    assert to_array(tensor).tolist() == expected


def test_each_row_of_a_batch_has_its_classes() -> None:
    work = Infer(inputs=(), classifications={"P": 9})  # more than there are
    (tensor,) = OutputWriter(spec(4)).write({"P": f4([[1, 2], [4, 3]])}, work)
    assert tensor.shape == (2, 2)
    assert to_array(tensor).tolist() == [[b"2.000000:1", b"1.000000:0"], [b"4.000000:0", b"3.000000:1"]]


@pytest.mark.parametrize("name", ["missing.txt", "../secret.txt", "/etc/passwd", "binary.txt"])
def test_unusable_labels_are_a_load_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("x")
    (folder / "binary.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=re.escape(name)):
        OutputWriter(spec(label_filename=name), folder)
