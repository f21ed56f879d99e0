"""Calls of one Redis or Valkey server: many commands in one round trip, and a connection of one's own.

It knows nothing of our keys, our scripts or our errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, TypeVar

import hiredis
import structlog
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, RedisError, ResponseError

Command = tuple[str, bytes]  # a key that it touches, "" if none, and the packed command

T = TypeVar("T")

log = structlog.get_logger(__name__)


def pack(*parts: Any) -> bytes:
    """A command as it goes over the wire; each part text, bytes or a number."""
    packed: bytes = hiredis.pack_command(parts)
    return packed


class NoticesResets(AbstractConnection):
    """uvloop raises RuntimeError for a write to a connection that was reset, where asyncio's own loop does not."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error


def noticing(kind: type[Connection]) -> type[Connection]:
    """A kind of connection, and it notices resets."""
    return type(kind.__name__, (NoticesResets, kind), {})


async def exchange(pool: ConnectionPool, packed: Sequence[bytes]) -> list[Any]:
    """Send all in one write and read as many replies, an error reply as the error that it stands for.

    Straight on a connection: this is every token's path, and redis-py's pipeline costs several times it.
    """
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_packed_command(b"".join(packed))
        return [await _reply(connection) for _ in packed]
    finally:
        await pool.release(connection)


async def _reply(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


async def arrived(connection: Connection, limit: float) -> list[Any]:
    """All replies that are there, waiting up to `limit` seconds for the first: one timer for a whole burst."""
    first = await connection.read_response(timeout=limit, disconnect_on_error=False)
    if first is None:
        return []
    found: list[Any] = [first]
    parser: Any = connection._parser._reader  # type: ignore[attr-defined]  # hiredis': redis-py has no name for it
    while (reply := parser.gets()) is not NOT_ENOUGH_DATA:
        found.append(reply)
    return found


async def connect(pool: ConnectionPool) -> Connection:
    """A connection that the pool does not count."""
    connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    await connection.connect()  # type: ignore[no-untyped-call]
    return connection


class Shared(Generic[T]):
    """One call for all who ask while it runs; it goes on when some of them give up waiting."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._call = call
        self._task: asyncio.Task[T] | None = None

    def start(self) -> asyncio.Task[T]:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._call())
            self._task.add_done_callback(_retrieve)
        return self._task

    async def __call__(self) -> T:
        return await asyncio.shield(self.start())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Whoever waited has seen the error; asyncio complains about one that nobody waited for."""
    if not task.cancelled():
        task.exception()


class Client(Redis):
    """One server: redis-py's commands, and what it lacks."""

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self._dropping = Shared(self._drop)

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The replies of all, in their order, in one round trip; an error reply is the error, not raised."""
        return await exchange(self.connection_pool, [packed for _, packed in commands])

    async def dedicated(self) -> Connection:
        """A connection that is the caller's, to disconnect in the end: for subscribing."""
        return await connect(self.connection_pool)

    async def primaries(self) -> list[Client]:
        """A client of each server that takes writes; they share this one's connections."""
        return [self]

    def drop_idle(self) -> None:
        """Close what waits in the pool, in the background: after a silence each may lead to a peer that is gone.

        Otherwise every one of them would cost its user the whole timeout before it is found out.
        """
        self._dropping.start()

    async def _drop(self) -> None:
        for pool in self.pools():
            try:
                await pool.disconnect(inuse_connections=False)
            except (RedisError, OSError):
                log.debug("redis_close_failed")  # it is closed all the same

    def pools(self) -> list[ConnectionPool]:
        return [self.connection_pool]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._dropping.stop()
        for pool in self.pools():
            await pool.disconnect()


async def first_answer(questions: Iterable[Awaitable[T | None]], limit: float) -> T:
    """The first answer that is not None; a hung or dead peer costs nothing while another answers.

    Raises ConnectionError when nobody knows within `limit` seconds.
    """
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        for answered in asyncio.as_completed(tasks, timeout=limit):
            try:
                answer = await answered
            except (RedisError, OSError):
                continue
            if answer is not None:
                return answer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise ConnectionError("nobody that was asked knows")
