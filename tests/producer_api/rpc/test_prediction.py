"""InferenceService over gRPC, with a client made from a definition of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc
from structlog.testing import capture_logs

from producer_api.rpc.prediction_pb2 import PredictMessage, PredictRequest
from shared.backend import Backend
from shared.protocol import ErrorInfo, RequestState
from shared.settings import Settings
from tests.support.fakes import MODEL, ended
from tests.support.grpc_client import Client, chat, details, refusal, serving
from tests.support.scripted_worker import PROMPT_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S

KEY = ("idempotency-key", "mine")
DEFINITION = """
syntax = "proto3";
service InferenceService {
  rpc Predict(PredictRequest) returns (PredictResponse);
  rpc StreamPredict(PredictRequest) returns (stream PredictResponse);
}
message Message { string role = 1; string content = 2; }
message PredictRequest {
  string model_name = 1;
  repeated Message messages = 2;
  float temperature = 3;
  int32 max_tokens = 4;
}
message Usage { int32 prompt_tokens = 1; int32 completion_tokens = 2; int32 total_tokens = 3; }
message PredictResponse { string text = 1; Usage usage = 2; }
"""


def question(**fields: Any) -> PredictRequest:
    asked = PredictMessage(role="user", content="hi")
    return PredictRequest(**{"model_name": MODEL, "messages": [asked], **fields})


async def read_all(stream: Any) -> list[Any]:
    return [response async for response in stream]


@pytest.fixture
def foreign(tmp_path: Path) -> Any:
    """Descriptor of the service as a client knows it that has never seen this server's definition."""
    (tmp_path / "client.proto").write_text(DEFINITION)
    compiled = tmp_path / "client.bin"
    assert protoc.main(["protoc", f"-I{tmp_path}", f"--descriptor_set_out={compiled}", "client.proto"]) == 0
    [file] = FileDescriptorSet.FromString(compiled.read_bytes()).file
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("InferenceService")


async def test_a_client_of_a_bare_definition_is_served(
    client: Client, worker: ScriptedWorker, foreign: Any
) -> None:
    """Package, field numbers and types are those that the definition gives."""
    method = foreign.methods_by_name["Predict"]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    encoding = {"request_serializer": request.SerializeToString, "response_deserializer": response.FromString}
    predict = client.channel.unary_unary("/InferenceService/Predict", **encoding)
    stream = client.channel.unary_stream("/InferenceService/StreamPredict", **encoding)
    message = {"role": "user", "content": "hi"}
    asked = request(model_name=MODEL, messages=[message], temperature=0.5, max_tokens=9)

    call = predict(asked, timeout=LIMIT_S)
    admitted = await worker.answer("a", "b")
    whole = await call
    reading = stream(asked, timeout=LIMIT_S)
    await worker.answer("a", "b")
    parts = await read_all(reading)

    assert (admitted.params.temperature, admitted.params.max_tokens) == (0.5, 9)
    assert [(each.role, each.content) for each in admitted.messages or ()] == [("user", "hi")]
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 2, "total_tokens": PROMPT_TOKENS + 2}
    assert whole == response(text="ab", usage=usage)
    assert "".join(part.text for part in parts) == "ab"
    assert [part.HasField("usage") for part in parts] == [*[False] * (len(parts) - 1), True]
    assert parts[-1].usage == whole.usage


async def test_a_stream_has_each_text_once(client: Client, worker: ScriptedWorker) -> None:
    """A token without text of its own makes no response; the last response has the usage."""
    reading = client.StreamPredict(question())
    await worker.answer("a", "", "é")
    parts = await read_all(reading)

    assert [part.text for part in parts if part.text] == ["a", "é"]
    assert all(part.text or part.HasField("usage") for part in parts)
    assert parts[-1].usage.completion_tokens == 3


@pytest.mark.parametrize("method", ["Predict", "StreamPredict"])
async def test_a_failure_sets_the_status(client: Client, worker: ScriptedWorker, method: str) -> None:
    call = getattr(client, method)(question())
    job = await worker.take()
    await job.say("a")
    await job.end(RequestState.FAILED, ErrorInfo("engine_failed", "the engine broke"))
    refused = await refusal(call)

    assert (refused.code(), refused.details()) == (grpc.StatusCode.INTERNAL, "the engine broke")
    assert details(refused)["ErrorInfo"].reason == "engine_failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model_name": ""}, "model_name"),
        ({"model_name": "a b"}, "model_name"),
        ({"model_name": "absent"}, "model_name"),
        ({"messages": []}, "messages"),
        ({"messages": [PredictMessage(content="hi")]}, "messages[0].role"),
        ({"messages": [PredictMessage(role="user")] * 1_025}, "messages"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
async def test_errors_name_the_fields_of_the_message(client: Client, fields: dict[str, Any], param: str) -> None:
    for method in (client.Predict, client.StreamPredict):
        refused = await refusal(method(question(**fields)))
        found = details(refused)
        assert found["ErrorInfo"].metadata["param"] == param
        absent = fields.get("model_name") == "absent"
        assert refused.code() is (grpc.StatusCode.NOT_FOUND if absent else grpc.StatusCode.INVALID_ARGUMENT)
        assert absent or [each.field for each in found["BadRequest"].field_violations] == [param]
        assert "prompt" not in (refused.details() or "")


@pytest.mark.parametrize("method", ["Predict", "StreamPredict"])
async def test_a_caller_that_leaves_cancels_its_answer(
    client: Client, worker: ScriptedWorker, backend: Backend, method: str
) -> None:
    call = getattr(client, method)(question())
    job = await worker.take()
    call.cancel()
    assert (await ended(backend, job.request.id)).state is RequestState.CANCELLED


async def test_a_key_makes_one_job_for_all_methods(client: Client, worker: ScriptedWorker) -> None:
    """The answer continues without its caller; the same call gets it, in either form and from the other service."""
    left = client.StreamPredict(question(), KEY)
    job = await worker.take()
    await job.say("a")
    assert (await left.read()).text == "a"
    left.cancel()
    await job.say("b")
    whole = client.Predict(question(), KEY)
    await job.end()
    parts = await read_all(client.StreamPredict(question(), KEY))

    assert (await whole).text == "".join(part.text for part in parts) == "ab"
    assert dict(await whole.initial_metadata())["idempotent-replayed"] == "true"
    assert (await client.Submit(chat(), KEY)).id == job.request.id


async def test_a_stopping_server_ends_both_methods(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with serving(settings, backend) as (context, client):
        calls = [client.Predict(question()), client.StreamPredict(question())]
        jobs = [await worker.take() for _ in calls]
        for job in jobs:
            await job.say("a")
        assert (await calls[1].read()).text == "a"
        context.open_answers.stop()
        codes = [(await refusal(call)).code() for call in calls]

    assert codes == [grpc.StatusCode.UNAVAILABLE] * 2
    assert {(await ended(backend, job.request.id)).state for job in jobs} == {RequestState.CANCELLED}


async def test_a_call_has_a_line_in_the_request_log(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with serving(settings, backend) as (_, client):
        with capture_logs() as lines:
            call = client.Predict(question())
            await worker.answer("a")
            await call
    [line] = [line for line in lines if line["event"] == "request"]
    assert line.items() >= {"method": "gRPC", "route": "/InferenceService/Predict", "status": 200}.items()
    assert line.items() >= {"model": MODEL, "completion_tokens": 1, "finish": "stop"}.items()
