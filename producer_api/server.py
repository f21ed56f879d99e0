"""Runs the front end as a process: listens, serves until a signal, then drains."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

from producer_api.admin_app import MAX_CONNECTIONS, create_admin_app
from producer_api.app import create_app
from producer_api.background.sweeper import Sweeper
from producer_api.http.protocol import HEADROOM, Connection, ConnectionLimits
from producer_api.http.uvicorn_internals import forget_signals
from producer_api.services import Context
from producer_api.webhooks.sender import WebhookSender
from shared.backend import Backend
from shared.errors import ConfigError
from shared.runtime.bind_safety import check_exposure
from shared.runtime.gc_tuning import settle
from shared.runtime.logging import configure_logging, log_library_warnings
from shared.runtime.sockets import place_of, unbound, url_of
from shared.settings import Settings
from shared.tracing.opening import open_tracer

BACKLOG = 2048
LAST_FRAMES_S = 1  # the end of the grace time, for the last frames
DRAIN_POLL_S = 0.05

log = structlog.get_logger(__name__)
Work = Callable[[], Coroutine[Any, Any, None]]


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish within `settings.grace` seconds.

    Raises:
        ConfigError: the address cannot be bound, or must not be served without authentication.
        Unavailable: Redis does not answer at the start.
    """
    check_exposure(settings)
    configure_logging(settings, process="api")
    log_library_warnings("uvicorn", "grpc")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    redis = Backend.open(settings, open_tracer(settings, "api"))
    try:
        await redis.start()
        async with _queued(redis, settings) as backend:
            await _listen(backend, settings)
    finally:
        await redis.close()


@asynccontextmanager
async def _queued(backend: Backend, settings: Settings) -> AsyncIterator[Backend]:
    """Yield the backend with the queue that the settings name."""
    if settings.queue != "kafka":
        yield backend
        return
    try:
        from producer_api.admission.kafka_queue import with_kafka_queue  # noqa: PLC0415  kafka-python is an optional dependency
    except ImportError as error:
        raise ConfigError(f"queue kafka needs the package headrace[kafka]: {error}", param="queue") from error
    async with with_kafka_queue(backend, settings) as through:
        yield through


async def _listen(backend: Backend, settings: Settings) -> None:
    with ExitStack() as sockets:
        listener = sockets.enter_context(listen(settings))
        server, sender = Server(settings, backend), WebhookSender(settings, backend)
        await server.context.start()
        settle()
        log.info("listening", message=f"Headrace API on {url_of(*listener.getsockname()[:2])}")
        work: list[Work] = [server.sweeper().run, sender.run, server.settle]
        if settings.admin_port is not None:
            admin_listener = sockets.enter_context(bind(settings, "admin_host", "admin_port"))
            log.info("listening", message=f"administration on {url_of(*admin_listener.getsockname()[:2])}")
            work.append(partial(AdminServer(server.context).serve, sockets=[admin_listener]))
        await _serve_beside(server, listener, work)


async def _serve_beside(server: Server, listener: socket.socket, work: Sequence[Work]) -> None:
    """Serve HTTP, and gRPC if it is set, while the work runs."""
    async with AsyncExitStack() as rpc:
        await rpc.enter_async_context(_rpc(server.context))  # before the group, which would wrap its error
        async with asyncio.TaskGroup() as tasks:
            upkeep = [tasks.create_task(each()) for each in work]
            await server.serve(sockets=[listener])
            await rpc.aclose()
            for task in upkeep:
                task.cancel()


@asynccontextmanager
async def _rpc(context: Context) -> AsyncIterator[None]:
    """Serve gRPC too, if grpc_port is set."""
    if context.settings.grpc_port is None:
        yield
        return
    try:
        from producer_api.rpc.server import serving  # noqa: PLC0415  grpcio is an optional dependency
    except ImportError as error:
        raise ConfigError(f"grpc_port needs the package headrace[grpc]: {error}", param="grpc_port") from error
    async with serving(context, farewell=LAST_FRAMES_S) as port:
        log.info("listening", message=f"gRPC on {place_of(context.settings.host, port)}")
        yield


def listen(settings: Settings) -> socket.socket:
    """Return the API's listening socket. Raises ConfigError, naming the setting."""
    check_exposure(settings)
    return bind(settings, "host", "port", shared=settings.reuse_port)


def bind(settings: Settings, host_name: str, port_name: str, *, shared: bool = False) -> socket.socket:
    """Return a listening socket for the address in two settings; `shared` lets other processes listen too.

    Raises ConfigError.
    """
    host, port = getattr(settings, host_name), getattr(settings, port_name)
    try:
        listener, address = unbound(host, port)
    except OSError as error:
        raise ConfigError(
            f"{host_name} must be an address of this machine, got {host}: {error.strerror}", param=host_name
        ) from None
    try:
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{port_name} {port} on {host} cannot be bound: {error.strerror}; choose another port", param=port_name
        ) from None
    return listener


class Server(uvicorn.Server):
    """uvicorn server of the API that drains on shutdown, and then returns instead of raising the signal again."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        app = create_app(settings, backend)
        self.context: Context = app.state.context
        self._grace = settings.grace
        self._reuse_port = settings.reuse_port
        super().__init__(_config(app, settings, settings.max_connections))

    def sweeper(self) -> Sweeper:
        backend, catalog = self.context.backend, self.context.catalog

        async def models() -> list[str]:
            return [info.name for info in await catalog.models()]

        return Sweeper(backend, models)

    async def settle(self) -> None:
        """Settle the usage of ended requests, until cancelled."""
        if (settler := self.context.settler()) is not None:
            await settler.run()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End at once the answers that can be resumed elsewhere, the others at the end of the grace time.

        Until then, new requests get a 503; with `reuse_port`, other processes on the port get new connections.
        """
        open_answers = self.context.open_answers
        open_answers.drain()
        if self._reuse_port:
            for server in self.servers:
                server.close()
        end = time.monotonic() + self._grace - LAST_FRAMES_S
        while open_answers and not self.force_exit and time.monotonic() < end:  # noqa: ASYNC110  a signal sets force_exit
            await asyncio.sleep(DRAIN_POLL_S)
        open_answers.stop()
        await super().shutdown(sockets)
        await self.context.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            forget_signals(self)


class AdminServer(uvicorn.Server):
    """uvicorn server of the admin port; it runs until cancelled, since the API's server handles signals."""

    def __init__(self, context: Context) -> None:
        super().__init__(_config(create_admin_app(context), context.settings, MAX_CONNECTIONS))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: FastAPI, settings: Settings, connections: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(  # type: ignore[arg-type]
            Connection,
            limits=ConnectionLimits.from_settings(settings, connections + HEADROOM),
            endpoints=app.state.endpoints,
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type]  # any number of seconds works
        timeout_graceful_shutdown=LAST_FRAMES_S,
    )
