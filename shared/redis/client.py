"""The client of Redis or Valkey, and the translation of its failures into Headrace's errors."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
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
from shared.redis.error_counts import RedisErrors
from shared.redis.foreign import ForeignEntries
from shared.redis.multiplexer import Pipe
from shared.redis.node import Client, noticing
from shared.redis.redis_internals import MasterConnection, SecureMasterConnection
from shared.redis.sentinel import Master, Sentinels
from shared.redis.url import Host, RedisURL
from shared.runtime.timeouts import Timeouts

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
# Errors of Valkey and of Redis for a script with a command that the caller may not run.
SCRIPT_DENIED = ("ACL failure in script", "The user executing the script can't")
RETRY_AFTER_S = 1.0
MAX_ERROR_CHARS = 300  # of a server's error that are logged
# No automatic retries, and no CLIENT SETINFO, which the minimal ACL does not allow.
CONNECTION_OPTIONS: Mapping[str, Any] = {"protocol": 2, "driver_info": None, "socket_timeout": None}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RedisServer:
    """A client, and the seconds that a call to it may take.

    Headrace enforces the timeout itself: with a `socket_timeout`, redis-py sends through asyncio.wait_for, which on
    Python 3.11 can lose a cancellation. Nothing is retried automatically.
    """

    client: Client
    timeout: float
    foreign: ForeignEntries = field(default_factory=ForeignEntries)
    errors: RedisErrors = field(default_factory=RedisErrors)

    @classmethod
    def connect(cls, url: str, *, timeout: float) -> RedisServer:
        """Return a client of the server, the Sentinels' master or the Cluster at `url`; it connects when used.

        Raises ConfigError for a URL that `shared.redis.url` does not accept.
        """
        return cls(_client(RedisURL.parse(url), timeout), timeout)

    @cached_property
    def timeouts(self) -> Timeouts:
        """Timeouts of calls."""
        return Timeouts(self.timeout)

    def reaching(self, what: str) -> Reaching:
        """Return a context that raises Unavailable, with `what` in its message, if the server fails or is late."""
        return Reaching(self, what)


class Reaching:
    """Context of one or several calls; a class rather than a generator, since every token passes through it."""

    def __init__(self, server: RedisServer, what: str) -> None:
        self._server = server
        self._what = what
        self._timeout = server.timeouts.start()

    async def __aenter__(self) -> None:
        self._timeout.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._timeout.__exit__(kind, error, trace)
        except builtins.TimeoutError as late:
            error = late
        if isinstance(error, builtins.TimeoutError):
            self._server.client.drop_silent()
        if error is not None and (unavailable := _unavailable(self._what, error)) is not None:
            self._server.errors.note(error)
            raise unavailable from error


def _unavailable(what: str, error: BaseException) -> Unavailable | None:
    """Return the error for callers when the server fails; None for other errors."""
    if isinstance(error, AuthenticationError):
        return Unavailable(f"{what} refused the user or the password of redis_url", retry_after=RETRY_AFTER_S)
    if isinstance(error, TROUBLE):
        return Unavailable(f"{what} cannot be reached: {type(error).__name__}", retry_after=RETRY_AFTER_S)
    if not isinstance(error, ResponseError):
        return None
    if isinstance(error, NoPermissionError) or any(words in str(error) for words in SCRIPT_DENIED):
        log.error("redis_permission", what=what, error=str(error))
        return Unavailable(
            f"{what} refused a command: the Redis user lacks a permission", retry_after=RETRY_AFTER_S
        )
    # a full disk under the append-only file, or a replica link that the server insists on
    if str(error).startswith(("MISCONF", "NOREPLICAS")):
        return Unavailable(f"{what} refused a write: {error}", retry_after=RETRY_AFTER_S)
    # a key of another type, or a script that fails on foreign data: no reason for a process to end
    log.error("redis_refused", what=what, error=str(error)[:MAX_ERROR_CHARS])
    return Unavailable(f"{what} contains data that cannot be read", retry_after=RETRY_AFTER_S)


def _client(url: RedisURL, timeout: float) -> Client:
    options = {
        **CONNECTION_OPTIONS,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        **url.options,
    }

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
    sentinel_options = {**CONNECTION_OPTIONS, "socket_connect_timeout": timeout, **url.tls_options, **url.sentinel}
    sentinels = Sentinels(url.hosts, url.service, sentinel_options, tls=url.tls, timeout=timeout)
    kind = SecureMasterConnection if url.tls else MasterConnection
    return Master(pipe(kind, find_master=sentinels.master), sentinels)
