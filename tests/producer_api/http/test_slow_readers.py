"""Clients that do not read cost a bounded amount of memory, however long the answer."""

from __future__ import annotations

import asyncio
import socket

import httpx
import psutil
import pytest

from shared.redis.embedded import EmbeddedServer
from tests.support.api_process import running
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.slow_readers import EVENTS, MAX_READER_BYTES, READERS, write_all
from tests.support.waiting import LIMIT_S


def stalled(port: int, job_id: str) -> socket.socket:
    """A reader of a job that asks and then takes nothing."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", port))
    reader.sendall(b"GET /v1/jobs/%b/events HTTP/1.1\r\nhost: localhost\r\n\r\n" % job_id.encode())
    return reader


@pytest.mark.slow
async def test_memory_of_stalled_readers_is_bounded(valkey: EmbeddedServer, worker: ScriptedWorker) -> None:
    """All of them together cost less memory than two copies of the answer."""
    with running(valkey) as (process, url):
        port = int(url.rsplit(":", 1)[1])
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
            job_id = (await http.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})).json()["id"]
            job = await worker.take()
            before = psutil.Process(process.pid).memory_info().rss
            readers = [stalled(port, job_id) for _ in range(READERS)]
            whole = asyncio.create_task(http.get(f"/v1/jobs/{job_id}/events"))
            await write_all(job)
            assert (await whole).text.count("event: token") == EVENTS, "a reader that reads gets all of it"
            grown = psutil.Process(process.pid).memory_info().rss - before
        for reader in readers:
            reader.close()
    assert grown < READERS * MAX_READER_BYTES
