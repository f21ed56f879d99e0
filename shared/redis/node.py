"""A client of one Redis or Valkey server: redis-py's commands over the connection that the process shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio import Connection, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError

from shared.redis.multiplexer import Pipe
from shared.redis.wire import connect

Command = tuple[str, bytes]  # a key that the command touches or "", and the packed command


def pack(*parts: Any) -> bytes:
    """Return a command in wire format; each part is text, bytes or a number."""
    packed: bytes = hiredis.pack_command(parts)
    return packed


@dataclass(frozen=True)
class WireKeys:
    """Keys of one call in wire format, as `pack_parts` returns them, and the first of them."""

    first: str
    count: int
    packed: bytes


def pack_parts(*parts: Any) -> bytes:
    """Return parts of a command in wire format, to be joined with others."""
    packed = pack(*parts)
    return packed[packed.index(b"\n") + 1 :]


def pack_call(head: Sequence[Any], keys: WireKeys, tail: Sequence[Any]) -> bytes:
    """Return the command of these parts: `head`, the keys, `tail`."""
    count = len(head) + keys.count + len(tail)
    return b"*%d\r\n%b%b%b" % (count, pack_parts(*head), keys.packed, pack_parts(*tail))


class NoticesResets(AbstractConnection):
    """Connection that reports a reset as ConnectionError; uvloop raises RuntimeError for a write to one."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as error:
            raise ConnectionError(str(error)) from error


def noticing(kind: type[Connection]) -> type[Connection]:
    """Return a connection class that notices resets."""
    return type(kind.__name__, (NoticesResets, kind), {})


class Client(Redis):
    """Client of one server; no pipelines and no transactions.

    Attributes:
        joins_slots: True if the keys of one script call may have different hash tags.
    """

    joins_slots = True

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
        """Return a key that the command touches, for routing; one server needs none."""
        return ""

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return all replies in order, in one round trip; an error reply is returned as an exception."""
        return await self._pipe.exchange([packed for _, packed in commands])

    async def dedicated(self) -> Connection:
        """Return a connection of the caller's own, for subscribing; the caller closes it."""
        return await connect(self.connection_pool)

    async def primaries(self) -> list[Client]:
        """Return a client of each server that accepts writes; they share this client's connections."""
        return [self]

    def drop_silent(self) -> None:
        """Replace connections on which replies are long overdue, since the peer may be gone.

        Otherwise every caller would wait for its full timeout until the system notices.
        """
        for pipe in self._pipes():
            pipe.drop_silent()

    def _pipes(self) -> list[Pipe]:
        return [self._pipe]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        for pipe in self._pipes():
            await pipe.close()
