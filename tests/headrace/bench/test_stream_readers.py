"""Readers of `headrace bench delivery`."""

from __future__ import annotations

import asyncio

import pytest

from headrace.bench.gateway.stream_readers import ANSWER_TOKENS, _Count, _read
from tests.support.waiting import LIMIT_S


async def test_an_answer_that_ends_while_it_is_counted_is_an_error():
    """Given a server that sends the end of an answer and keeps the connection, the run fails."""
    last = ANSWER_TOKENS - 1
    frames = f"id: {last}\nevent: token\ndata: {{}}\n\nid: {ANSWER_TOKENS}\nevent: done\ndata: {{}}\n\n"

    closed = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + frames.encode())
        await reader.read()  # until the client has gone
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(ConnectionError, match="ended too early"):
                await _read("127.0.0.1", port, "/events", _Count(counting=True))
            await closed.wait()
