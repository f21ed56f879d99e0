"""Connections that redis-py opened, read and written without its streams: each reply is delivered as it arrives."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import ConnectionError

from shared.redis.redis_internals import NOT_ENOUGH_DATA, mark_closed, reply_reader, transport_of


class Wire(asyncio.Protocol, ABC):
    """One open connection, until it is lost.

    Args:
        connection: an open one of redis-py; its reader and transport are taken over.

    Attributes:
        heard: time of the last read, by the loop's clock.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._parser = reply_reader(connection)
        self._transport = transport_of(connection)
        self._loop = asyncio.get_running_loop()
        self.heard = self._loop.time()
        self._lost: asyncio.Future[Exception] = self._loop.create_future()
        self._transport.set_protocol(self)

    @property
    def open(self) -> bool:
        return not self._transport.is_closing()

    def send(self, packed: bytes | bytearray) -> None:
        """Send packed commands; do nothing if the connection is closed."""
        if self.open:
            self._transport.write(packed)

    @abstractmethod
    def take(self, reply: Any) -> None:
        """Handle a reply; an error reply is an exception."""

    def quiet(self) -> float:
        """Return the seconds since the last read."""
        return self._loop.time() - self.heard

    async def stay(self, seconds: float) -> None:
        """Wait. Raises the error with which the connection is lost meanwhile."""
        await asyncio.wait([self._lost], timeout=seconds)
        if self._lost.done():
            raise self._lost.result()

    async def close(self, error: Exception | None = None) -> None:
        """Close at once; `error` is the reason."""
        self.abort(error)
        await asyncio.wait([self._lost])

    def abort(self, error: Exception | None = None) -> None:
        if error is not None and not self._lost.done():
            self._lost.set_result(error)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not NOT_ENOUGH_DATA:
            self.take(reply)

    def connection_lost(self, error: Exception | None) -> None:
        mark_closed(self._connection)  # redis-py warns about a connection that it believes to be open
        if not self._lost.done():
            self._lost.set_result(ConnectionError(f"the connection was lost: {error!r}"))


async def connect(pool: ConnectionPool) -> Connection:
    """Return an open connection that the pool does not count."""
    connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:  # a cancelled call would leave the socket to the garbage collector
        mark_closed(connection)
        raise
    return connection
