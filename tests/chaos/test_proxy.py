"""Fault proxy alone: each fault has its effect, and heals."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.proxy import FaultProxy

Pair = tuple[FaultProxy, asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


@pytest_asyncio.fixture(loop_scope="package")
async def pair() -> AsyncIterator[Pair]:
    """Proxy before an echo server, and an open connection through it."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, FaultProxy("127.0.0.1", port).listening() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await echoed(reader, writer, b"hello")
        yield proxy, reader, writer
        writer.transport.abort()


async def echoed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Send data, and return whether the same data comes back."""
    writer.write(data)
    return await reader.readexactly(len(data)) == data


async def receives_nothing(reader: asyncio.StreamReader) -> bool:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.readexactly(1)
    return True


async def test_delay_and_rate_take_their_time(pair: Pair) -> None:
    proxy, reader, writer = pair
    begin = time.monotonic()
    proxy.to_server.delay = 0.1
    assert await echoed(reader, writer, b"late")
    assert time.monotonic() - begin >= 0.1
    proxy.heal()
    begin = time.monotonic()
    proxy.to_client.rate = 1000.0
    assert await echoed(reader, writer, b"x" * 100)
    assert await echoed(reader, writer, b"x")  # the delay follows the piece
    assert time.monotonic() - begin >= 0.1


async def test_split_writes_arrive_in_pieces(pair: Pair) -> None:
    proxy, reader, writer = pair
    proxy.to_client.split, proxy.to_client.rate = 3, 300.0
    writer.write(b"0123456789")
    assert await reader.read(100) == b"012"
    assert await reader.readexactly(7) == b"3456789"


async def test_a_cut_resets_both_sides_and_accepts_the_next(pair: Pair) -> None:
    proxy, reader, _ = pair
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    again = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await echoed(*again, b"again")
    again[1].transport.abort()


async def test_a_healed_partition_passes_held_bytes_on(pair: Pair) -> None:
    proxy, reader, writer = pair
    proxy.partition()
    writer.write(b"held")
    new_reader, new_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    new_writer.write(b"new")
    assert await receives_nothing(reader)
    assert await receives_nothing(new_reader)
    proxy.heal()
    assert await reader.readexactly(4) == b"held"
    assert await new_reader.readexactly(3) == b"new"
    new_writer.transport.abort()


async def test_a_blackhole_leaves_open_connections_alone(pair: Pair) -> None:
    proxy, reader, writer = pair
    proxy.blackhole()
    new_reader, new_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    new_writer.write(b"new")
    assert await echoed(reader, writer, b"old")
    assert await receives_nothing(new_reader)
    new_writer.transport.abort()


async def test_a_half_open_connection_is_cut_when_healed(pair: Pair) -> None:
    proxy, reader, writer = pair
    proxy.halve()
    writer.write(b"lost")
    assert await receives_nothing(reader)
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
