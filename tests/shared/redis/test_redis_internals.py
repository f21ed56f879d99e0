"""The private attributes of redis-py that shared/redis/redis_internals.py uses still exist."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis

from shared.redis.embedded import HOST, EmbeddedServer
from shared.redis.redis_internals import NOT_ENOUGH_DATA, MasterConnection, mark_closed, reply_reader, transport_of


async def greeted(valkey: EmbeddedServer) -> Any:
    connection: Any = Redis.from_url(valkey.url).connection_pool.make_connection()
    await connection.connect()
    return connection


class Received(asyncio.Protocol):
    def __init__(self) -> None:
        self.data: asyncio.Queue[bytes] = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        self.data.put_nowait(data)


async def test_a_greeted_connection_can_be_taken_over(valkey: EmbeddedServer) -> None:
    """With transport and reader, replies are read without redis-py's streams."""
    connection = await greeted(valkey)
    received = Received()
    transport_of(connection).set_protocol(received)
    transport_of(connection).write(b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n")
    reader = reply_reader(connection)
    assert reader.gets() is NOT_ENOUGH_DATA
    async with asyncio.timeout(10):
        while (reply := reader.gets()) is NOT_ENOUGH_DATA:
            reader.feed(await received.data.get())
    assert reply == b"hi"
    mark_closed(connection)


async def test_a_connection_marked_closed_is_closed(valkey: EmbeddedServer) -> None:
    connection = await greeted(valkey)
    transport = transport_of(connection)
    mark_closed(connection)
    assert transport.is_closing()
    assert not connection.is_connected


async def test_a_master_connection_looks_its_host_up_each_time(valkey: EmbeddedServer) -> None:
    asked = 0

    async def find() -> tuple[str, int]:
        nonlocal asked
        asked += 1
        return HOST, valkey.port

    password = valkey.url.partition("://:")[2].partition("@")[0]
    connection = MasterConnection(find_master=find, password=password)
    for count in (1, 2):
        await connection.connect()
        assert asked == count
        await connection.disconnect()
