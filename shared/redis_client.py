"""Connects to Redis or Valkey as the settings say, runs our Lua, and turns its trouble into our errors."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from shared.errors import Unavailable

TROUBLE = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OutOfMemoryError, OSError)
RETRY_AFTER = 1.0
CONNECTIONS = 64  # of one process; more callers than that wait their turn


class _NoticesResets(AbstractConnection):
    """uvloop raises RuntimeError for a write to a connection that was reset, where asyncio's own loop does not."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error


@dataclass(frozen=True)
class RedisServer:
    """A client and the time that a call of it may take, in seconds.

    The deadline is ours: with a `socket_timeout` redis-py sends through asyncio.wait_for, which on Python 3.11 can
    lose a cancellation. Nothing is sent twice by itself.
    """

    client: Redis
    timeout: float

    @classmethod
    def connect(cls, url: str, *, timeout: float) -> RedisServer:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=None,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        # the URL chose the class: plain, TLS or a socket of the file system
        pool.connection_class = type("Connection", (_NoticesResets, pool.connection_class), {})
        return cls(Redis(connection_pool=pool), timeout)

    @asynccontextmanager
    async def reaching(self, what: str) -> AsyncIterator[None]:
        """Raise Unavailable when the time is over or the server is in trouble, in a sentence about `what`."""
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except TROUBLE as error:
            raise Unavailable(
                f"{what} cannot be reached: {type(error).__name__}", retry_after=RETRY_AFTER
            ) from error
        except ResponseError as error:
            # a full disk under the append-only file, or a replica link that the server insists on
            if str(error).startswith(("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")):
                raise Unavailable(f"{what} refuses writes: {error}", retry_after=RETRY_AFTER) from error
            raise


class Script:
    """A Lua file whose first argument names one of its commands; loaded again after a server restart."""

    def __init__(self, redis: Redis, path: Path) -> None:
        self._redis = redis
        self._text = path.read_text(encoding="utf-8")
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, command: str, keys: Sequence[str], *args: Any) -> Any:
        try:
            return await self._redis.evalsha(self._sha, len(keys), *keys, command, *args)
        except NoScriptError:
            return await self._redis.eval(self._text, len(keys), *keys, command, *args)

    async def many(self, command: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Many calls in one round trip. Calls that met a server without the script are made again."""
        results: list[Any] = await self._pipeline(command, calls)
        missed = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
        if missed:
            await self._redis.script_load(self._text)
            again = await self._pipeline(command, [calls[i] for i in missed])
            for i, result in zip(missed, again, strict=True):
                results[i] = result
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    async def _pipeline(self, command: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Straight on a connection: this is every token's path, and redis-py's pipeline costs several times it."""
        commands = [("EVALSHA", self._sha, len(keys), *keys, command, *args) for keys, args in calls]
        pool = self._redis.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(b"".join(hiredis.pack_command(parts) for parts in commands))
            return [await self._reply(connection) for _ in commands]
        finally:
            await pool.release(connection)

    async def _reply(self, connection: Connection) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as error:
            return error
