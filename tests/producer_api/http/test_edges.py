"""Limits on the size and the form of requests, tested byte by byte over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from producer_api.app import create_app
from producer_api.http import protocol
from shared.backend import Backend
from shared.protocol import RequestState
from shared.settings import Settings
from tests.support.api_server import calling, chat, serving
from tests.support.loop_clock import stopped_clock, turns
from tests.support.raw_http import connected, port_of
from tests.support.scripted_worker import Job, ScriptedWorker
from tests.support.waiting import LIMIT_S


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_header_bytes": 4096, "max_headers": 20})


def asking(**fields: object) -> bytes:
    """A small chat request, byte for byte."""
    body = json.dumps(chat(**fields)).encode()
    return POST + b"content-length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
async def port(
    settings: Settings, backend: Backend, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[int]:
    monkeypatch.setattr(protocol, "LINGER_S", 0.2)
    async with serving(settings, backend) as url:
        yield port_of(url)


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 30 + b"\r\n", id="many"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 5000 + b"\r\n\r\n", id="one long value"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a" * 5000 + b": b\r\n\r\n", id="one long name"),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", id="a long path"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 10**6, id="a value without an end"),
        pytest.param(b"GET /" + b"a" * 10**6, id="a path without an end"),
    ],
)
async def test_too_many_or_too_large_headers_are_431(port: int, head: bytes) -> None:
    async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
        writer.write(head)
        told = (await reader.read()).lower()
    assert told.startswith(b"http/1.1 431 ")
    assert b'"code":"header_too_large"' in told
    assert b"x-request-id: " in told
    assert b"connection: close" in told


async def begin(worker: ScriptedWorker, text: str) -> Job:
    """Take the next request and begin its answer, which the headers of a stream wait for."""
    job = await worker.take()
    await job.say(text)
    return job


async def test_many_requests_on_one_connection_are_answered(
    port: int, settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    """The last one after all limits on the time of a request."""
    async with connected(port) as (reader, writer):
        request = b"GET /live HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 2000 + b"\r\n\r\n"
        for _ in range(20):
            writer.write(request * 3)
            for _ in range(3):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                await reader.readexactly(len(b'{"status":"ok"}'))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as http:
        begun = asyncio.create_task(begin(worker, "slow"))
        async with http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
            job = await begun
            lines = answer.aiter_lines()
            await anext(line async for line in lines if "slow" in line)
            await turns()  # in which the stream asks Redis for more
            await backend.redis.ping()  # answered after that, so that no call is under way while the clock jumps
            await turns()
            with stopped_clock() as clock:
                await clock.advance(settings.head_timeout + settings.body_timeout + protocol.BODY_MARGIN_S)
                await job.end()
                assert [line async for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_client_that_sends_its_whole_body_first_reads_why_it_was_refused(
    port: int, settings: Settings, version: bytes
) -> None:
    """Given a connection that closes after the answer, as a proxy in front of the server asks for by default."""
    size = settings.max_body_bytes + 10**6
    head = b"POST /v1/completions HTTP/%b\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
        writer.write(head % (version, size))
        for _ in range(0, size, 10**5):
            writer.write(b" " * 10**5)
            await writer.drain()
        told = await reader.read()
    assert told.startswith(b"HTTP/1.1 413 ")
    assert b"the body must have at most" in told


async def test_malformed_http_is_400(port: int) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nx\r\n\r\n"):
        async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
            writer.write(data)
            told = await reader.read()
        assert told.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"invalid_request"' in told


@pytest.mark.parametrize(
    "chunk", [b"zz\r\n", b"-1\r\n", b"5\r\nabcdefgh", b"ffffffffffffffffff\r\n", b"1;\0\r\n", b"\r\n"]
)
async def test_a_bad_chunk_is_answered_with_400(port: int, chunk: bytes) -> None:
    for begin in (POST, POST.replace(b"/v1/chat/completions", b"/v1/files")):
        async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
            writer.write(begin + b"transfer-encoding: chunked\r\n\r\n")
            await writer.drain()
            writer.write(b"2\r\n{ \r\n" + chunk)
            told = await reader.read()
        assert told.startswith(b"HTTP/1.1 4"), told
        assert told.count(b"HTTP/1.1 ") == 1


async def test_a_request_before_garbage_is_answered(port: int, worker: ScriptedWorker) -> None:
    async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
        writer.write(asking() + b"\x16\x03 garbage\r\n\r\n")
        await worker.answer("a", "b")
        told = await reader.read()
    assert told.startswith(b"HTTP/1.1 200 ")
    assert b'"content":"ab"' in told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_client_that_half_closes_is_answered(
    port: int, worker: ScriptedWorker, stream: bool, version: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: asyncio.Queue[None] = asyncio.Queue()
    check_peer = protocol.Connection._check_peer

    def noted_check(connection: protocol.Connection) -> None:
        check_peer(connection)
        checks.put_nowait(None)

    monkeypatch.setattr(protocol.Connection, "_check_peer", noted_check)
    async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
        writer.write(asking(stream=stream).replace(b"HTTP/1.1", b"HTTP/" + version, 1))
        job = await worker.take()
        await job.say("a")
        begun = await reader.readuntil(b'content":"a"') if stream else b""
        writer.write_eof()
        for _ in range(2):
            await checks.get()
        await job.say("b")
        await job.end()
        told = begun + await reader.read()
    assert b"HTTP/1.1 200 OK" in told
    assert told.endswith(b"data: [DONE]\n\n" if version == b"1.0" else b"0\r\n\r\n") or not stream
    assert (b'"content":"b"' if stream else b'"content":"ab"') in told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_closing_both_sides_cancels_the_request(
    port: int, backend: Backend, worker: ScriptedWorker, stream: bool, begun: bool
) -> None:
    async with asyncio.timeout(LIMIT_S):
        async with connected(port) as (reader, writer):
            writer.write(asking(stream=stream))
            job = await worker.take()
            if begun:
                await job.say("a")
            if begun and stream:
                await reader.readuntil(b'content":"a"')
        while True:
            record = await backend.token_log.record(job.request.id)
            if record is None or record.state is RequestState.CANCELLED:
                break
            await asyncio.sleep(0.02)


async def test_http_1_0_gets_a_stream_without_chunks(port: int, worker: ScriptedWorker) -> None:
    async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
        writer.write(asking(stream=True).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        await worker.answer("a", "b")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert all(line.startswith((b"data: ", b"id: ", b": ")) for line in body.split(b"\n") if line)
    assert body.endswith(b"data: [DONE]\n\n")
    for ask, status in (
        (b"GET /live", b"200"),
        (b"HEAD /live", b"200"),
        (b"OPTIONS /live", b"204"),
        (b"GET /absent", b"404"),
    ):
        async with asyncio.timeout(LIMIT_S), connected(port) as (reader, writer):
            writer.write(ask + b" HTTP/1.0\r\nhost: localhost\r\n\r\n")
            told = await reader.read()
        assert told.split()[1] == status
        assert b"transfer-encoding" not in told.lower()


@pytest.mark.parametrize("boundary", [b"b" * 20_000, b"b" * 257, b'"\xff"', b'"a b"', b'""'])
async def test_an_invalid_multipart_boundary_is_refused(
    settings: Settings, backend: Backend, boundary: bytes
) -> None:
    head = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary="
    wide = settings.model_copy(update={"max_header_bytes": 32_768})
    async with serving(wide, backend) as url, asyncio.timeout(LIMIT_S), connected(port_of(url)) as ends:
        reader, writer = ends
        writer.write(head + boundary + b"\r\nconnection: close\r\ncontent-length: 2\r\n\r\nab")
        told = await reader.read()
    assert told.startswith(b"HTTP/1.1 4"), told


async def test_cors_allows_only_the_sites_in_the_settings(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    asks = {"origin": "https://app.test", "access-control-request-method": "POST"}
    given = settings.model_copy(update={"auth": True, "cors_origins": "https://app.test, https://b.test"})
    for each, allowed in ((settings, None), (given, "https://app.test")):
        app = create_app(each, backend)
        async with calling(app) as client:
            before = await client.options("/v1/chat/completions", headers=asks)
            assert before.headers.get("access-control-allow-origin") == allowed
            assert before.status_code == (200 if allowed else 204)
            refused = await client.get("/v1/models", headers={"origin": "https://app.test"})
            assert refused.headers.get("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in refused.headers
            other = await client.get("/v1/models", headers={"origin": "https://evil.test"})
            assert "access-control-allow-origin" not in other.headers
        await app.state.context.close()


async def test_excess_connections_get_503_or_are_closed(
    settings: Settings, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer_api.server.HEADROOM", 1)
    monkeypatch.setattr(protocol, "MAX_REFUSED_CONNECTIONS", 1)
    ask = b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with (
        asyncio.timeout(LIMIT_S),
        serving(settings.model_copy(update={"max_connections": 1}), backend) as url,
        AsyncExitStack() as stack,
    ):
        made = [await stack.enter_async_context(connected(port_of(url))) for _ in range(4)]
        for _, writer in reversed(made[:3]):
            writer.write(ask)
        first, second, third, fourth = (reader for reader, _ in made)
        assert await fourth.read() == b""
        told = await third.read()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"unavailable"' in told
        assert b"retry-after: 1" in told
        for reader in (first, second):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
