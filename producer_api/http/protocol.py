"""uvicorn's HTTP connection, with limits on size and duration for clients that are not authenticated yet."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from producer_api.http.endpoint_table import EndpointTable
from shared.errors import HeaderTooLarge, HeadraceError, InvalidRequest, Unavailable
from shared.settings import Settings

LINGER_S = 2.0  # a refused client may go on sending for so long, so that it can read the response
MIN_BODY_BYTES_PER_S = 4096
BODY_MARGIN_S = 1.0  # after body_timeout, so that the error of the handler is sent first
HEADROOM = 64  # connections above max_connections whose requests are read, so that refusals are logged and counted
PEER_CHECK_S = 0.1  # between checks whether a client that has stopped sending has closed its connection
MAX_REFUSED_CONNECTIONS = 64  # above the limit, which get a 503; further ones are closed


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one connection.

    Attributes:
        connections: how many are served; MAX_REFUSED_CONNECTIONS more get a 503.
        head_bytes: size of the request line and the headers.
        headers: number of header lines.
        head_timeout_s: until the head is complete.
        body_timeout_s: until the body is complete, unless it arrives at MIN_BODY_BYTES_PER_S.
    """

    connections: int
    head_bytes: int
    headers: int
    head_timeout_s: float
    body_timeout_s: float

    @classmethod
    def from_settings(cls, settings: Settings, connections: int) -> ConnectionLimits:
        return cls(
            connections,
            settings.max_header_bytes,
            settings.max_headers,
            settings.head_timeout,
            settings.body_timeout + BODY_MARGIN_S,
        )


