"""KEDA's external scaler: what a model's load asks for, and the wake-up of a model without workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from producer_api.rpc import external_scaler, external_scaler_pb2
from producer_api.rpc.external_scaler_pb2 import GetMetricsRequest, ScaledObjectRef
from shared.accounts.api_keys import ApiKeys
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.protocol import PriorityClass
from shared.settings import Settings
from tests.support.fakes import MODEL, make_request, submit
from tests.support.grpc_client import Client, chat, details, refusal, serving
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

NEVER_S = 100 * LIMIT_S
LARGE = "org/large"  # a model that never had a worker


def ref(model: str = MODEL, **metadata: str) -> ScaledObjectRef:
    named = {"class": metadata.pop("class_")} if "class_" in metadata else {}
    return ScaledObjectRef(name="so", namespace="ns", scalerMetadata={"model": model, **named, **metadata})


def methods(client: Client) -> list[Callable[[ScaledObjectRef], Any]]:
    """Return a call of each method, by what it asks for."""

    def metrics(asked: ScaledObjectRef) -> Any:
        return client.GetMetrics(GetMetricsRequest(scaledObjectRef=asked, metricName="headrace-wait"))

    return [client.IsActive, client.StreamIsActive, client.GetMetricSpec, metrics]


async def value(client: Client, metric: str, asked: ScaledObjectRef) -> float:
    answer = await client.GetMetrics(GetMetricsRequest(scaledObjectRef=asked, metricName=metric))
    [found] = answer.metricValues
    assert found.metricName == metric
    return found.metricValueFloat


async def test_metrics_count_what_waits_and_what_is_held(
    client: Client, backend: Backend, worker: ScriptedWorker
) -> None:
    for priority in (PriorityClass.INTERACTIVE, PriorityClass.BATCH, PriorityClass.BATCH):
        await submit(backend, make_request(priority=priority))
    await worker.take()  # the interactive one

    assert await value(client, "headrace-requests", ref()) == 3
    assert await value(client, "headrace-requests", ref(class_="batch")) == 2
    assert await value(client, "headrace-tokens", ref()) == (await backend.transport.depth(MODEL)).waiting_tokens
    assert await value(client, "headrace-wait", ref(class_="interactive")) == 0
    assert (await client.IsActive(ref(class_="standard"))).result is False
    assert (await client.IsActive(ref(class_="interactive", activationThreshold="5"))).result is True  # it is held
    assert (await client.IsActive(ref(class_="batch", activationThreshold="2"))).result is False


async def test_targets_come_from_the_metadata_or_from_the_seats(client: Client) -> None:
    named = await client.GetMetricSpec(ref(requestsPerReplica="2.5", targetWait="10"))
    assert [(spec.metricName, spec.targetSize, spec.targetSizeFloat) for spec in named.metricSpecs] == [
        ("headrace-requests", 3, 2.5),
        ("headrace-wait", 10, 10.0),
    ]
    [default] = (await client.GetMetricSpec(ref())).metricSpecs
    assert (default.metricName, default.targetSizeFloat) == ("headrace-requests", 8)


async def test_a_first_request_is_reported_without_polling(
    settings: Settings, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a model without a worker, its request is admitted, reported at once, and waits."""
    monkeypatch.setattr(external_scaler, "POLL_S", NEVER_S)
    scalable = settings.model_copy(update={"scalable_models": f"{LARGE}, other"})
    async with serving(scalable, backend) as (context, client), asyncio.timeout(LIMIT_S):
        stream = client.StreamIsActive(ref(LARGE))
        assert (await stream.read()).result is False
        question = chat()
        question.model = LARGE
        await client.Submit(question)
        assert (await stream.read()).result is True
        load = await backend.transport.depth(LARGE)
        context.open_answers.drain()
        assert (await refusal(stream)).code() is grpc.StatusCode.UNAVAILABLE
    assert (load.waiting, load.held) == (1, 0)


