"""Inference over HTTP, with tritonclient's forms and with bodies made by hand."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.http.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.support.tensor_api import TensorApi

ARRAYS = {
    "BOOL": np.array([True, False, True]),
    **{each: np.array([1, 0, 3], each.lower()) for each in ("UINT8", "UINT16", "UINT32", "UINT64")},
    **{each: np.array([1, -2, 3], each.lower()) for each in ("INT8", "INT16", "INT32", "INT64")},
    "FP16": np.array([0.5, -2, np.inf], np.float16),
    "BF16": np.array([0.5, -2, 3], ml_dtypes.bfloat16),
    "FP32": np.array([0.1, -2, np.inf], np.float32),
    "FP64": np.array([0.1, -2, 1e300]),
    "BYTES": np.array([b"a", b"", "ä".encode()], object),
}
ADD_SUB = {"INPUT0": [1, 2], "INPUT1": [10, 20]}


pytestmark = pytest.mark.asyncio(loop_scope="module")


def given(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    return made.set_data_from_numpy(array, binary_data=binary)


def add_sub(*, binary: bool = True) -> list[InferInput]:
    return [given(name, np.array(data, np.int32), "INT32", binary=binary) for name, data in ADD_SUB.items()]


def body(**more: Any) -> dict[str, Any]:
    inputs = [{"name": name, "shape": [2], "datatype": "INT32", "data": data} for name, data in ADD_SUB.items()]
    return {"inputs": inputs, **more}


async def refused(tensors: TensorApi, path: str, **request: Any) -> tuple[int, str]:
    found = await tensors.http.post(path, **request)
    assert list(found.json()) == ["error"], found.text
    return found.status_code, found.json()["error"]


@pytest.mark.parametrize("datatype", ARRAYS)
async def test_every_type_survives(triton: InferenceServerClient, datatype: str) -> None:
    array, name = ARRAYS[datatype], f"identity_{datatype.lower()}"
    forms = [True] if datatype in ("FP16", "BF16") else [True, False]
    for binary in forms:
        for output in forms:
            wanted = InferRequestedOutput("OUT", binary_data=output)
            result = await triton.infer(name, [given("IN", array, datatype, binary=binary)], outputs=[wanted])
            found = result.as_numpy("OUT")
            if datatype == "BYTES" and not output:
                found = np.array([text.encode() for text in found], object)
            assert np.array_equal(found, array), (binary, output)


async def test_blocking_clients_work(tensors: TensorApi) -> None:
    def infer() -> list[list[int]]:
        with triton_http.InferenceServerClient(tensors.host, concurrency=2) as client:
            assert client.is_server_ready()
            begun = [client.async_infer("add_sub", add_sub()) for _ in range(3)]
            found = [each.get_result() for each in begun]
            return [each.as_numpy("OUTPUT0").tolist() for each in [*found, client.infer("add_sub", add_sub())]]

    assert await asyncio.to_thread(infer) == [[11, 22]] * 4


async def test_versions_ids_and_parameters(tensors: TensorApi, triton: InferenceServerClient) -> None:
    result = await triton.infer(
        "add_sub",
        add_sub(binary=False),
        model_version="1",
        request_id="mine",
        outputs=[InferRequestedOutput("OUTPUT1", binary_data=False)],
        priority=2,
        timeout=7,
        sequence_id="s",
        sequence_start=True,
        parameters={"level": 1, "name": "x", "share": 0.5, "flag": True},
    )
    assert result.get_response() == {
        "model_name": "add_sub",
        "model_version": "1",
        "outputs": [{"name": "OUTPUT1", "datatype": "INT32", "shape": [2], "data": [-9, -18]}],
        "id": "mine",
    }
    work = tensors.worker.models["add_sub"].requests[-1]
    assert (work.version, work.level, work.timeout_us, work.outputs) == ("1", 2, 7, ("OUTPUT1",))
    assert work.sequence is not None
    assert (work.sequence.id, work.sequence.start, work.sequence.end) == ("s", True, False)
    assert work.parameters == {"level": 1, "name": "x", "share": 0.5, "flag": True}
    assert (await triton.infer("add_sub", add_sub())).get_response()["model_version"] == "3"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compression_in_both_directions(triton: InferenceServerClient, coding: str) -> None:
    result = await triton.infer(
        "add_sub", add_sub(), request_compression_algorithm=coding, response_compression_algorithm=coding
    )
    assert result.as_numpy("OUTPUT0").tolist() == [11, 22]


async def test_responses_are_compressed_only_if_asked(tensors: TensorApi) -> None:
    for accepted, coding in (("gzip", "gzip"), ("gzip, deflate", None)):
        path, headers = "/v2/models/add_sub/infer", {"accept-encoding": accepted}
        found = await tensors.http.post(path, json=body(), headers=headers)
        assert found.headers.get("content-encoding") == coding
        assert found.json()["outputs"][0]["data"] == [11, 22]


async def test_classification(triton: InferenceServerClient) -> None:
    values = np.array([[0.25, 0.75], [3, 1]], np.float32)
    for binary in (True, False):
        wanted = InferRequestedOutput("OUT", binary_data=binary, class_count=1)
        result = await triton.infer("classes", [given("IN", values, "FP32")], outputs=[wanted])
        found = result.as_numpy("OUT")
        texts = [each.decode() if binary else each for each in found.flatten()]
        assert (found.shape, texts) == ((2, 1), ["0.750000:1:dog", "3.000000:0:cat"])


async def test_raw_data_need_no_json(tensors: TensorApi) -> None:
    headers = {"inference-header-content-length": "0"}
    path = "/v2/models/identity_int16/infer"
    found = await tensors.http.post(path, content=struct.pack("<3h", 1, -2, 3), headers=headers)
    length = int(found.headers["inference-header-content-length"])
    assert found.headers["content-type"] == "application/octet-stream"
    assert struct.unpack("<3h", found.content[length:]) == (1, -2, 3)
    status, text = await refused(tensors, "/v2/models/add_sub/infer", content=b"1234", headers=headers)
    assert (status, "needs a model with one input" in text) == (400, True)
    status, text = await refused(tensors, path, content=b"123", headers=headers)
    assert (status, "must have 2 bytes for its shape [1] of INT16, got 3" in text) == (400, True)


async def test_sequences_reach_the_model_in_order(triton: InferenceServerClient) -> None:
    sums = []
    for i in range(3):
        step = [given("IN", np.array([i + 1], np.int32), "INT32")]
        result = await triton.infer("sums", step, sequence_id=9, sequence_start=i == 0, sequence_end=i == 2)
        sums.append(int(result.as_numpy("OUT")[0]))
    assert sums == [1, 3, 6]
    with pytest.raises(InferenceServerException, match="needs a sequence_id"):
        await triton.infer("sums", [given("IN", np.array([1], np.int32), "INT32")])


@pytest.mark.parametrize(
    ("name", "changes", "status", "reason"),
    [
        ("add_sub", {"inputs": []}, 400, "input INPUT0 of model add_sub is required"),
        ("add_sub", {"inputs": body()["inputs"][:1]}, 400, "input INPUT1 of model add_sub is required"),
        ("add_sub", {"inputs": body()["inputs"] * 2}, 400, "inputs must have different names"),
        ("add_sub", {"outputs": [{"name": "OUTPUT9"}]}, 400, "unexpected output 'OUTPUT9'"),
        (
            "identity_fp16",
            {"inputs": [{"name": "IN", "shape": [1], "datatype": "FP16", "data": [1]}]},
            400,
            "binary",
        ),
        ("nothing", {}, 404, "the model 'nothing' does not exist"),
        ("repeat", {}, 501, "repeat is decoupled: use generate_stream or ModelStreamInfer"),
        ("failing", {"inputs": [{"name": "IN", "shape": [1], "datatype": "INT32", "data": [1]}]}, 500, "ran out"),
    ],
)
async def test_refusals_have_triton_s_form(
    tensors: TensorApi, name: str, changes: dict[str, Any], status: int, reason: str
) -> None:
    found, text = await refused(tensors, f"/v2/models/{name}/infer", json=body(**changes))
    assert (found, reason in text) == (status, True), text


async def test_half_precision_in_json_is_refused_before_it_is_computed(tensors: TensorApi) -> None:
    before = len(tensors.worker.models["identity_bf16"].requests)
    head = {"name": "IN", "shape": [1], "datatype": "BF16", "parameters": {"binary_data_size": 2}}
    data = json.dumps({"inputs": [head]}).encode()
    headers = {"inference-header-content-length": str(len(data))}
    path = "/v2/models/identity_bf16/infer"
    status, text = await refused(tensors, path, content=data + b"\0\0", headers=headers)
    assert (status, text) == (400, "output OUT of BF16 must be requested as binary data")
    assert len(tensors.worker.models["identity_bf16"].requests) == before


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"content": b"{"}, 400, "JSON"),
        ({"content": b""}, 400, "JSON"),
        ({"content": b"[1]"}, 400, ""),
        ({"content": b"x", "headers": {"content-encoding": "gzip"}}, 400, "not valid gzip"),
        ({"content": b"x", "headers": {"content-encoding": "br"}}, 501, "content-encoding must be gzip or deflate"),
        ({"content": b"{}", "headers": {"inference-header-content-length": "3"}}, 400, "between 0 and 2"),
        (
            {"content": gzip.compress(bytes(5 * 2**20)), "headers": {"content-encoding": "gzip"}},
            413,
            "decompressed",
        ),
    ],
)
async def test_damaged_bodies_are_refused(
    tensors: TensorApi, request_: dict[str, Any], status: int, reason: str
) -> None:
    found, text = await refused(tensors, "/v2/models/add_sub/infer", **request_)
    assert (found, reason in text) == (status, True), text


async def test_a_key_runs_an_inference_once(tensors: TensorApi) -> None:
    path, headers = "/v2/models/add_sub/infer", {"idempotency-key": "k"}
    before = len(tensors.worker.models["add_sub"].requests)
    first, second = [await tensors.http.post(path, json=body(), headers=headers) for _ in range(2)]
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len(tensors.worker.models["add_sub"].requests) == before + 1
    status, _ = await refused(tensors, path, json=body(id="other"), headers=headers)
    assert status == 422


async def test_unknown_fields_are_reported(tensors: TensorApi) -> None:
    found = await tensors.http.post("/v2/models/add_sub/infer", json=body(extra=1))
    assert found.headers["x-headrace-ignored-fields"] == "extra"
    assert found.headers["x-request-id"]


async def test_generate_with_a_model_of_tensors(tensors: TensorApi) -> None:
    path, text = "/v2/models/greeter/generate", {"text_input": "mill", "id": "7"}
    found = await tensors.http.post(path, json={**text, "parameters": {"speed": 2}, "loud": True})
    head = {"id": "7", "model_name": "greeter", "model_version": "1"}
    assert found.json() == {**head, "text_output": "hello mill"}
    assert tensors.worker.models["greeter"].requests[-1].parameters == {"speed": 2, "loud": True}
    status, reason = await refused(tensors, "/v2/models/repeat/generate", json={"IN": [1, 2]})
    assert (status, "sent 2 responses" in reason) == (400, True)
    status, reason = await refused(tensors, path, json={"text_input": ["a", "b"]})
    assert (status, "text_input must have a number of items that fits its shape [1]" in reason) == (400, True)


async def test_generate_stream_with_a_decoupled_model(tensors: TensorApi) -> None:
    found = await tensors.http.post("/v2/models/repeat/versions/1/generate_stream", json={"IN": [3, 4]})
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = [json.loads(line.removeprefix("data: ")) for line in found.text.splitlines() if line]
    assert [each["OUT"] for each in events] == [3, 4]
    status, reason = await refused(tensors, "/v2/models/failing/generate_stream", json={"IN": [1]})
    assert (status, reason) == (500, "the model ran out of numbers")


async def test_large_tensors_survive(triton: InferenceServerClient) -> None:
    array = np.arange(200_000, dtype=np.int32)
    result = await triton.infer("identity_int32", [given("IN", array, "INT32")])
    assert np.array_equal(result.as_numpy("OUT"), array)