class Connection(HttpToolsProtocol):
    """Connection that is refused or closed when its client exceeds a limit.

    A body may take longer than its timeout while it arrives at MIN_BODY_BYTES_PER_S, or while the server
    does not read.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, endpoints: EndpointTable, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._endpoints = endpoints
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True  # or between requests
        self._unread = 0  # bytes since the parser's last callback
        self._progress = 0  # callbacks of the parser so far
        self._count = 0  # header lines, trailers included
        self._body = 0  # bytes since the body timer was set
        self._refusal: HeadraceError | None = None
        self._surplus = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        surplus = len(self.connections) - self._limits.connections
        if surplus > MAX_REFUSED_CONNECTIONS:
            transport.abort()
        else:
            self._surplus = surplus > 0
            self._set_timer(self._limits.head_timeout_s, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        before = self._progress
        super().data_received(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        # a chunk that caused a callback is not counted: it may be the end of the previous message
        self._unread = self._unread + len(data) if self._progress == before else 0
        if self._unread > self._limits.head_bytes:
            self._refuse(self._too_large())
        elif self._timer is None:
            self._set_timer_of_rest()

    def _set_timer_of_rest(self) -> None:
        """Limit the time for the rest of a message; most come whole, and need no timer."""
        if not self._in_head:
            self._set_timer(self._limits.body_timeout_s, self._check_body)
        elif self.cycle is None or self.cycle.response_complete:
            self._set_timer(self._limits.head_timeout_s, self.transport.close)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio keeps a connection open on True
        """Continue to serve a client that has closed only its sending side (RFC 9112, 9.6)."""
        cycle = self.cycle
        if self._refusal is not None or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        self._probe()
        self._set_timer(PEER_CHECK_S, self._check_peer)
        return True

    def _probe(self) -> None:
        """Write bytes without meaning: a client that has closed both sides answers them with a TCP reset."""
        cycle = self.cycle
        if self.pipeline or self.transport.is_closing() or cycle.scope["http_version"] != "1.1":
            return
        if not cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif cycle.chunked_encoding:
            self.transport.write(b"0")  # a leading zero of the next chunk's size

    def _check_peer(self) -> None:
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._set_timer(PEER_CHECK_S, self._check_peer)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._count = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > self._limits.headers:
            self._fail(self._too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.head_bytes:
            self._fail(self._too_large())
        if self._surplus:
            self._fail(
                Unavailable(
                    f"the server has {self._limits.connections} open connections already, its limit", retry_after=1
                )
            )
        self._in_head = False
        self._progress += 1
        super().on_headers_complete()
        self.cycle.__class__ = ClosingCycle if self.scope["http_version"] == "1.0" else LingeringCycle
        self.scope["state"]["send"] = self.cycle.send  # for the frames of a stream
        self._cancel_timer()
        self._body = 0

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._progress += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._cancel_timer()
        self._in_head = True
        self._progress += 1
        super().on_message_complete()
        if self._lingers():
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete and not self.transport.is_closing():
            if self._lingers():
                self.transport.write_eof()
            self._set_timer(LINGER_S, self.transport.close)

    def _lingers(self) -> bool:
        return isinstance(self.cycle, LingeringCycle) and self.cycle.lingering

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser gave up: over a limit, or malformed."""
        self._refuse(self._refusal or InvalidRequest("malformed HTTP request"))

    def _check_body(self) -> None:
        if self.flow.read_paused or self._body >= MIN_BODY_BYTES_PER_S * self._limits.body_timeout_s:
            self._body = 0
            self._set_timer(self._limits.body_timeout_s, self._check_body)
        else:
            self.transport.close()

    def _set_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, callback)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self) -> HeadraceError:
        limits = self._limits
        return HeaderTooLarge(
            f"the request line and headers must have at most {limits.head_bytes} bytes and {limits.headers} lines"
        )

    def _fail(self, refusal: HeadraceError) -> None:
        """Make the parser give up from inside a callback; `send_400_response` then answers."""
        self._refusal = refusal
        raise refusal

    def _refuse(self, refusal: HeadraceError) -> None:
        """Answer, unless a response has begun, and close; drop the bytes that still arrive."""
        self._refusal = refusal
        self.logger.warning("Refused: " + refusal.message)  # a text of Headrace's own, so it is logged as it is
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self._unanswered(cycle):
            path = getattr(self, "url", b"").partition(b"?")[0].decode("ascii", "replace")
            answer = self._endpoints.errors_at(path).response(refusal, path)
            extra = [(b"x-request-id", secrets.token_hex(16).encode()), (b"connection", b"close")]
            lines = b"".join(b"%b: %b\r\n" % each for each in [*answer.raw_headers, *extra])
            self.transport.write(STATUS_LINE[answer.status_code] + lines + b"\r\n" + bytes(answer.body))
            self.transport.write_eof()
            self._set_timer(LINGER_S, self.transport.close)
        elif cycle.more_body:
            self.transport.close()
        else:
            cycle.keep_alive = False  # its request was complete: it is answered, then the connection closes

    def _unanswered(self, cycle: RequestResponseCycle) -> bool:
        """Return whether the refusal is for this request, which has no response yet; if so, end its handler."""
        if not cycle.more_body or cycle.response_started or self.pipeline:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True


class _HeadHolder:
    """Transport for one response that holds its head, and writes it together with the first part of its body.

    uvloop makes a system call of each write.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None  # empty once it was written

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
        elif self._head:
            self._transport.writelines([self._head, data])
            self._head = b""
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._head:
            self._transport.write(self._head)
        self._transport.close()


class LingeringCycle(RequestResponseCycle):
    """Response cycle that leaves the connection open while the request's body still arrives.

    A connection that is closed with unread bytes is reset, so that a client which sends its whole body first would
    never see why it was refused.
    """

    lingering = False

    def send(self, message: ASGISendEvent) -> Coroutine[Any, Any, None]:
        """Return uvicorn's own coroutine, since one around it would be made for each frame of a stream."""
        if message["type"] == "http.response.start":
            if self._body_follows(message["headers"]):
                self.transport = _HeadHolder(self.transport)  # type: ignore[assignment]
        elif self.more_body and not self.keep_alive and not message.get("more_body", False):
            self.lingering = self.keep_alive = True
        return super().send(message)

    def _body_follows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether the response has a body whose length is known; the head of a stream must not wait."""
        return self.scope["method"] != "HEAD" and any(name == b"content-length" for name, _ in headers)


class ClosingCycle(LingeringCycle):
    """Response cycle for HTTP/1.0, which has no chunks: a body without a length ends with the connection."""

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.chunked_encoding = False
        elif message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
