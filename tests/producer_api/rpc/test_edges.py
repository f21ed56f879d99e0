"""gRPC's edge: who may call what, how much, how long, and in which words the rest is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs

from producer_api.auth import failures
from producer_api.http.protocol import HEADROOM
from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.service import Inference
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import ConfigError
from shared.redis.embedded import HOST
from shared.settings import Settings
from tests.producer_api.conftest import ScriptedWorker
from tests.producer_api.rpc.conftest import SERVICE, Client, chat, refusal, serving, told
from tests.support.fakes import MODEL
from tests.support.loop_watchdog import MAX_HELD_S, watching_loop
from tests.support.metered import planned
from tests.support.waiting import LIMIT_S

SUBMIT = f"/{SERVICE.full_name}/Submit"
Keyed = tuple[Client, ApiKeys]


@pytest.fixture
async def keyed(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[Keyed]:
    """A server that asks for keys, and what makes them."""
    asking = settings.model_copy(update={"auth": True})
    async with Database.of(asking) as database, serving(asking, backend) as (_, client):
        yield client, ApiKeys(database, pepper_of(asking))


async def key_of(keys: ApiKeys, tenant: str = "t", **scopes: Any) -> str:
    return (await keys.create(tenant=tenant, scopes=Scopes.of(**scopes)))[1]


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """What programs read of an error, by its kind."""
    found = {}
    status = rpc_status.from_call(error)  # checks that code and message are the status's too
    for packed in status.details if status is not None else ():
        kind = packed.TypeName().rpartition(".")[2]
        found[kind] = getattr(error_details_pb2, kind)()
        assert packed.Unpack(found[kind])
    return found


async def test_none_of_the_methods_answers_without_a_key(keyed: Keyed) -> None:
    """Given every method of the service, Expect UNAUTHENTICATED for no key and for a wrong one."""
    client, _ = keyed
    requests = {method.name: getattr(pb, method.input_type.name)() for method in SERVICE.methods}
    for name, request in requests.items():
        for each in (client, client.having("hr_no"), client.having("hr_" + "a" * 60)):
            refused = await refusal(getattr(each, name)(request))
            assert refused.code() is grpc.StatusCode.UNAUTHENTICATED, name


async def test_every_method_is_there(settings: Settings, backend: Backend) -> None:
    async with serving(settings, backend) as (context, _):
        assert [method.name for method in Inference(context).methods()] == [each.name for each in SERVICE.methods]


async def test_a_key_may_what_its_scopes_say(keyed: Keyed, worker: ScriptedWorker) -> None:
    """Given keys, Expect PERMISSION_DENIED for routes, models and classes of others, and others' jobs unknown."""
    client, keys = keyed
    whole = client.having(await key_of(keys))
    made = await whole.Submit(chat())

    for scopes, request in (
        ({"routes": ["models"]}, chat()),
        ({"models": ["other"]}, chat()),
        ({"classes": ["batch"]}, chat()),
    ):
        refused = await refusal(client.having(await key_of(keys, **scopes)).Submit(request))
        assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    none = await client.having(await key_of(keys, models=["other"])).ListModels(pb.ListModelsRequest())
    assert not none.models

    other = client.having(await key_of(keys, "other"))
    for call in (
        other.GetJob(pb.GetJobRequest(id=made.id)),
        other.CancelJob(pb.CancelJobRequest(id=made.id)),
        other.Follow(pb.FollowRequest(id=made.id)),
        whole.GetJob(pb.GetJobRequest(id="req_no")),
        whole.GetJob(pb.GetJobRequest()),
    ):
        assert (await refusal(call)).code() is grpc.StatusCode.NOT_FOUND
    assert (await whole.GetJob(pb.GetJobRequest(id=made.id))).state == "queued"


