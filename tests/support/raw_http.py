"""Minimal HTTP/1.1 client for ten thousand streams, with server-sent events and one connection per exchange."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

MAX_FRAME_BYTES = 2**22


class Broken(ConnectionError):
    """The connection ended, or became silent, before the response was complete."""


@dataclass(frozen=True)
class Frame:
    """One server-sent event."""

    id: str
    event: str
    data: str


class Response:
    """Response that is being received.

    Args:
        silence: seconds without a byte after which the connection counts as broken.
    """

    def __init__(self, reader: asyncio.StreamReader, silence: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader = reader
        self._silence = silence
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._complete = False

    async def head(self) -> None:
        while not self.status:
            await self._more()

    async def chunks(self, size: int = 65_536) -> AsyncIterator[bytes]:
        while True:
            if self._body:
                found = bytes(self._body)
                self._body.clear()
                yield found
            elif self._complete:
                return
            else:
                await self._more(size)

    async def json(self) -> Any:
        return json.loads(b"".join([chunk async for chunk in self.chunks()]) or b"null")

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the server-sent events, without comments."""
        rest = b""
        async for chunk in self.chunks():
            *blocks, rest = (rest + chunk).split(b"\n\n")
            assert len(rest) < MAX_FRAME_BYTES
            for block in blocks:
                if frame := _frame(block.decode()):
                    yield frame

    async def _more(self, size: int = 65_536) -> None:
        try:
            async with asyncio.timeout(self._silence):
                data = await self._reader.read(size)
        except TimeoutError:
            raise Broken(f"no data for {self._silence} s") from None
        if not data:
            raise Broken("closed before the end")
        self._parser.feed_data(data)

    # callbacks of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._complete = True


def _frame(block: str) -> Frame | None:
    fields = dict.fromkeys(("id", "event", "data"), "")
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        fields[name] = value.removeprefix(" ")
    return Frame(fields["id"], fields["event"], fields["data"]) if fields["data"] else None


@asynccontextmanager
async def exchange(
    url: str,
    method: str,
    path: str,
    *,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    silence: float = 20.0,
    receive_buffer: int | None = None,
    source: str | None = None,
) -> AsyncIterator[Response]:
    """Send one request on its own connection, and yield the response once its head is received.

    Args:
        receive_buffer: size of the kernel's receive buffer, for a reader that is meant to be slow.
        source: source address, for more connections than one address has ports.

    Raises:
        OSError: the connection failed, or (Broken) ended too early.
    """
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    connection = socket.socket()
    connection.setblocking(False)
    writer = None
    try:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            connection.bind((source, 0))
        async with asyncio.timeout(silence):
            await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=receive_buffer or 65_536)
        writer.write(_request(parts.netloc, method, path, body, headers or {}))
        response = Response(reader, silence)
        await response.head()
        yield response
    finally:
        if writer is not None:
            writer.transport.abort()
        else:
            connection.close()


def _request(host: str, method: str, path: str, body: Any, headers: Mapping[str, str]) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "connection: close"]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + payload


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a port of this machine, to read and write bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
