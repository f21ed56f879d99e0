"""Connects to Redis or Valkey as the settings say, runs our Lua, and turns its trouble into our errors."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import structlog
from redis.asyncio import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from shared.errors import Unavailable
from shared.redis.cluster import Cluster
from shared.redis.foreign import ForeignEntries
from shared.redis.multiplexer import Pipe
from shared.redis.node import Client, noticing
from shared.redis.redis_internals import MasterConnection, SecureMasterConnection
from shared.redis.sentinel import Master, Sentinels
from shared.redis.url import Host, RedisURL

TROUBLE = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ClusterDownError,
    TryAgainError,
    ReadOnlyError,
    OutOfMemoryError,
    OSError,
)
# How Valkey, and Redis, say that a script's caller may not run one of its commands.
FORBIDDEN = ("ACL failure in script", "The user executing the script can't")
RETRY_AFTER = 1.0
MOST_ERROR = 300  # characters of a server's error that are logged
# Neither retries nor a greeting: nothing is sent twice by itself, and the least ACL has no CLIENT SETINFO.
QUIET: Mapping[str, Any] = {"protocol": 2, "driver_info": None, "socket_timeout": None}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RedisServer:
    """A client and the time that a call of it may take, in seconds.

    The deadline is ours: with a `socket_timeout` redis-py sends through asyncio.wait_for, which on Python 3.11 can
    lose a cancellation. Nothing is sent twice by itself.
    """

    client: Client
    timeout: float
    foreign: ForeignEntries = field(default_factory=ForeignEntries)

    @classmethod
    def connect(cls, url: str, *, timeout: float) -> RedisServer:
        """A client of the server, the Sentinels' master or the Cluster that `url` names; connects when used.

        Raises ConfigError for a URL that is not one of those of `shared.redis.url`.
        """
        return cls(_client(RedisURL.parse(url), timeout), timeout)

    def reaching(self, what: str) -> Reaching:
        """Raise Unavailable when the time is over or the server is in trouble, in a sentence about `what`."""
        return Reaching(self, what)


class Reaching:
    """Holds a call, or several; a class, since this is every token's path."""

    def __init__(self, server: RedisServer, what: str) -> None:
        self._server = server
        self._what = what
        self._limit = asyncio.timeout(server.timeout)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except builtins.TimeoutError as late:
            error = late
        if isinstance(error, builtins.TimeoutError):
            self._server.client.drop_silent()
        if error is not None and (told := _told(self._what, error)) is not None:
            raise told from error


def _told(what: str, error: BaseException) -> Unavailable | None:
    """What callers are told of trouble with the server; None for what is no such trouble."""
    if isinstance(error, AuthenticationError):
        return Unavailable(f"{what} refuses the user or the password of redis_url", retry_after=RETRY_AFTER)
    if isinstance(error, TROUBLE):
        return Unavailable(f"{what} cannot be reached: {type(error).__name__}", retry_after=RETRY_AFTER)
    if not isinstance(error, ResponseError):
        return None
    if isinstance(error, NoPermissionError) or any(words in str(error) for words in FORBIDDEN):
        log.error("redis_permission", what=what, error=str(error))
        return Unavailable(f"{what} refuses a command: the Redis user lacks a permission", retry_after=RETRY_AFTER)
    # a full disk under the append-only file, or a replica link that the server insists on
    if str(error).startswith(("MISCONF", "NOREPLICAS")):
        return Unavailable(f"{what} refuses writes: {error}", retry_after=RETRY_AFTER)
    # a key of another type, or a script that fails over what another program wrote: no reason for a process to end
    log.error("redis_refused", what=what, error=str(error)[:MOST_ERROR])
    return Unavailable(f"{what} holds data that cannot be read", retry_after=RETRY_AFTER)


def _client(url: RedisURL, timeout: float) -> Client:
    options = {**QUIET, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0), **url.options}

    def pipe(kind: type[Any], **place: Any) -> Pipe:
        return Pipe(ConnectionPool(connection_class=noticing(kind), **options, **place), timeout)

    def to(host: Host) -> Pipe:
        return pipe(SSLConnection if url.tls else Connection, host=host[0], port=host[1])

    if url.kind == "cluster":
        return Cluster(url.hosts, to, timeout)
    if url.kind == "socket":
        return Client(pipe(UnixDomainSocketConnection))
    if url.kind == "server":
        return Client(to(url.hosts[0]))
    asked = {**QUIET, "socket_connect_timeout": timeout, **url.tls_options, **url.sentinel}
    sentinels = Sentinels(url.hosts, url.service, asked, tls=url.tls, timeout=timeout)
    kind = SecureMasterConnection if url.tls else MasterConnection
    return Master(pipe(kind, find_master=sentinels.master), sentinels)
