"""The connection to one Redis or Valkey server, shared by all callers of the process: commands are pipelined.

No caller waits for a free connection, and concurrent calls share reads and writes. Commands that block on the
server must not be sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import ConnectionError, ReadOnlyError

from shared.redis.single_flight import Shared
from shared.redis.wire import Wire, connect

MAX_BUFFERED_BYTES = 1 << 20  # that wait to be written, before callers wait too
MAX_SHARED_BYTES = 1 << 12  # of calls that share a write: the server has nothing to do until it gets a longer one


@dataclass
class _Call:
    """Commands that were sent together, and their replies so far."""

    wanted: int
    done: asyncio.Future[list[Any]]
    replies: list[Any] = field(default_factory=list)


class _Link(Wire):
    """One connection and the calls on it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._waiting: deque[_Call] = deque()
        self._writable = asyncio.Event()
        self._writable.set()
        self._retired = False
        self._unsent = bytearray()  # of the calls since the loop's last round, which share a write
        self._transport.set_write_buffer_limits(MAX_BUFFERED_BYTES)

    @property
    def usable(self) -> bool:
        return self.open and not self._retired

    async def exchange(self, packed: Sequence[bytes]) -> list[Any]:
        if not self._writable.is_set():
            await self._writable.wait()
        if not self.usable:
            raise ConnectionError("the connection was lost")
        call = _Call(len(packed), self._loop.create_future())
        if not self._waiting:
            self.heard = self._loop.time()  # no reply was due before
        self._waiting.append(call)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        for command in packed:
            self._unsent += command
        if len(self._unsent) > MAX_SHARED_BYTES:
            self._flush()
        return await call.done

    def _flush(self) -> None:
        """Send what was collected; uvloop makes a system call of each write."""
        if self._unsent:
            unsent, self._unsent = self._unsent, bytearray()
            self.send(unsent)

    def silent(self, seconds: float) -> bool:
        """Return whether replies have been due for that long."""
        return bool(self._waiting) and self.quiet() >= seconds

    def retire(self, within: float) -> None:
        """Accept no further calls; close once all are answered, or after `within` seconds."""
        self._retired = True
        if self._waiting:
            self._loop.call_later(within, self.abort)
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._retired and not self._waiting:
            self._transport.close()

    def take(self, reply: Any) -> None:
        if not self._waiting:
            self.abort()  # a reply without a call: the next ones could go to the wrong callers
            return
        if isinstance(reply, ReadOnlyError):  # the server is no longer the master
            self._retired = True
        call = self._waiting[0]
        call.replies.append(reply)
        if len(call.replies) == call.wanted:
            self._waiting.popleft()
            if not call.done.done():  # otherwise its caller was cancelled
                call.done.set_result(call.replies)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._writable.set()
        for call in self._waiting:
            if not call.done.done():
                call.done.set_exception(ConnectionError(f"the connection was lost: {error!r}"))
        self._waiting.clear()


class Pipe:
    """Calls to one server, over a connection that is opened when it is needed.

    Args:
        pool: makes the connection, without keeping it.
        timeout: seconds in which it must open; also the usual limit of a call.
    """

    def __init__(self, pool: ConnectionPool, timeout: float) -> None:
        self.pool = pool
        self._timeout = timeout
        self._link: _Link | None = None
        self._retired: list[_Link] = []
        self._linking = Shared(self._connect)

    async def exchange(self, packed: Sequence[bytes]) -> list[Any]:
        """Return all replies in order; an error reply is returned as an exception. Nothing is sent twice.

        Raises redis' ConnectionError and OSError. A cancelled caller does not affect the others.
        """
        if not packed:
            return []
        link = self._link
        if link is None or not link.usable:
            link = await self._linking()
        return await link.exchange(packed)

    async def _connect(self) -> _Link:
        async with asyncio.timeout(self._timeout):  # also for a peer that never answers the handshake
            self._link = _Link(await connect(self.pool))
        return self._link

    def drop_silent(self) -> None:
        """Use a new connection if replies have been due for half the timeout: the peer may be gone."""
        if self._link is not None and self._link.silent(self._timeout / 2):
            self._link.retire(self._timeout)
            self._retired = [*(link for link in self._retired if link.open), self._link]
            self._link = None

    async def close(self) -> None:
        await self._linking.stop()
        for link in (*self._retired, self._link):
            if link is not None:
                await link.close()
        self._retired, self._link = [], None
