"""A client of one Redis or Valkey server: redis-py's commands, over the connection that all of the process share.

It knows nothing of our keys, our scripts or our errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError

from shared.redis.multiplexer import Pipe
from shared.redis.wire import connect

Command = tuple[str, bytes]  # a key that it touches, "" if none, and the packed command


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


class Client(Redis):
    """One server's commands; no pipelines and no transactions."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(connection_pool=pipe.pool)
        self._pipe = pipe

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        name = str(args[0])
        [reply] = await self.exchange([(self._key_of(args), pack(*name.split(), *args[1:]))])
        if isinstance(reply, Exception):
            raise reply
        options.pop("keys", None)
        callback = self.response_callbacks.get(name)
        return callback(reply, **options) if callback else reply

    def _key_of(self, args: Sequence[Any]) -> str:
        """A key that the command touches; one server has them all."""
        return ""

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The replies of all, in their order, in one round trip; an error reply is the error, not raised."""
        return await self._pipe.exchange([packed for _, packed in commands])

    async def dedicated(self) -> Connection:
        """A connection that is the caller's, to disconnect in the end: for subscribing."""
        return await connect(self.connection_pool)

    async def primaries(self) -> list[Client]:
        """A client of each server that takes writes; they share this one's connections."""
        return [self]

    def drop_silent(self) -> None:
        """Call over new connections where replies have been due for long, since the peer may be gone.

        Otherwise every caller would wait for it as long as it may, until the system finds out.
        """
        for pipe in self._pipes():
            pipe.drop_silent()

    def _pipes(self) -> list[Pipe]:
        return [self._pipe]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        for pipe in self._pipes():
            await pipe.close()
