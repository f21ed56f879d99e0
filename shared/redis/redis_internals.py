"""The private attributes of redis-py that Headrace uses; tests/shared/redis/test_redis_internals.py covers each.

redis-py has no public way to hand a greeted connection over to another reader, or to choose its host per connect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis._parsers import hiredis
from redis.asyncio import Connection, SSLConnection

from shared.redis.url import Host

NOT_ENOUGH_DATA: Any = hiredis.NOT_ENOUGH_DATA


def reply_reader(connection: Any) -> Any:
    """Return the hiredis reader of a connection: `feed` takes bytes, `gets` a reply or NOT_ENOUGH_DATA."""
    return connection._parser._reader


def transport_of(connection: Any) -> asyncio.Transport:
    transport: asyncio.Transport = connection._writer.transport
    return transport


def mark_closed(connection: Any) -> None:
    """Close the socket without waiting; a connection that redis-py believes open warns when it is collected."""
    connection._close()


class MasterConnection(Connection):
    """Looks up the host each time it connects."""

    def __init__(self, *, find_master: Callable[[], Awaitable[Host]], **options: Any) -> None:
        self._find_master = find_master
        super().__init__(**options)

    async def _connect(self) -> None:
        self.host, self.port = await self._find_master()
        await super()._connect()  # type: ignore[no-untyped-call]


class SecureMasterConnection(MasterConnection, SSLConnection):
    """MasterConnection with TLS."""
