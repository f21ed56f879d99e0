"""One connection of uvicorn's, with bounds on what a client may send before it is known, and on how slowly.

It knows nothing of routes. What it refuses is worded as by the API that was called.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from producer_api.http.endpoint_table import EndpointTable
from shared.errors import HeaderTooLarge, HeadraceError, InvalidRequest, Unavailable
from shared.settings import Settings

LINGER = 2.0  # seconds for which a client may go on sending what is not wanted, so that it reads the answer
LEAST_RATE = 4096  # bytes a second that a body must come at
MARGIN = 1.0  # seconds after a route's own limit on its body's time, so that its answer comes first
HEADROOM = 64  # connections over the bound on requests, so that refusals are counted and logged as such
PEER_LOOK_S = 0.1  # between looks at whether a client that sends no more has closed its connection wholly
SPARE = 64  # connections over the bound that are told so


@dataclass(frozen=True)
class Bounds:
    """Of one request: bytes and number of its header lines, seconds until they are whole, seconds of its body.

    Attributes:
        connections: whose requests are taken; those of SPARE more are refused, and others are not heard.
    """

    connections: int
    head_bytes: int
    headers: int
    head_time: float
    body_time: float

    @classmethod
    def of(cls, settings: Settings, connections: int) -> Bounds:
        return cls(
            connections,
            settings.max_header_bytes,
            settings.max_headers,
            settings.head_timeout,
            settings.body_timeout + MARGIN,
        )


class Connection(HttpToolsProtocol):
    """A connection whose client is given up when it is over a bound.

    A body may take longer than its time as long as it comes at LEAST_RATE, or waits for us.
    """

    def __init__(self, *args: Any, bounds: Bounds, endpoints: EndpointTable, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds
        self._endpoints = endpoints
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True  # and before it
        self._unread = 0  # bytes since the parser last gave something out
        self._progress = 0  # what the parser has given out
        self._count = 0  # header lines, and those after the body
        self._body = 0  # bytes since the timer was set
        self._refusal: HeadraceError | None = None
        self._surplus = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        surplus = len(self.connections) - self._bounds.connections
        if surplus > SPARE:
            transport.abort()
        else:
            self._surplus = surplus > 0
            self._after(self._bounds.head_time, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        before = self._progress
        super().data_received(data)
        if self._refusal is not None or self.transport.is_closing():
            return
        # a chunk in which something ended is not counted: it may be the end of another message
        self._unread = self._unread + len(data) if self._progress == before else 0
        if self._unread > self._bounds.head_bytes:
            self._refuse(self._too_large())
        elif self._timer is None and self._in_head and (self.cycle is None or self.cycle.response_complete):
            self._after(self._bounds.head_time, self.transport.close)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio keeps a connection open on True
        """Go on with the requests of a client that has closed its sending side only (RFC 9112, 9.6)."""
        cycle = self.cycle
        if self._refusal is not None or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        self._probe()
        self._after(PEER_LOOK_S, self._look_at_peer)
        return True

    def _probe(self) -> None:
        """Write what means nothing: the system of a client that has closed both sides answers it with a reset."""
        cycle = self.cycle
        if self.pipeline or self.transport.is_closing() or cycle.scope["http_version"] != "1.1":
            return
        if not cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif cycle.chunked_encoding:
            self.transport.write(b"0")  # a leading zero of the size of the chunk that is next

    def _look_at_peer(self) -> None:
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._after(PEER_LOOK_S, self._look_at_peer)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._count = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > self._bounds.headers:
            self._fail(self._too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._bounds.head_bytes:
            self._fail(self._too_large())
        if self._surplus:
            self._fail(Unavailable(f"{self._bounds.connections} connections are open already", retry_after=1))
        self._in_head = False
        self._progress += 1
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = ClosingCycle
        self._await_body()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._progress += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop()
        self._in_head = True
        self._progress += 1
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete and not self.transport.is_closing():
            self._after(LINGER, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """The parser gave up: over our bounds, or by itself."""
        self._refuse(self._refusal or InvalidRequest("this is not HTTP, or not as it should be"))

    def _await_body(self) -> None:
        self._body = 0
        self._after(self._bounds.body_time, self._look_at_body)

    def _look_at_body(self) -> None:
        if self.flow.read_paused or self._body >= LEAST_RATE * self._bounds.body_time:
            self._await_body()
        else:
            self.transport.close()

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, what)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self) -> HeadraceError:
        bounds = self._bounds
        return HeaderTooLarge(f"a request's head may have {bounds.head_bytes} bytes and {bounds.headers} headers")

    def _fail(self, refusal: HeadraceError) -> None:
        """Inside the parser: it gives up, and `send_400_response` tells."""
        self._refusal = refusal
        raise refusal

    def _refuse(self, refusal: HeadraceError) -> None:
        """Answer, unless an answer has begun, and close; what still comes is dropped."""
        self._refusal = refusal
        self.logger.warning("Refused: %s", refusal.message)
        cycle = self.cycle
        if cycle is None or cycle.response_complete or self._unanswered(cycle):
            path = getattr(self, "url", b"").partition(b"?")[0].decode("ascii", "replace")
            answer = self._endpoints.errors_at(path).response(refusal, path)
            extra = [(b"x-request-id", secrets.token_hex(16).encode()), (b"connection", b"close")]
            lines = b"".join(b"%b: %b\r\n" % each for each in [*answer.raw_headers, *extra])
            self.transport.write(STATUS_LINE[answer.status_code] + lines + b"\r\n" + bytes(answer.body))
            self.transport.write_eof()
            self._after(LINGER, self.transport.close)
        elif cycle.more_body:
            self.transport.close()
        else:
            cycle.keep_alive = False  # it came whole before: it is answered, then the connection ends

    def _unanswered(self, cycle: RequestResponseCycle) -> bool:
        """Whether what is refused is in this request's body, before its answer began; then its route is ended."""
        if not cycle.more_body or cycle.response_started or self.pipeline:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True


class ClosingCycle(RequestResponseCycle):
    """uvicorn's, for HTTP/1.0, which has no chunks: a body without a length ends with the connection."""

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self.chunked_encoding = False
        elif message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
