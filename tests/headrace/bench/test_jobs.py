"""Benchmark client that sends jobs at a rate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import pytest

from headrace.bench.gateway.jobs import submit_at_rate
from headrace.bench.harness.load import Target
from shared.errors import HeadraceError

JOB = {"model": "m", "prompt": "p"}


class Server:
    """Server that answers each request with the next of `statuses`, and then always with the last."""

    def __init__(self, *statuses: str) -> None:
        self._statuses = list(statuses)
        self.connections = 0
        self.heads: list[bytes] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError), closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length)) == JOB
                status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nbody".encode())


async def test_connections_are_kept_and_each_job_is_timed() -> None:
    server = Server("202 Accepted")
    async with server.listening() as url:
        latencies = await submit_at_rate(Target(url, "m", key="k"), JOB, rate=1000, count=50)
    assert len(latencies) == len(server.heads) == 50
    assert min(latencies) > 0
    assert server.connections < 50
    assert all(b"POST /v1/jobs HTTP/1.1" in head and b"authorization: Bearer k" in head for head in server.heads)


async def test_a_refusal_ends_the_measurement() -> None:
    server = Server("202 Accepted", "503 Service Unavailable")
    async with server.listening() as url:
        with pytest.raises(HeadraceError, match="a job was refused: b'body'"):
            await submit_at_rate(Target(url, "m"), JOB, rate=1000, count=50)
