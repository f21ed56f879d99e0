"""gRPC server: draining and stopping, health, reflection, its port and its connections."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from producer_api.http.protocol import HEADROOM
from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.kserve.service import NAME as KSERVE
from shared.backend import Backend
from shared.errors import ConfigError
from shared.redis.embedded import HOST
from shared.settings import Settings
from tests.support.grpc_client import SERVICE, SERVICES, Client, chat, details, read_rest, refusal, serving
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S


async def test_a_draining_server_ends_resumable_streams(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    """A reader that can resume gets UNAVAILABLE; a caller without a key is served to the end."""
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
        texts, _ = await read_rest(generating)

    assert sent_on.code() is refused.code() is grpc.StatusCode.UNAVAILABLE
    assert details(refused)["RetryInfo"].retry_delay.seconds == 1
    assert texts == ["a"]


async def test_a_stopping_server_cancels_keyless_jobs(
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


async def test_health_reports_readiness(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """SERVING with a ready worker, NOT_SERVING while draining; neither needs a key."""
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


async def test_health_without_a_worker_is_not_serving(settings: Settings, backend: Backend) -> None:
    async with serving(settings, backend) as (_, client):
        health = health_pb2_grpc.HealthStub(client.channel)
        requests = [health_pb2.HealthCheckRequest(service=service.full_name) for service in SERVICES]
        found = [(await health.Check(request)).status for request in requests]
    assert found == [health_pb2.HealthCheckResponse.NOT_SERVING] * len(SERVICES)


def reflect(client: Client, version: str, *requests: reflection_pb2.ServerReflectionRequest):
    """Call reflection under the name of a version; the messages are the same in both."""
    method = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return method(iter(requests), timeout=LIMIT_S)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_every_service(client: Client, version: str) -> None:
    """A client without the definition finds the services and their methods."""
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    [listed] = [each async for each in reflect(client, version, listing)]
    names = {each.name for each in listed.list_services_response.service}
    ours = {KSERVE, *(service.full_name for service in SERVICES)}
    assert names >= {*ours, *(f"grpc.reflection.{each}.ServerReflection" for each in ("v1", "v1alpha"))}
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in sorted(names)]
    described = [each async for each in reflect(client, version, *asked)]
    files = {
        each.original_request.file_containing_symbol: each.file_descriptor_response.file_descriptor_proto[0]
        for each in described
    }
    assert files.keys() == names
    assert b"CancelJob" in files[SERVICE.full_name]
    assert b".inference.ModelInferRequest" in files[KSERVE]
    assert b"grpc.reflection.v1.ServerReflectionRequest" in files["grpc.reflection.v1.ServerReflection"]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize(("given", "there"), [(None, False), (True, True)])
async def test_with_auth_reflection_needs_a_setting(
    settings: Settings, backend: Backend, given: bool | None, there: bool, version: str
) -> None:
    asked = settings.model_copy(update={"auth": True, "grpc_reflection": given})
    async with serving(asked, backend) as (_, client):
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        code = grpc.StatusCode.OK
        try:
            assert [each async for each in reflect(client, version, request)]
        except grpc.aio.AioRpcError as error:
            code = error.code()
    assert code == (grpc.StatusCode.OK if there else grpc.StatusCode.UNIMPLEMENTED)


async def test_a_port_is_shared_only_with_reuse_port(settings: Settings, backend: Backend) -> None:
    async with serving(settings, backend) as (_, client):
        with pytest.raises(ConfigError) as refused:
            async with serving(settings, backend, port=client.port):
                pass
    shared = settings.model_copy(update={"reuse_port": True})
    async with serving(shared, backend) as (_, client), serving(shared, backend, port=client.port) as (_, second):
        assert second.port == client.port

    assert refused.value.param == "grpc_port"


async def test_connections_are_bounded(settings: Settings, backend: Backend) -> None:
    """Connections beyond the bound and its headroom are closed; the others are kept."""
    most = HEADROOM + 1
    async with serving(settings.model_copy(update={"max_connections": 1}), backend) as (_, client):
        opened = [await asyncio.open_connection(HOST, client.port) for _ in range(most + 15)]
        kept = [not reader.at_eof() and bool(await reader.read(1)) for reader, _ in opened]
        for _, writer in opened:
            writer.close()

    assert sum(kept) == most
