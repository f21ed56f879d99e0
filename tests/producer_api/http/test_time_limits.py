"""Limits on time before a client is authenticated, and of idle connections, on a clock that the tests advance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from producer_api.http.protocol import BODY_MARGIN_S
from shared.backend import Backend
from shared.files.content import Draft
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.loop_clock import stopped_clock
from tests.support.raw_http import connected, port_of
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

HEAD, BODY = 40.0, 40.0  # seconds
STEP = 4.0  # seconds between the pieces of a slow request
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    bounds = {"head_timeout": HEAD, "body_timeout": BODY, "max_header_bytes": 4096, "max_headers": 20}
    return settings.model_copy(update={**bounds, "redis_timeout": LIMIT_S})  # Redis has a clock of its own


@pytest.fixture
async def port(settings: Settings, backend: Backend, worker: ScriptedWorker) -> AsyncIterator[int]:
    async with serving(settings, backend) as url:
        yield port_of(url)


async def trickle(port: int, begin: bytes, piece: bytes) -> tuple[float, bytes]:
    """Send `begin`, then a `piece` every STEP, until the server ends it; return the seconds, and what it said."""
    told = bytearray()
    with stopped_clock() as clock:
        async with connected(port) as (reader, writer):
            hearing = asyncio.create_task(hear(reader, told))
            writer.write(begin)
            while not hearing.done() and clock.elapsed < LIMIT_S:
                writer.write(piece)
                await clock.advance(STEP)
            hearing.cancel()
    return clock.elapsed, bytes(told)


async def hear(reader: asyncio.StreamReader, told: bytearray) -> None:
    """Read to the end, or until the connection is reset: the server closes it while bytes still come."""
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(65_536):
            told += data


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"G", b"", id="a letter"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\na: ", b"a", id="a header by letters"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\n", b"a: b\r\n", id="headers"),
        pytest.param(b"", b"\r\n", id="empty lines"),
        pytest.param(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n", b"\r\n", id="empty lines after a request"),
        pytest.param(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n", b"G", id="letters after a request"),
    ],
)
async def test_an_endless_head_times_out(port: int, begin: bytes, piece: bytes) -> None:
    took, _ = await trickle(port, begin, piece)
    assert took < HEAD + 4 * STEP


async def test_an_endless_body_times_out(port: int) -> None:
    """With 400 where a handler reads it; the connection closes in any case."""
    took, told = await trickle(port, POST + b"content-length: 100000\r\n\r\n{", b" ")
    assert BODY <= took < BODY + BODY_MARGIN_S + 4 * STEP
    assert b"400 Bad Request" in told
    assert b"malformed_body" in told
    form = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    took, _ = await trickle(port, form + b"content-length: 100000\r\n\r\n--b\r\n", b"a")
    assert BODY <= took < BODY + BODY_MARGIN_S + 4 * STEP
    took, told = await trickle(port, POST.replace(b"POST", b"DELETE") + b"content-length: 100000\r\n\r\n", b" ")
    assert b"405 Method Not Allowed" in told, "no handler reads its body"
    assert took < BODY + BODY_MARGIN_S + 4 * STEP


async def test_a_large_body_at_a_good_rate_may_exceed_the_timeout(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, stored, sizes = asyncio.get_running_loop(), 0, asyncio.Queue[int]()
    write = Draft.write

    def noted_write(draft: Draft, data: bytes) -> None:
        write(draft, data)
        loop.call_soon_threadsafe(sizes.put_nowait, draft.size)

    monkeypatch.setattr(Draft, "write", noted_write)
    content = b"x" * 2**20
    form = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n' + content + b"\r\n--b--\r\n"
    )
    head = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += b"content-type: multipart/form-data; boundary=b\r\n"
    async with connected(port) as (reader, writer):
        with stopped_clock() as clock:
            writer.write(head + b"content-length: %d\r\n\r\n" % len(form))
            step = len(form) // 40
            for start in range(0, len(form), step):
                writer.write(form[start : start + step])
                while stored < start - step:  # the server reads beside the clock
                    stored = await sizes.get()
                await clock.advance(BODY / 30)
        assert clock.elapsed > BODY + BODY_MARGIN_S
        async with asyncio.timeout(LIMIT_S):
            assert b"200 OK" in await reader.read()


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        pytest.param(b"0\r\n", b"a: b\r\n" * 10, id="headers after the body"),
        pytest.param(b"0\r\na: ", b"b" * 1000, id="a long header after the body"),
        pytest.param(b"1;a=", b"b" * 1000, id="a chunk's extension"),
    ],
)
async def test_endless_trailers_and_chunk_extensions_are_closed(port: int, begin: bytes, piece: bytes) -> None:
    took, _ = await trickle(port, POST + b"transfer-encoding: chunked\r\n\r\n" + begin, piece)
    assert took < HEAD


async def test_an_idle_connection_closes_after_the_idle_timeout(settings: Settings, backend: Backend) -> None:
    idle = 2 * HEAD
    patient = settings.model_copy(update={"idle_timeout": idle})
    async with serving(patient, backend) as url, connected(port_of(url)) as (reader, writer):
        with stopped_clock() as clock:
            writer.write(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await reader.readuntil(b'{"status":"ok"}')
            reading = asyncio.create_task(reader.read())
            await clock.advance(idle - STEP)
            assert not reading.done()
            await clock.advance(2 * STEP)
            assert await reading == b""
