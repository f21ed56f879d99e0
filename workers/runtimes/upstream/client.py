"""Exchange with an upstream server: one request, and the chunks of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

import httpx

from shared.models.upstream import UpstreamAddress
from workers.runtimes.upstream.chunks import Chunk, parse
from workers.runtimes.upstream.events import EventReader
from workers.runtimes.upstream.failures import Broken, ErrorBody, failure, failure_in_answer

CONNECT_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 60.0
MAX_ERROR_BYTES = 65_536
ENCODINGS = ("", "identity")  # others are refused: a small body could expand to any size
AFTER_END_S = 1.0  # for the end of a response after [DONE]
KEEPALIVE_S = 2.0  # below the 5 s after which uvicorn and llama.cpp close an idle connection
DONE = b"[DONE]"


class UpstreamClient:
    """Client of one server, used within one event loop.

    Args:
        connections: maximum number of connections.
    """

    def __init__(self, address: UpstreamAddress, *, connections: int) -> None:
        self.address = address
        self.http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S, write=WRITE_TIMEOUT_S),
            limits=httpx.Limits(max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE_S),
            **address.options,
        )
        self.http.headers.update({"accept-encoding": "identity", "accept": "text/event-stream"})

    async def chunks(self, route: str, body: bytes) -> AsyncGenerator[tuple[Chunk, int], None]:
        """Send a request and yield each chunk of the answer, and its size in bytes.

        Closing the iterator closes the connection, which cancels the request. Raises a HeadraceError if the server
        refuses the request; Busy or Broken if another attempt may succeed.
        """
        request = self.http.build_request(
            "POST", f"{self.address.url}{route}", content=body, headers={"content-type": "application/json"}
        )
        try:
            response = await self.http.send(request, stream=True)
            try:
                await self._check(response)
                async for data in _events(response):
                    chunk = parse(data)
                    if chunk.text:
                        raise failure_in_answer(chunk, self.address.key)
                    yield chunk, len(data)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise Broken(f"the connection to the upstream server failed ({type(error).__name__})") from None

    async def _check(self, response: httpx.Response) -> None:
        """Raise an error unless the response is a stream of events."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code != 200:
            body = ErrorBody.parse(await _beginning(response))
            raise failure(response.status_code, body, response.headers, self.address.key)
        if response.headers.get("content-encoding", "").strip().lower() not in ENCODINGS:
            raise Broken("the upstream server compressed its answer, which was not asked for")
        if kind != "text/event-stream":
            body = ErrorBody.parse(await _beginning(response))
            if body.text:
                raise failure_in_answer(body, self.address.key)
            raise Broken("the upstream server sent an answer that is no stream of events")


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the data of each event until [DONE] or the end."""
    reader, parts = EventReader(), response.aiter_raw()
    ended = False
    while not ended:
        part = await anext(parts, None)
        ended = part is None
        for data in reader.end() if part is None else reader.feed(part):
            if data == DONE:
                await _drain(parts)
                return
            yield data


async def _drain(parts: AsyncIterator[bytes]) -> None:
    """Read the end of a response whose answer is complete, so that its connection can be used again."""
    with suppress(TimeoutError, httpx.HTTPError, httpx.StreamError):
        async with asyncio.timeout(AFTER_END_S):
            async for _ in parts:
                pass


async def _beginning(response: httpx.Response) -> bytes:
    """Return the beginning of the body of an error."""
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) >= MAX_ERROR_BYTES:
            break
    return body[:MAX_ERROR_BYTES]
