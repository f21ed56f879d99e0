"""KServe's protocol over gRPC, with tritonclient in the same process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import InferRequestedOutput, service_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from producer_api.rpc.kserve import kserve_pb2 as pb
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from tests.support.metered import changed
from tests.support.tensor_api import TensorApi, in_memory, over_grpc
from tests.support.tensor_inputs import add_sub, given
from tests.support.tensor_worker import obeying
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")
ARRAYS = {
    "BOOL": np.array([True, False]),
    **{each: np.array([1, 3], each.lower()) for each in ("UINT8", "UINT16", "UINT32", "UINT64")},
    **{each: np.array([1, -2], each.lower()) for each in ("INT8", "INT16", "INT32", "INT64")},
    "FP16": np.array([0.5, np.inf], np.float16),
    "BF16": np.array([0.5, -2], ml_dtypes.bfloat16),
    "FP32": np.array([0.1, np.nan], np.float32),
    "FP64": np.array([0.1, 1e300]),
    "BYTES": np.array([b"a\xff", b""], object),
}
INFER = "/inference.GRPCInferenceService/ModelInfer"


async def refusal(tensors: TensorApi, message: service_pb2.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """Return the status that a message made by hand gets."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(tensors, message)
    return caught.value.code(), caught.value.details() or ""


async def infer(tensors: TensorApi, message: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    async with grpc.aio.insecure_channel(tensors.host) as channel:
        call = channel.unary_unary(
            INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return await call(message, timeout=LIMIT_S)


def message(name: str = "add_sub", **fields: Any) -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest(model_name=name, **fields)


def tensor(name: str = "IN", datatype: str = "INT32", shape: Sequence[int] = (1,), **contents: Any) -> Any:
    inner = service_pb2.InferTensorContents(**contents) if contents else None
    return service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, contents=inner)


async def test_the_definitions_are_tritons() -> None:
    """Both are loaded here, in one process."""
    theirs, ours = service_pb2.DESCRIPTOR, pb.DESCRIPTOR
    for name, message_ in theirs.message_types_by_name.items():
        _compare(message_, ours.message_types_by_name[name])
    [service], [own] = theirs.services_by_name.values(), ours.services_by_name.values()
    streams = [(each.name, each.client_streaming, each.server_streaming) for each in service.methods]
    assert streams == [(each.name, each.client_streaming, each.server_streaming) for each in own.methods]


def _compare(theirs: Any, ours: Any) -> None:
    def shape(descriptor: Any) -> list[tuple[Any, ...]]:
        return [(each.name, each.number, each.type, each.is_repeated) for each in descriptor.fields]

    assert shape(theirs) == shape(ours)
    for name, inner in theirs.nested_types_by_name.items():
        _compare(inner, ours.nested_types_by_name[name])


async def test_the_server_and_its_models(triton: InferenceServerClient) -> None:
    assert await triton.is_server_live()
    assert await triton.is_server_ready()
    assert (await triton.get_server_metadata()).name == "headrace"
    assert await triton.is_model_ready("add_sub", "3")
    assert not await triton.is_model_ready("add_sub", "2")
    assert not await triton.is_model_ready("nothing")
    found = await triton.get_model_metadata("batched", as_json=True)
    assert found["inputs"] == [{"name": "IN", "datatype": "FP32", "shape": ["-1", "2"]}]
    config = (await triton.get_model_config("batched")).config
    assert (config.name, config.max_batch_size, config.input[0].dims) == ("batched", 4, [2])
    index = await triton.get_model_repository_index()
    assert ("add_sub", "3", "READY") in [(each.name, each.version, each.state) for each in index.models]
    [first, _] = (await triton.get_inference_statistics("add_sub")).model_stats
    assert (first.version, first.inference_stats.success.ns) == ("1", 3000)
    assert (await triton.get_log_settings()).settings["log_info"].bool_param
    assert (await triton.get_trace_settings("add_sub")).settings["trace_level"].value == ["OFF"]


async def test_unknown_models_are_not_found(triton: InferenceServerClient) -> None:
    for call in (
        lambda: triton.get_model_metadata("nothing"),
        lambda: triton.get_model_config("add_sub", "7"),
        lambda: triton.get_inference_statistics("nothing"),
        lambda: triton.infer("nothing", add_sub()),
        lambda: triton.infer("add_sub", add_sub(), model_version="7"),
    ):
        with pytest.raises(InferenceServerException, match="does not exist") as refused:
            await call()
        assert refused.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("datatype", ARRAYS)
async def test_every_type_survives(triton: InferenceServerClient, datatype: str) -> None:
    array = ARRAYS[datatype]
    result = await triton.infer(f"identity_{datatype.lower()}", [given("IN", array, datatype)])
    assert result.as_numpy("OUT").tobytes() == array.tobytes() or datatype == "BYTES"
    assert [*result.as_numpy("OUT")] == [*array] or datatype == "FP32"


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("BOOL", {"bool_contents": [True]}),
        ("INT8", {"int_contents": [-128]}),
        ("INT16", {"int_contents": [-(2**15)]}),
        ("INT32", {"int_contents": [7]}),
        ("INT64", {"int64_contents": [-(2**63)]}),
        ("UINT8", {"uint_contents": [255]}),
        ("UINT16", {"uint_contents": [2**16 - 1]}),
        ("UINT32", {"uint_contents": [2**32 - 1]}),
        ("UINT64", {"uint64_contents": [2**64 - 1]}),
        ("FP32", {"fp32_contents": [0.5]}),
        ("FP64", {"fp64_contents": [0.1]}),
        ("BYTES", {"bytes_contents": [b"\xff\0"]}),
    ],
)
async def test_contents_are_taken_too(tensors: TensorApi, datatype: str, contents: dict[str, Any]) -> None:
    name = f"identity_{datatype.lower()}"
    found = await infer(tensors, message(name, inputs=[tensor(datatype=datatype, **contents)]))
    [value] = triton_grpc.InferResult(found).as_numpy("OUT")
    assert [value] == next(iter(contents.values()))