async def test_a_closed_model_keeps_what_waits(client: Client, backend: Backend, worker: ScriptedWorker) -> None:
    """Paused, it takes requests and asks for no worker; draining, it refuses new ones and serves those."""
    await backend.queues.set_gate(MODEL, "paused")
    job = await client.Submit(chat())
    assert (await client.IsActive(ref())).result is False
    for metric in ("headrace-requests", "headrace-tokens", "headrace-wait"):
        assert await value(client, metric, ref()) == 0
    await backend.queues.set_gate(MODEL, "draining")
    refused = await refusal(client.Submit(chat()))
    assert (refused.code(), details(refused)["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "queue_draining")
    assert details(refused)["RetryInfo"].retry_delay.seconds == 10
    assert (await worker.answer("x")).id == job.id
    assert (await client.IsActive(ref())).result is False


async def test_a_resumed_model_is_reported_without_polling(
    client: Client, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_scaler, "POLL_S", NEVER_S)
    await backend.queues.set_gate(MODEL, "paused")
    await client.Submit(chat())
    stream = client.StreamIsActive(ref())
    async with asyncio.timeout(LIMIT_S):
        assert (await stream.read()).result is False
        await backend.queues.set_gate(MODEL, "open")
        assert (await stream.read()).result is True
    stream.cancel()


async def test_streams_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_scaler, "MAX_STREAMS", 1)
    first = client.StreamIsActive(ref())
    await first.read()
    assert (await refusal(client.StreamIsActive(ref()))).code() is grpc.StatusCode.UNAVAILABLE
    first.cancel()


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"requestsPerReplica": "0"}, "requestsPerReplica"),
        ({"targetWait": "nan"}, "targetWait"),
        ({"targetWait": "1e-300"}, "targetWait"),
        ({"targetWait": "1_0"}, "targetWait"),
        ({"targetWait": " 5 "}, "targetWait"),
        ({"requestsPerReplica": "\u0665"}, "requestsPerReplica"),
        ({"activationThreshold": "1e3"}, "activationThreshold"),
        ({"tokensPerReplica": "1e300"}, "tokensPerReplica"),
        ({"tokensPerReplica": "100", "class_": "batch"}, "tokensPerReplica"),
        ({"activationThreshold": "-1"}, "activationThreshold"),
        ({"class_": "urgent"}, "class"),
        ({"model": ""}, "model"),
    ],
)
async def test_wrong_metadata_is_refused_by_name(client: Client, metadata: dict[str, str], named: str) -> None:
    for call in methods(client):
        error = await refusal(call(ref(**metadata)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith(named)


async def test_unknown_models_and_metrics_are_refused(client: Client) -> None:
    for call in methods(client):
        assert (await refusal(call(ref("no-such")))).code() is grpc.StatusCode.NOT_FOUND
    error = await refusal(client.GetMetrics(GetMetricsRequest(scaledObjectRef=ref(), metricName="x")))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_scaler_needs_an_admin_key_which_the_trigger_may_carry(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    asking = settings.model_copy(update={"auth": True})
    async with serving(asking, backend) as (context, client):
        keys = ApiKeys(context.database, pepper_of(asking))
        admin = (await keys.create(tenant="ops", scopes=Scopes(admin=True)))[1]
        user = (await keys.create(tenant="acme", scopes=Scopes()))[1]
        assert (await refusal(client.IsActive(ref()))).code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await refusal(client.StreamIsActive(ref()))).code() is grpc.StatusCode.UNAUTHENTICATED
        denied = await refusal(client.having(user).IsActive(ref()))
        assert denied.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await client.having(admin).IsActive(ref())).result is False
        assert (await client.IsActive(ref(apiKeyFromEnv=admin))).result is False
        other = (await keys.create(tenant="ops", scopes=Scopes.parse(admin=True, models=[LARGE])))[1]
        for call in (client.IsActive, client.StreamIsActive, client.GetMetricSpec):
            assert (await refusal(call(ref(apiKeyFromEnv=other)))).code() is grpc.StatusCode.PERMISSION_DENIED
    async with serving(asking.model_copy(update={"scaler_auth": False}), backend) as (_, client):
        assert (await client.IsActive(ref())).result is False


def test_the_definition_has_kedas_names_and_numbers() -> None:
    messages = external_scaler_pb2.DESCRIPTOR.message_types_by_name
    numbers = {name: [(field.name, field.number) for field in message.fields] for name, message in messages.items()}
    assert external_scaler_pb2.DESCRIPTOR.package == "externalscaler"
    assert numbers["ScaledObjectRef"] == [("name", 1), ("namespace", 2), ("scalerMetadata", 3)]
    assert numbers["MetricSpec"] == [("metricName", 1), ("targetSize", 2), ("targetSizeFloat", 3)]
    assert numbers["MetricValue"] == [("metricName", 1), ("metricValue", 2), ("metricValueFloat", 3)]
    assert numbers["GetMetricsRequest"] == [("scaledObjectRef", 1), ("metricName", 2)]


@pytest.mark.parametrize("auth", [False, True])
async def test_a_method_of_newer_releases_is_unimplemented(
    settings: Settings, backend: Backend, auth: bool
) -> None:
    """Given KEDA's StreamMetricSpec, KEDA goes on without it only for this status, and retries after any other."""
    async with serving(settings.model_copy(update={"auth": auth}), backend) as (_, client):
        begin = client.channel.unary_stream(
            "/externalscaler.ExternalScaler/StreamMetricSpec", request_serializer=ScaledObjectRef.SerializeToString
        )
        assert (await refusal(begin(ref(), timeout=LIMIT_S))).code() is grpc.StatusCode.UNIMPLEMENTED