async def test_limits_are_charged_and_told(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Given two requests a minute, Expect where it stands with each answer, then RESOURCE_EXHAUSTED and a time."""
    async with serving(planned(settings, {"requests": "2/minute"}), backend) as (_, client):
        left = []
        for _ in range(2):
            call = client.Submit(chat())
            await call
            left.append(dict(await call.initial_metadata())["x-ratelimit-remaining-requests"])
        refused = await refusal(client.Generate(pb.GenerateRequest(job=chat())))
        uncharged = await refusal(client.Submit(pb.JobRequest()))

    assert left == ["1", "0"]
    assert dict(uncharged.trailing_metadata())["x-ratelimit-limit-requests"] == "2"
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = details(refused)
    assert found["ErrorInfo"].reason == "rate_limit_exceeded"
    assert 0 < found["RetryInfo"].retry_delay.seconds <= 60
    assert dict(refused.trailing_metadata())["x-ratelimit-remaining-requests"] == "0"


async def test_wrong_fields_are_told(client: Client) -> None:
    """Given several wrong fields, Expect INVALID_ARGUMENT with each by its name; from admission the same."""
    request = chat(priority="now", temperature=float("nan"))
    by_schema = details(await refusal(client.Submit(request)))
    by_limits = details(await refusal(client.Submit(chat(temperature=9))))
    unknown = details(await refusal(client.Submit(pb.JobRequest(model="no", prompt="a"))))

    assert {each.field for each in by_schema["BadRequest"].field_violations} == {"priority", "temperature"}
    assert [each.field for each in by_limits["BadRequest"].field_violations] == ["temperature"]
    assert (by_limits["ErrorInfo"].reason, by_limits["ErrorInfo"].domain) == ("invalid_request", "headrace")
    assert (unknown["ErrorInfo"].reason, unknown["ErrorInfo"].metadata["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.GenerateRequest(job=chat(), from_seq=1), "from_seq"),
        (pb.GenerateRequest(job=chat(), from_seq=-1), "from_seq"),
        (pb.GenerateRequest(), "model"),
    ],
)
async def test_what_cannot_be_generated(client: Client, request_: pb.GenerateRequest, param: str) -> None:
    found = details(await refusal(client.Generate(request_)))
    assert found["ErrorInfo"].metadata["param"] == param


async def test_a_key_that_is_none(client: Client) -> None:
    for keys in ([("idempotency-key", "a b")], [("idempotency-key", "a"), ("idempotency-key", "b")]):
        assert (await refusal(client.Submit(chat(), *keys))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_message_and_more_than_one(client: Client) -> None:
    """Given a call that sends nothing, or two messages, Expect INVALID_ARGUMENT, and nothing queued."""
    for messages in ([], [chat().SerializeToString()] * 2, [b"\xff"]):
        call = client.channel.stream_unary(SUBMIT)(iter(messages), timeout=LIMIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_that_does_not_come(settings: Settings, backend: Backend) -> None:
    """Given a caller that opens a call and sends nothing, Expect it refused after `body_timeout`."""
    async with serving(settings.model_copy(update={"body_timeout": 0.2}), backend) as (_, client):
        call = client.channel.stream_unary(SUBMIT)(timeout=LIMIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert "did not arrive within" in (caught.value.details() or "")


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_that_is_too_large(
    settings: Settings, backend: Backend, compression: grpc.Compression
) -> None:
    """Given a body over the bound, also once it is unpacked, Expect RESOURCE_EXHAUSTED."""
    async with serving(settings.model_copy(update={"max_body_bytes": 65_536}), backend) as (_, client):
        big = pb.JobRequest(model=MODEL, prompt="a" * 70_000)
        refused = await refusal(client.Submit(big, compression=compression))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_without_end(client: Client) -> None:
    """Given more metadata than `max_header_bytes`, Expect the call refused; with less it is served."""
    refused = await refusal(client.Submit(chat(), ("x-more", "a" * 33_000)))

    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await client.Submit(chat(), ("x-more", "a" * 30_000))).state == "queued"


async def test_too_many_calls(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Given a bound of one call, Expect a second one UNAVAILABLE with a time, and served once it is free."""
    async with serving(settings.model_copy(update={"max_connections": 1}), backend) as (_, client):
        made = await client.Submit(chat())
        reading = client.Follow(pb.FollowRequest(id=made.id))
        job = await worker.take()
        await job.say("a")
        assert (await reading.read()).tokens.seq == 0
        refused = await refusal(client.Submit(chat()))
        await job.end()
        await told(reading)
        free = await client.GetJob(pb.GetJobRequest(id=made.id))

    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert details(refused)["RetryInfo"].retry_delay.seconds == 1
    assert free.state == "completed"


async def test_a_stopping_server_sends_its_readers_on(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    """Given a reader and a keyless caller, If the server drains, Expect one sent on, the other served."""
    async with serving(settings, backend) as (context, client):
        made = await client.Submit(chat())
        reading, generating = (
            client.Follow(pb.FollowRequest(id=made.id)),
            client.Generate(pb.GenerateRequest(job=chat())),
        )
        first, second = await worker.take(), await worker.take()
        for job in (first, second):
            await job.say("a")
        assert (await reading.read()).tokens.seq == 0
        assert (await generating.read()).HasField("job")
        context.open_answers.drain()
        sent_on = await refusal(reading)
        refused = await refusal(client.Submit(chat()))
        await second.end()
        texts, _ = await told(generating)

    assert sent_on.code() is refused.code() is grpc.StatusCode.UNAVAILABLE
    assert details(refused)["RetryInfo"].retry_delay.seconds == 1
    assert texts == ["a"]


async def test_an_ending_server_cancels_what_nobody_can_come_back_to(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    async with serving(settings, backend) as (context, client):
        generating = client.Generate(pb.GenerateRequest(job=chat()))
        job = await worker.take()
        assert (await generating.read()).HasField("job")
        context.open_answers.stop()
        ended = await refusal(generating)

    assert ended.code() is grpc.StatusCode.UNAVAILABLE
    record = await backend.token_log.record(job.request.id)
    assert record is not None
    assert record.state.value == "cancelled"


async def test_an_unexpected_failure(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Given a bug, Expect INTERNAL without its insides, and the log told."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError("a secret")

    async with serving(settings, backend) as (context, client):
        context.gateway._token_log = Broken()
        with capture_logs() as lines:
            refused = await refusal(client.Submit(chat()))

    assert refused.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (refused.details() or "")
    assert [line["event"] for line in lines] == ["request_failed", "request"]


async def test_a_call_is_one_line(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Given calls that are served, refused and left, Expect a line and a count of each, and no prompt in any."""
    canary = "canary-8d1"
    trace = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
    prompt = pb.JobRequest(model=MODEL, prompt=canary)
    async with serving(settings, backend) as (context, client):
        with capture_logs() as lines:
            events = client.Generate(pb.GenerateRequest(job=prompt), ("x-request-id", "mine"), trace)
            await worker.answer("a", "b")
            await told(events)
            refused = [
                await refusal(client.Submit(pb.JobRequest(model=canary, prompt=canary, priority=canary))),
                await refusal(client.GetJob(pb.GetJobRequest(id="req_no"))),
            ]
            left = client.Generate(pb.GenerateRequest(job=prompt))
            await worker.take()
            assert (await left.read()).HasField("job")
            left.cancel()
            async with asyncio.timeout(LIMIT_S):
                while len([line for line in lines if line["event"] == "request"]) < 4:
                    await asyncio.sleep(0.01)
        counts = {
            sample.labels["outcome"]: sample.value
            for metric in context.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "headrace_api_requests_total" and "Inference" in sample.labels["route"]
        }

    served, wrong, unknown, gone = (line for line in lines if line["event"] == "request")
    assert (
        served.items()
        >= {"http_request_id": "mine", "trace_id": "a" * 32, "tenant": "default", "status": 200}.items()
    )
    assert served.items() >= {"method": "gRPC", "model": MODEL, "completion_tokens": 2, "finish": "stop"}.items()
    assert served["route"] == "/headrace.v1.Inference/Generate"
    assert [line["status"] for line in (wrong, unknown, gone)] == [400, 404, 499]
    assert gone["finish"] == "abandoned"
    assert dict(await events.initial_metadata())["x-request-id"] == "mine"
    assert counts == {"ok": 1, "refused": 1, "left": 1}
    assert canary not in str(lines) + "".join(str(each) for each in refused)


async def test_health_is_readiness(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Given a worker that is ready, Expect SERVING, and NOT_SERVING while the server drains; both without a key."""
    async with serving(settings.model_copy(update={"auth": True}), backend) as (context, client):
        health = health_pb2_grpc.HealthStub(client.channel)
        watched = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE.full_name), timeout=LIMIT_S)
        seen = [(await watched.read()).status]
        overall = await health.Check(health_pb2.HealthCheckRequest())
        context.open_answers.drain()
        seen.append((await watched.read()).status)
        watched.cancel()

    statuses = health_pb2.HealthCheckResponse
    assert seen == [statuses.SERVING, statuses.NOT_SERVING]
    assert overall.status == statuses.SERVING


async def test_without_a_worker_nothing_is_served(settings: Settings, backend: Backend) -> None:
    async with serving(settings, backend) as (_, client):
        health = health_pb2_grpc.HealthStub(client.channel)
        found = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
    assert found.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_it_tells_of_itself(client: Client) -> None:
    """Given a client without the definition, Expect to find the service and its methods by reflection."""
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE.full_name),
    ]
    answers = [each async for each in stub.ServerReflectionInfo(iter(requests), timeout=LIMIT_S)]

    assert SERVICE.full_name in [each.name for each in answers[0].list_services_response.service]
    assert b"CancelJob" in answers[1].file_descriptor_response.file_descriptor_proto[0]


HOSTILE: dict[str, pb.JobRequest] = {
    "ids": pb.JobRequest(model="absent", prompt_ids=pb.TokenIds(ids=[1] * 1_000_000)),
    "branches": pb.JobRequest(
        model="absent",
        prompt="x",
        structured_outputs=pb.StructuredOutputs(json=json.dumps({"oneOf": [{"const": i} for i in range(3_900)]})),
    ),
    "subschemas": pb.JobRequest(
        model="absent",
        messages=[pb.Message(role="user", content="x")],
        tools=[
            pb.Tool(function=pb.FunctionDefinition(name=f"f{i}", parameters=json.dumps({"anyOf": [{}] * 15_000})))
            for i in range(4)
        ],
    ),
    "messages": pb.JobRequest(model="absent", messages=[pb.Message(role="user", content="x")] * 200_000),
    "biases": pb.JobRequest(model="absent", prompt="x", logit_bias=dict.fromkeys(range(200_000), 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
async def test_no_message_holds_the_loop(settings: Settings, backend: Backend, name: str) -> None:
    data = HOSTILE[name].SerializeToString()
    assert len(data) <= settings.max_body_bytes
    async with serving(settings, backend) as (_, client):
        submit = client.channel.unary_unary(f"/{SERVICE.full_name}/Submit")
        with pytest.raises(grpc.aio.AioRpcError):
            await submit(pb.JobRequest(model="absent", prompt="x").SerializeToString(), timeout=20)
        with watching_loop() as held, pytest.raises(grpc.aio.AioRpcError) as refused:
            await submit(data, timeout=30)
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert held.longest < MAX_HELD_S, held


@pytest.mark.parametrize(("given", "there"), [(None, False), (True, True)])
async def test_reflection_needs_a_setting_where_auth_is_on(
    settings: Settings, backend: Backend, given: bool | None, there: bool
) -> None:
    asked = settings.model_copy(update={"auth": True, "grpc_reflection": given})
    async with serving(asked, backend) as (_, client):
        stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        code = grpc.StatusCode.OK
        try:
            assert [each async for each in stub.ServerReflectionInfo(iter([request]), timeout=20)]
        except grpc.aio.AioRpcError as error:
            code = error.code()
    assert code == (grpc.StatusCode.OK if there else grpc.StatusCode.UNIMPLEMENTED)


async def test_repeated_wrong_keys_are_slowed(
    settings: Settings, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "MAX_FAILURES", 2)
    codes = []
    async with serving(settings.model_copy(update={"auth": True}), backend) as (_, client):
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.having(f"hr_{'0' * 12}_{'0' * 64}").ListModels(pb.ListModelsRequest())
            codes.append(refused.value.code())
    assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 2 + [grpc.StatusCode.RESOURCE_EXHAUSTED]


async def test_a_port_is_shared_by_a_setting_alone(settings: Settings, backend: Backend) -> None:
    """Given a server, Expect a second one on its port refused; with `reuse_port` both are there."""
    async with serving(settings, backend) as (_, client):
        with pytest.raises(ConfigError) as refused:
            async with serving(settings, backend, port=client.port):
                pass
    shared = settings.model_copy(update={"reuse_port": True})
    async with serving(shared, backend) as (_, client), serving(shared, backend, port=client.port) as (_, second):
        assert second.port == client.port

    assert refused.value.param == "grpc_port"


async def test_connections_are_bounded(settings: Settings, backend: Backend) -> None:
    """Given more connections than the bound and its headroom, Expect the surplus closed, the others kept."""
    most = HEADROOM + 1
    async with serving(settings.model_copy(update={"max_connections": 1}), backend) as (_, client):
        opened = [await asyncio.open_connection(HOST, client.port) for _ in range(most + 15)]
        kept = [not reader.at_eof() and bool(await reader.read(1)) for reader, _ in opened]
        for _, writer in opened:
            writer.close()

    assert sum(kept) == most