async def test_versions_ids_outputs_and_compression(tensors: TensorApi, triton: InferenceServerClient) -> None:
    for coding in (None, "gzip", "deflate"):
        result = await triton.infer(
            "add_sub",
            add_sub(),
            model_version="1",
            request_id="mine",
            outputs=[InferRequestedOutput("OUTPUT1")],
            priority=2,
            timeout=7,
            sequence_id=2**40,
            compression_algorithm=coding,
            parameters={"level": 1, "name": "x", "share": 0.5, "flag": True},
        )
        response = result.get_response()
        assert (response.id, response.model_version, len(response.outputs)) == ("mine", "1", 1)
        assert result.as_numpy("OUTPUT1").tolist() == [-9, -18]
    work = tensors.worker.models["add_sub"].requests[-1]
    assert (work.level, work.timeout_us, work.sequence and work.sequence.id) == (2, 7, 2**40)
    assert work.parameters == {"level": 1, "name": "x", "share": 0.5, "flag": True}


async def test_classification(triton: InferenceServerClient) -> None:
    values = np.array([[0.25, 0.75]], np.float32)
    wanted = InferRequestedOutput("OUT", class_count=1)
    result = await triton.infer("classes", [given("IN", values, "FP32")], outputs=[wanted])
    assert result.as_numpy("OUT").tolist() == [[b"0.750000:1:dog"]]


async def test_wrong_messages_are_refused(tensors: TensorApi) -> None:
    no = grpc.StatusCode.INVALID_ARGUMENT
    parameter, shared = service_pb2.InferParameter, tensor(int_contents=[1])
    shared.parameters["shared_memory_region"].string_param = "x"
    for wrong, code, reason in (
        (message(inputs=[tensor("INPUT0", int_contents=[1])]), no, "input INPUT1 of model add_sub is required"),
        (message("identity_int32", inputs=[tensor()]), no, "input IN must have either contents or an entry"),
        (
            message("identity_int32", inputs=[tensor(int_contents=[1])], raw_input_contents=[bytes(4)]),
            no,
            "either contents or an entry",
        ),
        (
            message("identity_int32", inputs=[tensor()], raw_input_contents=[bytes(4), b""]),
            no,
            "an entry for each of 1 inputs, got 2",
        ),
        (message("identity_int32", inputs=[tensor()], raw_input_contents=[bytes(5)]), no, "IN must have 4 bytes"),
        (message("identity_int32", inputs=[tensor(int_contents=[1, 2])]), no, "input IN must have 4 bytes"),
        (message("identity_int32", inputs=[tensor(fp32_contents=[1])]), no, "must be in int_contents for INT32"),
        (message("identity_int8", inputs=[tensor(datatype="INT8", int_contents=[128])]), no, "range of INT8"),
        (message("identity_fp16", inputs=[tensor(datatype="FP16", fp32_contents=[1])]), no, "raw_input_contents"),
        (
            message("identity_int32", inputs=[tensor(datatype="INT128", int_contents=[1])]),
            no,
            "must be one of BOOL",
        ),
        (message("identity_int32", inputs=[tensor(shape=[-1], int_contents=[1])]), no, "sizes of at least 0"),
        (message("identity_int32", parameters={"priority": parameter(int64_param=-1)}), no, "priority must be"),
        (message("identity_int32", parameters={"x": parameter()}), no, "the parameter 'x' must have a value"),
        (message("identity_int32", parameters={"triton_x": parameter(bool_param=True)}), no, "reserved"),
        (message("identity_int32", inputs=[shared]), grpc.StatusCode.UNIMPLEMENTED, "shared_memory_region"),
        (message("repeat", inputs=[tensor(int_contents=[1])]), grpc.StatusCode.UNIMPLEMENTED, "decoupled"),
        (message("failing", inputs=[tensor(int_contents=[1])]), grpc.StatusCode.INTERNAL, "ran out of numbers"),
    ):
        found, text = await refusal(tensors, wrong)
        assert (found, reason in text) == (code, True), text


