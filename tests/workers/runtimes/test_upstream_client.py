"""Exchange with an upstream server over a connection that is used again."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.client_proto import ResponseHandler

from shared.models.upstream import UpstreamAddress
from tests.support.fake_upstream import DONE, HOST, text_chunk
from tests.support.waiting import LIMIT_S
from workers.runtimes.upstream.client import UpstreamClient

LONG_FIELD = b"x-policy: " + b"y" * 60_000  # less than other clients take


def response(text: str) -> bytes:
    body = text_chunk(text, "stop") + DONE
    fields = (b"HTTP/1.1 200 OK", b"content-type: text/event-stream", b"content-length: %d" % len(body), LONG_FIELD)
    return b"\r\n".join(fields) + b"\r\n\r\n" + body


async def test_an_answer_to_no_request_is_given_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server that answers once more while the connection is idle."""
    connections: list[asyncio.StreamWriter] = []
    requests = 0
    received = asyncio.Event()
    take = ResponseHandler.data_received

    def note(self: ResponseHandler, data: bytes) -> None:
        take(self, data)
        if b" stray" in data:
            received.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        connections.append(writer)
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n{}")
            requests += 1
            writer.write(response(f" {requests}"))
        writer.close()

    monkeypatch.setattr(ResponseHandler, "data_received", note)
    server = await asyncio.start_server(serve, HOST, 0)
    client = UpstreamClient(UpstreamAddress(f"http://{HOST}:{server.sockets[0].getsockname()[1]}/v1", "key"))

    async def ask() -> str:
        found = [data async for events in client.events("/completions", b"{}") for data in events]
        return "".join([client.parse(data).choices[0].text or "" for data in found])

    async with asyncio.timeout(LIMIT_S):
        assert [await ask(), await ask(), len(connections)] == [" 1", " 2", 1]
        connections[0].write(response(" stray"))
        await received.wait()
        assert [await ask(), await ask(), len(connections)] == [" 3", " 4", 2]
        await client.close()
        server.close()
        await server.wait_closed()
