"""gRPC server, on its own port in the process of the HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from producer_api.http.protocol import HEADROOM
from producer_api.routes.health import readiness
from producer_api.rpc.catalog import services
from producer_api.rpc.handler import MethodHandlers
from producer_api.rpc.reflection import add_reflection
from producer_api.services import Context
from shared.errors import ConfigError
from shared.runtime.sockets import place_of
from shared.settings import Settings

MAX_CONCURRENT_STREAMS = 1024  # calls at a time over one connection
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_IDLE_MS = 300_000  # how long a connection without calls is kept
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = (
    30_000,
    20_000,
)  # silence before a ping; time to answer it
MIN_PING_INTERVAL_MS = 10_000  # between a client's own pings
HEALTH_INTERVAL_S = 1.0  # between updates of the health service


@asynccontextmanager
async def serving(context: Context, *, farewell: float) -> AsyncIterator[int]:
    """Serve at `grpc_port` and yield the port; calls get `farewell` seconds to end. Raises ConfigError."""
    settings = context.settings
    most = settings.max_connections
    server = grpc.aio.server(options=_options(settings), maximum_concurrent_rpcs=most + HEADROOM)
    handlers = MethodHandlers(context, most)
    served = services(context)
    server.add_generic_rpc_handlers([handlers.handlers(service) for service in served])
    names = [service.name for service in served]
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if settings.grpc_reflection or (settings.grpc_reflection is None and not settings.auth):
        add_reflection(server, (*names, health.SERVICE_NAME))
    port = _bind(server, settings)
    await _update_health(context, servicer, names)
    await server.start()
    updating = asyncio.create_task(_keep_health_updated(context, servicer, names))
    try:
        yield port
    finally:
        updating.cancel()
        await server.stop(farewell)
        await asyncio.gather(updating, return_exceptions=True)


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    assert settings.grpc_port is not None
    try:
        return server.add_insecure_port(place_of(settings.host, settings.grpc_port))
    except RuntimeError:
        raise ConfigError(
            f"cannot listen on grpc_port {settings.grpc_port} of {settings.host}; choose another port",
            param="grpc_port",
        ) from None


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_allowed_incoming_connections", settings.max_connections + HEADROOM),
        ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", MAX_IDLE_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ]


async def _update_health(context: Context, servicer: health.aio.HealthServicer, names: Sequence[str]) -> None:
    """Report the state of /ready for the server and for each service that needs workers."""
    ready = (await readiness(context)).ready
    status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in (health.OVERALL_HEALTH, *names):
        await servicer.set(name, status)


async def _keep_health_updated(context: Context, servicer: health.aio.HealthServicer, names: Sequence[str]) -> None:
    while True:
        await asyncio.sleep(HEALTH_INTERVAL_S)
        await _update_health(context, servicer, names)
