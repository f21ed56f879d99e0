"""Serves the methods at a port of its own, beside the HTTP server of the same process and from the same parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from producer_api.http.protocol import HEADROOM
from producer_api.routes.health import readiness
from producer_api.rpc.handler import Endpoints
from producer_api.rpc.service import SERVICE, Inference
from producer_api.services import Context
from shared.errors import ConfigError
from shared.runtime.sockets import place_of
from shared.settings import Settings

STREAMS = 1024  # calls at a time over one connection
HANDSHAKE = 10_000  # milliseconds that a connection may take to begin
IDLE = 300_000  # milliseconds that a connection without calls is kept
PING, PONG = 30_000, 20_000  # milliseconds until a silent peer is asked whether it lives, and may take to answer
OFTEN = 10_000  # least milliseconds between a client's own pings
LOOK = 1.0  # seconds between looks at what health tells


@asynccontextmanager
async def serving(context: Context, *, farewell: float) -> AsyncIterator[int]:
    """A server at `grpc_port`; its port. At the end calls have `farewell` seconds. Raises ConfigError."""
    settings = context.settings
    most = settings.max_connections
    server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=most + HEADROOM)
    endpoints = Endpoints(context, SERVICE, most)
    handlers = {method.name: endpoints.handler(method) for method in Inference(context).methods()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    told = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(told, server)
    if settings.grpc_reflection or (settings.grpc_reflection is None and not settings.auth):
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = _bind(server, settings)
    await _tell_health(context, told)
    await server.start()
    telling = asyncio.create_task(_keep_telling(context, told))
    try:
        yield port
    finally:
        telling.cancel()
        await server.stop(farewell)
        await asyncio.gather(telling, return_exceptions=True)


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    assert settings.grpc_port is not None
    try:
        return server.add_insecure_port(place_of(settings.host, settings.grpc_port))
    except RuntimeError:
        raise ConfigError(
            f"grpc_port {settings.grpc_port} on {settings.host} cannot be listened on; choose another",
            param="grpc_port",
        ) from None


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_allowed_incoming_connections", settings.max_connections + HEADROOM),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE),
        ("grpc.max_connection_idle_ms", IDLE),
        ("grpc.keepalive_time_ms", PING),
        ("grpc.keepalive_timeout_ms", PONG),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", OFTEN),
    ]


async def _tell_health(context: Context, told: health.aio.HealthServicer) -> None:
    """What /ready tells, for the server as a whole and for the service."""
    ready = (await readiness(context)).ready
    status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in (health.OVERALL_HEALTH, SERVICE):
        await told.set(name, status)


async def _keep_telling(context: Context, told: health.aio.HealthServicer) -> None:
    while True:
        await asyncio.sleep(LOOK)
        await _tell_health(context, told)
