"""Both clients against a server that breaks connections, and their import."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from headrace import AsyncHeadraceClient, HeadraceClient
from headrace.client.operations import Operations
from headrace.client.sans_io import Clock, Replicas, Send
from shared.errors import ConfigError, InvalidRequest, Unavailable
from tests.support.sse_events import chunk, done, token
from tests.support.waiting import LIMIT_S


def test_importing_the_package_does_not_import_httpx() -> None:
    code = "import headrace, sys; assert 'httpx' not in sys.modules; headrace.HeadraceClient; headrace.__version__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT_S)
    with pytest.raises(AttributeError):
        import headrace

        _ = headrace.nothing


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class BreakingServer:
    """Server that sends each connection its answer and closes it."""

    def __init__(self, *answers: bytes) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self._answers.pop(0) if self._answers else b"")
        await writer.drain()
        writer.close()


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def ask_both_clients(url: str, ask: Callable[[Any], Any], *, patience: float = 60) -> list[Any]:
    """Return the items of a call, which must be the same from both clients."""

    def blocking() -> list[Any]:
        with HeadraceClient(url, patience=patience) as client:
            return list(ask(client))

    async with AsyncHeadraceClient(url, patience=patience) as client:
        first = [item async for item in ask(client)]
    assert await asyncio.to_thread(blocking) == first
    return first


async def test_both_clients_survive_broken_connections() -> None:
    """Given half a head, half a chunk and an early end, expect each event once."""
    answers = (
        b"HTTP/1.1 200 OK\r\ncont",
        HEAD + http_chunk(token(0)) + b"ff\r\nid: 1\nev",
        HEAD + http_chunk(token(1)) + b"0\r\n\r\n",
        b"",
        HEAD + http_chunk(done(2)),
    )
    server = BreakingServer(*answers, *answers)
    async with server as url:
        events = await ask_both_clients(url, lambda client: client.events("req_1"))
    assert [event.seq for event in events] == [0, 1, 2]
    assert sum(b"last-event-id: 1" in request for request in server.requests) == 4


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", HEAD + b"zz\r\n", HEAD + http_chunk(token(0)[:5])])
async def test_every_transport_error_becomes_unavailable(answer: bytes) -> None:
    """Given a server that always fails, expect Unavailable from events and chat of both clients."""
    async with BreakingServer(*[answer] * 100) as url:
        for ask in (lambda client: client.events("req_1"), lambda client: client.chat({})):
            with pytest.raises(Unavailable):
                await ask_both_clients(url, ask, patience=0.0)
            with pytest.raises(Unavailable), HeadraceClient(url, patience=0.0) as client:
                await asyncio.to_thread(list, ask(client))


async def test_closing_a_chat_cancels_its_request() -> None:
    """Given a running chat, expect its request to be cancelled when its reader closes it, by either client."""
    server = BreakingServer(HEAD + http_chunk(chunk("a", 0)), b"", HEAD + http_chunk(chunk("a", 0)), b"")
    async with server as url:
        async with AsyncHeadraceClient(url) as client:
            chunks = client.chat_text({})
            assert await anext(chunks) == "a"
            await chunks.aclose()

        def leave() -> None:
            with HeadraceClient(url) as blocking:
                texts = blocking.chat_text({})
                assert next(texts) == "a"
                texts.close()

        await asyncio.to_thread(leave)
    assert [request.split(b" ")[:2] for request in server.requests[1::2]] == [[b"DELETE", b"/v1/jobs/req_1"]] * 2


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
def test_what_json_cannot_express_is_refused_before_it_is_sent(value: object) -> None:
    body = {"temperature": value}
    client = HeadraceClient("http://127.0.0.1:1")
    with client, pytest.raises(InvalidRequest, match="cannot be sent as JSON"):
        client.submit(body)

    async def submit() -> None:
        async with AsyncHeadraceClient("http://127.0.0.1:1") as client:
            await client.submit(body)

    with pytest.raises(InvalidRequest, match="cannot be sent as JSON"):
        asyncio.run(submit())


@pytest.mark.parametrize("name", ["job", "timeline", "cancel", "dead_letter", "remove"])
def test_an_id_is_one_segment_of_its_path(name: str) -> None:
    """Given an id with slashes and dots, or an empty one, no other path is asked for."""
    operation = getattr(Operations(Replicas(("http://a",)), 1.0, Clock()), name)
    for job_id, written in (("../../health", "..%2F..%2Fhealth"), ("..", "%2E%2E"), ("a?b#c", "a%3Fb%23c")):
        sent = next(operation(job_id))
        assert isinstance(sent, Send)
        assert written in sent.url.split("/")
    with pytest.raises(ConfigError, match="must not be empty"):
        operation("")
