"""Exchange with an upstream server: one request, and the events of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cached_property
from typing import Any

import aiohttp
import httpx
from aiohttp.connector import Connection

from shared.models.upstream import UpstreamAddress
from workers.runtimes.upstream.chunks import Chunk, parse
from workers.runtimes.upstream.events import EventReader
from workers.runtimes.upstream.failures import Broken, ErrorBody, failure, failure_in_answer

CONNECT_TIMEOUT_S = 10.0
MAX_ERROR_BYTES = 65_536
MAX_HEADER_BYTES = 65_536  # of one field; gateways send policies and cookies of more than aiohttp's 8 KiB
ENCODINGS = ("", "identity")  # others are refused: a small body could expand to any size
AFTER_END_S = 1.0  # for the end of a response after [DONE]
KEEPALIVE_S = 2.0  # below the 5 s after which uvicorn and llama.cpp close an idle connection
DONE = b"[DONE]"
HEADERS = {"accept": "text/event-stream", "accept-encoding": "identity"}


class _NotInStep(Exception):
    """Data that answers no request waits on a connection."""


class _Request(aiohttp.ClientRequest):
    """Request that is not sent on a connection where it would be given the data that waits there as its answer."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if conn.protocol is not None and conn.protocol.should_close:
            raise _NotInStep
        return await super().send(conn)


class UpstreamClient:
    """Client of one server, used within one event loop. The caller bounds the number of its connections.

    It uses aiohttp, since httpx takes five times the CPU time for each part of an answer.
    """

    def __init__(self, address: UpstreamAddress) -> None:
        self.address = address

    async def events(self, route: str, body: bytes) -> AsyncGenerator[list[bytes], None]:
        """Send a request and yield the data of the answer's events until [DONE], together what arrives together.

        Closing the iterator closes the connection, which cancels the request. Raises a HeadraceError if the server
        refuses the request; Busy or Broken if another attempt may succeed.
        """
        headers = {"content-type": "application/json"}
        try:
            response = await self._request("POST", route, data=body, headers=headers)
            try:
                await self._check(response)
                reader, parts, ended = EventReader(), response.content, False
                while not ended:
                    part = await parts.readany()
                    found = reader.feed(part) if part else reader.end()
                    ended = not part or DONE in found
                    if DONE in found:
                        del found[found.index(DONE) :]
                    if found:
                        yield found
                await _drain(parts)
            finally:
                response.close()  # a response that has ended has returned its connection already
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(f"the connection to the upstream server failed ({type(error).__name__})") from None

    def parse(self, data: bytes) -> Chunk:
        """Parse an event. Raises Broken if it is malformed, and as `events` does if it contains an error."""
        chunk = parse(data)
        if chunk.text:
            raise failure_in_answer(chunk, self.address.key)
        return chunk

    async def status(self, route: str) -> int:
        """Return the HTTP status of a GET. Raises aiohttp.ClientError or OSError."""
        response = await self._request("GET", route)
        response.close()
        return response.status

    async def close(self) -> None:
        await self._session.close()

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        """The session, opened at its first use, since it belongs to the running event loop."""
        address = self.address
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            ssl=httpx.create_ssl_context() if address.url.startswith("https:") else True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=HEADERS | address.headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            max_field_size=MAX_HEADER_BYTES,
            request_class=_Request,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=address.proxy,
        )

    async def _request(self, method: str, route: str, **options: Any) -> aiohttp.ClientResponse:
        """Return the response to a request, whose body is still to be read. Redirects, which would get the key, are
        not followed.
        """
        url = f"{self.address.url}{route}"
        while True:
            with suppress(_NotInStep):  # that connection is closed now
                return await self._session.request(method, url, allow_redirects=False, **options)

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise an error unless the response is a stream of events."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status != 200:
            body = ErrorBody.parse(await _beginning(response))
            raise failure(response.status, body, response.headers, self.address.key)
        if response.headers.get("content-encoding", "").strip().lower() not in ENCODINGS:
            raise Broken("the upstream server compressed its answer, which was not asked for")
        if kind != "text/event-stream":
            body = ErrorBody.parse(await _beginning(response))
            if body.text:
                raise failure_in_answer(body, self.address.key)
            raise Broken("the upstream server sent an answer that is no stream of events")


async def _drain(parts: aiohttp.StreamReader) -> None:
    """Read the end of a response whose answer is complete, so that its connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(AFTER_END_S):
            while await parts.readany():
                pass


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Return the beginning of the body of an error."""
    body = b""
    while len(body) < MAX_ERROR_BYTES and (part := await response.content.readany()):
        body += part
    return body[:MAX_ERROR_BYTES]
