"""Notices of three clouds, from a metadata service under the test's control."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from shared.settings import Settings
from tests.support.waiting import LIMIT_S
from workers.stopping import spot_notices
from workers.stopping.spot_notices import wait_for_notice

Answers = dict[str, list[tuple[int, bytes]]]  # by path, each used once, the last one again and again
EVENT = {"EventType": "Preempt", "Resources": ["vm-1"]}
NOT_FOUND = (404, b"")


def events(*found: dict[str, object]) -> tuple[int, bytes]:
    return 200, json.dumps({"DocumentIncarnation": 1, "Events": found}).encode()


ACTION, PREEMPTED = "/latest/meta-data/spot/instance-action", "/computeMetadata/v1/instance/preempted"
AZURE, NAME = "/metadata/scheduledevents", "/metadata/instance/compute/name"
TOKEN = {"/latest/api/token": [(200, b"secret")]}
JUNK: list[tuple[int, bytes]] = [
    (200, b"<html>"),
    (500, b""),
    (301, b""),
    (200, b"[" * 60_000),
    (200, b"x" * 100_000),
    (200, b'{"action": 7, "Events": 7}'),
]
CLOUDS: dict[str, Answers] = {
    "aws": {**TOKEN, ACTION: [*JUNK, NOT_FOUND, (200, b'{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')]},
    "gcp": {PREEMPTED: [*JUNK, (200, b"FALSE"), (200, b"TRUE")]},
    "azure": {
        AZURE: [
            *JUNK,
            events({"EventType": "Reboot", "Resources": ["vm-1"]}),
            events(EVENT | {"Resources": ["vm-2"]}),
            events(EVENT),
        ],
        NAME: [(200, b"vm-1")],
    },
}
NEEDED = {"aws": b"x-aws-ec2-metadata-token", "gcp": b"metadata-flavor: google", "azure": b"metadata: true"}


@asynccontextmanager
async def metadata(answers: Answers, seen: Callable[[bytes], object]) -> AsyncIterator[str]:
    """Run a service, and yield its address. A redirect leads to a notice, which a client must not follow."""
    left = {path: list(each) for path, each in answers.items()}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen(head.lower())
        waiting = left.get(head.split()[1].decode().partition("?")[0], [NOT_FOUND])
        status, body = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        lines = (
            f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nlocation: /notice\r\nconnection: close\r\n\r\n"
        )
        with suppress(ConnectionError):
            writer.write(lines.encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"http://{host}:{port}"


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_a_notice_is_found_after_junk(
    cloud: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot_notices, "POLL_S", 0)
    heads: list[bytes] = []
    async with metadata(CLOUDS[cloud], heads.append) as url, asyncio.timeout(LIMIT_S):
        await wait_for_notice(settings.model_copy(update={"spot_notices": cloud, "spot_notices_url": url}))
    assert all(NEEDED[cloud] in head for head in heads)
    assert not any(b"/notice" in head for head in heads)


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_a_service_that_hangs_is_given_up_and_asked_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, cloud: str
) -> None:
    monkeypatch.setattr(spot_notices, "POLL_S", 0)
    monkeypatch.setattr(spot_notices.Metadata.ask, "__kwdefaults__", {"method": "GET", "limit": 0.01})
    asked = asyncio.Event()
    calls = 0

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            asked.set()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    changed = settings.model_copy(update={"spot_notices": cloud, "spot_notices_url": f"http://{host}:{port}"})
    async with server, asyncio.timeout(LIMIT_S):
        task = asyncio.create_task(wait_for_notice(changed))
        await asked.wait()
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_without_a_cloud_nothing_is_asked(settings: Settings) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wait_for_notice(settings)
