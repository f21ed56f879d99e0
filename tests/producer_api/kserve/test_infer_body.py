"""Bodies of requests for inference: JSON, binary data behind it, and raw data."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from producer_api.kserve.infer_body import header_length, parse, parse_raw
from producer_api.kserve.parameters import InferCall, OutputForm
from shared.errors import HeadraceError, InvalidRequest, NotSupported
from shared.protocol import SequenceStep, Tensor
from shared.repository.spec import ModelSpec, TensorSpec

ONE = {"name": "x", "datatype": "INT32", "shape": [1], "data": [7]}


def read(body: dict[str, Any], binary: bytes = b"") -> InferCall:
    head = json.dumps(body).encode()
    return parse(head + binary, len(head), "", strict_fields=False)[0]


def sized(name: str, size: int, **more: Any) -> dict[str, Any]:
    """Return an input of bytes that follow the JSON."""
    return {"name": name, "datatype": "UINT8", "shape": [size], "parameters": {"binary_data_size": size}, **more}


def test_json_and_binary_inputs_are_mixed() -> None:
    call = read({"id": "7", "inputs": [sized("a", 2), ONE, sized("b", 0), sized("c", 1)]}, b"\1\2\3")
    assert call.id == "7"
    assert call.work.inputs == (
        Tensor("a", "UINT8", (2,), b"\1\2"),
        Tensor("x", "INT32", (1,), struct.pack("<i", 7)),
        Tensor("b", "UINT8", (0,), b""),
        Tensor("c", "UINT8", (1,), b"\3"),
    )


@pytest.mark.parametrize(
    ("inputs", "binary", "param", "reason"),
    [
        ([sized("a", 2)], b"\1", "a", "binary_data_size of input a must be an integer between 0 and 1"),
        ([sized("a", 2), ONE], b"\1\2\3", "x", "1 bytes are left over after the last input, x"),
        ([ONE], b"\1", "x", "1 bytes are left over"),
        ([], b"\1", None, "1 bytes are left over"),
        ([sized("a", 1, data=[1])], b"\1", "a", "either data or the parameter binary_data_size"),
        ([{**ONE, "data": None}], b"", "x", "either data or the parameter binary_data_size"),
        ([sized("a", 0, parameters={"binary_data_size": -1})], b"", "a", "between 0 and 0"),
        ([sized("a", 1, parameters={"binary_data_size": True})], b"\1", "a", "must be an integer"),
        ([{**ONE, "datatype": "INT128"}], b"", "inputs[0].datatype", "datatype"),
        ([{**ONE, "shape": [-1]}], b"", "inputs[0].shape[0]", "shape"),
        ([{**ONE, "shape": [2**80]}], b"", "inputs[0].shape[0]", "shape"),
        ([{"datatype": "INT32", "shape": [1], "data": [1]}], b"", "inputs[0].name", "name"),
    ],
)
def test_wrong_inputs_are_named(inputs: list[Any], binary: bytes, param: str | None, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        read({"inputs": inputs}, binary)
    assert refusal.value.param == param


def test_request_parameters_are_read() -> None:
    given = {
        "priority": 2,
        "timeout": 5,
        "sequence_id": "s",
        "sequence_start": True,
        "sequence_end": False,
        "k": 0.5,
    }
    work = read({"inputs": [ONE], "parameters": given}).work
    assert (work.level, work.timeout_us, work.sequence) == (2, 5, SequenceStep("s", start=True))
    assert work.parameters == {"k": 0.5}
    assert read({"inputs": [ONE], "parameters": {"sequence_id": 0}}).work.sequence is None
    assert read({"inputs": [ONE], "parameters": {"sequence_id": 2**64 - 1}}).work.sequence == SequenceStep(
        2**64 - 1
    )


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"timeout": 2**63}, "timeout"),
        ({"timeout": 1.5}, "timeout"),
        ({"sequence_id": -1}, "sequence_id"),
        ({"sequence_id": 2**64}, "sequence_id"),
        ({"sequence_id": "s" * 129}, "sequence_id"),
        ({"sequence_start": 1, "sequence_id": 1}, "sequence_start"),
        ({"binary_data_output": "yes"}, "binary_data_output"),
        ({"triton_anything": 1}, "parameters"),
        ({"nested": {}}, "parameters.nested.bool"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read({"inputs": [ONE], "parameters": parameters})
    assert (refusal.value.param or "").split(".")[0] == param.split(".", maxsplit=1)[0]


def test_the_forms_of_outputs_are_read() -> None:
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False, "classification": 3}}]
    call = read({"inputs": [ONE], "outputs": outputs, "parameters": {"binary_data_output": True}})
    assert call.work.outputs == ("a", "b")
    assert call.form("a") == OutputForm(binary=True)
    assert call.form("b") == OutputForm(binary=False, classes=3)
    assert read({"inputs": [ONE], "parameters": {"binary_data_output": True}}).form("any").binary
    assert not read({"inputs": [ONE]}).form("any").binary


@pytest.mark.parametrize("name", ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"])
def test_shared_memory_is_refused_by_name(name: str) -> None:
    shared = {"name": "x", "datatype": "INT32", "shape": [1], "parameters": {name: 1}}
    for body in ({"inputs": [shared]}, {"inputs": [ONE], "outputs": [{"name": "a", "parameters": {name: 1}}]}):
        with pytest.raises(NotSupported, match=name) as refusal:
            read(body)
        assert refusal.value.status == 501


@pytest.mark.parametrize("given", ["-1", "11", "x", "", "1e1", "٣", "9" * 5000])
def test_a_wrong_length_of_the_json_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 10"):
        header_length(given, 10)


def test_the_length_of_the_json() -> None:
    assert [header_length(given, 10) for given in (None, "0", "10")] == [10, 0, 10]


def spec(datatype: str, dims: tuple[int, ...], **more: Any) -> ModelSpec:
    return ModelSpec(name="m", inputs=(TensorSpec(name="x", datatype=datatype, dims=dims),), **more)


@pytest.mark.parametrize(
    ("model", "data", "shape", "content"),
    [
        (spec("INT16", (-1,)), b"abcd", (2,), b"abcd"),
        (spec("INT16", (2, -1), max_batch_size=4), bytes(12), (1, 2, 3), bytes(12)),
        (spec("INT16", (2,)), bytes(4), (2,), bytes(4)),
        (spec("BYTES", (1,), max_batch_size=4), b"hello", (1, 1), b"\5\0\0\0hello"),
        (spec("INT16", (-1,)), b"", (0,), b""),
    ],
)
def test_raw_data_get_the_shape_of_the_input(
    model: ModelSpec, data: bytes, shape: tuple[int, ...], content: bytes
) -> None:
    call = parse_raw(data, model, "2")
    assert call.work.inputs == (Tensor("x", model.inputs[0].datatype, shape, content),)
    assert (call.work.version, call.form("any").binary) == ("2", True)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ModelSpec(name="m"), "needs a model with one input, but m has 0"),
        (spec("INT16", (-1, -1)), "at most one free size"),
        (spec("BYTES", (2,)), "needs one item"),
        (spec("BYTES", (-1,)), "needs one item"),
    ],
)
def test_raw_data_need_one_simple_input(model: ModelSpec, reason: str) -> None:
    with pytest.raises(HeadraceError, match=reason):
        parse_raw(b"ab", model, "")
