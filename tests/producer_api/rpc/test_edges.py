"""gRPC calls at the edge: authentication, limits, bounds and error statuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from structlog.testing import capture_logs

from producer_api.auth import failures
from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.catalog import services
from producer_api.rpc.kserve import kserve_pb2
from producer_api.rpc.kserve.service import NAME as KSERVE
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.settings import Settings
from tests.support.fakes import MODEL
from tests.support.grpc_client import SERVICE, SERVICES, Client, chat, details, read_rest, refusal, serving
from tests.support.loop_watchdog import MAX_HELD_S, watching_loop
from tests.support.metered import planned
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

SUBMIT = f"/{SERVICE.full_name}/Submit"
Keyed = tuple[Client, ApiKeys]


@pytest.fixture
async def keyed(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[Keyed]:
    """Server with authentication, and the store of its API keys."""
    asking = settings.model_copy(update={"auth": True})
    async with Database.from_settings(asking) as database, serving(asking, backend) as (_, client):
        yield client, ApiKeys(database, pepper_of(asking))


async def key_of(keys: ApiKeys, tenant: str = "t", **scopes: Any) -> str:
    return (await keys.create(tenant=tenant, scopes=Scopes.parse(**scopes)))[1]


async def test_every_method_needs_a_key(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_FAILURES", 1000)
    client, _ = keyed
    methods = [method for service in SERVICES for method in service.methods]
    requests = {method.name: GetMessageClass(method.input_type)() for method in methods}
    for name, request in requests.items():
        for each in (client, client.having("hr_no"), client.having("hr_" + "a" * 60)):
            refused = await refusal(getattr(each, name)(request))
            assert refused.code() is grpc.StatusCode.UNAUTHENTICATED, name


async def test_every_method_of_the_definitions_is_served(settings: Settings, backend: Backend) -> None:
    async with serving(settings, backend) as (context, _):
        served = {service.name: {method.name for method in service.methods} for service in services(context)}
    defined = {each.full_name: {method.name for method in each.methods} for each in SERVICES}
    [kserve] = kserve_pb2.DESCRIPTOR.services_by_name.values()
    assert served == {**defined, KSERVE: {method.name for method in kserve.methods}}


async def test_scopes_restrict_a_key(keyed: Keyed, worker: ScriptedWorker) -> None:
    """Routes, models and classes outside the scopes are denied, and other tenants' jobs are not found."""
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


async def test_limits_are_charged_and_shown(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Each answer reports the limit; the third request gets RESOURCE_EXHAUSTED and a retry delay."""
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


async def test_wrong_fields_are_named(client: Client) -> None:
    """INVALID_ARGUMENT names every wrong field, also one that admission refuses."""
    request = chat(priority="now", temperature=float("nan"))
    by_schema = details(await refusal(client.Submit(request)))
    by_limits = details(await refusal(client.Submit(chat(temperature=-1))))
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
async def test_invalid_generate_calls_are_refused(client: Client, request_: pb.GenerateRequest, param: str) -> None:
    found = details(await refusal(client.Generate(request_)))
    assert found["ErrorInfo"].metadata["param"] == param


async def test_an_invalid_idempotency_key_is_refused(client: Client) -> None:
    for keys in ([("idempotency-key", "a b")], [("idempotency-key", "a"), ("idempotency-key", "b")]):
        assert (await refusal(client.Submit(chat(), *keys))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_call_must_have_exactly_one_message(client: Client) -> None:
    for messages in ([], [chat().SerializeToString()] * 2, [b"\xff"]):
        call = client.channel.stream_unary(SUBMIT)(iter(messages), timeout=LIMIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_must_arrive_within_body_timeout(settings: Settings, backend: Backend) -> None:
    async with serving(settings.model_copy(update={"body_timeout": 0.2}), backend) as (_, client):
        call = client.channel.stream_unary(SUBMIT)(timeout=LIMIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert "did not arrive within" in (caught.value.details() or "")


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_large_message_is_refused(
    settings: Settings, backend: Backend, compression: grpc.Compression
) -> None:
    """The bound holds for the unpacked size too."""
    async with serving(settings.model_copy(update={"max_body_bytes": 65_536}), backend) as (_, client):
        big = pb.JobRequest(model=MODEL, prompt="a" * 70_000)
        refused = await refusal(client.Submit(big, compression=compression))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_large_metadata_are_refused(client: Client) -> None:
    refused = await refusal(client.Submit(chat(), ("x-more", "a" * 33_000)))

    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await client.Submit(chat(), ("x-more", "a" * 30_000))).state == "queued"


async def test_concurrent_calls_are_bounded(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """A call over the bound gets UNAVAILABLE with a retry delay, and works once there is room."""
    async with serving(settings.model_copy(update={"max_connections": 1}), backend) as (_, client):
        made = await client.Submit(chat())
        reading = client.Follow(pb.FollowRequest(id=made.id))
        job = await worker.take()
        await job.say("a")
        assert (await reading.read()).tokens.seq == 0
        refused = await refusal(client.Submit(chat()))
        await job.end()
        await read_rest(reading)
        free = await client.GetJob(pb.GetJobRequest(id=made.id))

    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert details(refused)["RetryInfo"].retry_delay.seconds == 1
    assert free.state == "completed"


async def test_a_bug_is_internal_and_logged(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """The client gets INTERNAL without details."""

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


async def test_each_call_is_logged_once(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Served, refused and abandoned calls have one line and one count each, without prompts."""
    canary = "canary-8d1"
    trace = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
    prompt = pb.JobRequest(model=MODEL, prompt=canary)
    async with serving(settings, backend) as (context, client):
        with capture_logs() as lines:
            events = client.Generate(pb.GenerateRequest(job=prompt), ("x-request-id", "mine"), trace)
            await worker.answer("a", "b")
            await read_rest(events)
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
async def test_large_messages_do_not_block_the_loop(settings: Settings, backend: Backend, name: str) -> None:
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


async def test_repeated_wrong_keys_are_refused(
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