async def test_shared_memory_is_refused_by_name(triton: InferenceServerClient) -> None:
    for kind, call in (
        ("system", triton.get_system_shared_memory_status),
        ("system", lambda: triton.register_system_shared_memory("region", "/key", 8)),
        ("CUDA", lambda: triton.unregister_cuda_shared_memory("region")),
    ):
        with pytest.raises(InferenceServerException, match=f"{kind} shared memory is not supported") as refused:
            await call()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_orders_for_models_are_in_the_audit_log(tensors: TensorApi, triton: InferenceServerClient) -> None:
    """Also an order that fails, with the code of its error."""
    async with obeying(tensors.worker):
        await triton.unload_model("add_sub")
    async with obeying(tensors.worker, error="no space"):
        with pytest.raises(InferenceServerException, match="no space"):
            await triton.load_model("add_sub")
    async with obeying(tensors.worker):
        await triton.load_model("add_sub")
    entries = await tensors.backend.audit.list(3)
    assert [(each.action, each.target, each.status, each.code) for each in entries] == [
        ("gRPC RepositoryModelLoad", "name=add_sub", 200, ""),
        ("gRPC RepositoryModelLoad", "name=add_sub", 400, "invalid_request"),
        ("gRPC RepositoryModelUnload", "name=add_sub", 200, ""),
    ]
    assert {(each.key_id, each.tenant) for each in entries} == {("", "default")}
    assert all(each.address for each in entries)


async def test_methods_need_their_scopes(tmp_path: Path) -> None:
    settings = changed(in_memory(tmp_path), auth=True)
    async with Database.from_settings(settings) as database:
        keys = ApiKeys(database, pepper_of(settings))
        _, key = await keys.create(tenant="t", scopes=Scopes.parse(routes=["predict"]))
        _, of_other = await keys.create(tenant="t", scopes=Scopes.parse(admin=True, models=["other"]))
        operator, admin_key = await keys.create(tenant="ops", scopes=Scopes(admin=True))
    [service] = service_pb2.DESCRIPTOR.services_by_name.values()
    public = {"ServerLive", "ServerReady"}
    admin = {each.name for each in service.methods if "Memory" in each.name or "Setting" in each.name}
    admin |= {"RepositoryModelLoad", "RepositoryModelUnload"}
    async with over_grpc(settings) as tensors, grpc.aio.insecure_channel(tensors.host) as channel:
        for method in service.methods:
            call = channel.unary_stream(f"/{service.full_name}/{method.name}")
            none, some = [await _code(call, metadata) for metadata in ((), (("authorization", f"Bearer {key}"),))]
            assert (none is grpc.StatusCode.OK) == (method.name in public), method.name
            assert (some is grpc.StatusCode.PERMISSION_DENIED) == (method.name in admin), method.name
        assert await tensors.backend.audit.list(8) == []  # a caller that may not change anything could flood it
        for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
            call = channel.unary_stream(f"/{service.full_name}/{name}")
            code = await _code(call, (("authorization", f"Bearer {of_other}"),))
            assert code is grpc.StatusCode.PERMISSION_DENIED, name
        unload = channel.unary_stream(f"/{service.full_name}/RepositoryModelUnload")
        assert await _code(unload, (("authorization", f"Bearer {admin_key}"),)) is not grpc.StatusCode.OK
        entry, *refused = await tensors.backend.audit.list(8)
        assert [each.status for each in refused] == [403, 403]
        assert (entry.key_id, entry.tenant, entry.action) == (operator.id, "ops", "gRPC RepositoryModelUnload")


async def _code(call: Any, metadata: Any) -> grpc.StatusCode:
    """Return the status of a call with an empty message.

    Sent in one piece: a client that still sends when the server refuses the call may see INTERNAL instead.
    """
    begun = call(b"", metadata=metadata, timeout=LIMIT_S)
    with suppress(grpc.aio.AioRpcError):
        async for _ in begun:
            pass
    return await begun.code()


async def test_a_message_that_is_too_large_is_refused(tensors: TensorApi) -> None:
    large = message("identity_int8", inputs=[tensor(datatype="INT8", shape=[5 * 2**20])])
    large.raw_input_contents.append(bytes(5 * 2**20))
    code, _ = await refusal(tensors, large)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
