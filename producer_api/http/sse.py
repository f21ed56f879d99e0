"""A TokenLog's events as server-sent events, at the client's pace: nothing is read before the last frame is taken.

Reference: WHATWG HTML, "Server-sent events". It does not know what a frame says: a Framing of each API does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from producer_api.http.open_streams import Attendance, ClientGone, Stopping, disconnect, stopping
from shared.errors import HeadraceError
from shared.protocol import TokenEvent
from shared.token_log.answer import ending

KEEPALIVE = b": keepalive\n"  # no blank line: OpenAI's package takes one for an event once it has seen an id
RETRY = b"retry: 1000\n"  # when a client that was asked to connect again does so, in milliseconds
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy in between must not hold frames back
]

log = structlog.get_logger(__name__)

Events = AsyncGenerator[TokenEvent | None]


class Framing(Protocol):
    """How one API words an answer."""

    def opening(self) -> bytes:
        """The frames that a stream begins with, before anything is known of the answer."""

    def event(self, event: TokenEvent) -> bytes:
        """The frames of one event; none where it adds nothing visible."""

    def interruption(self, error: HeadraceError) -> bytes:
        """The frames that end a stream whose answer has not ended."""


class EventStream(Response):
    """A stream as the answer to one request.

    Args:
        events: of a TokenLog's `follow`; None means that the client has been without a sign for long enough.
        framing: what the frames say.
        attendance: whom to tell of the open stream.
        eager: send the status at once. Otherwise it waits for the first event or silence, so that a request refused
            by its worker still gets its real status.
        abandon: called when the stream ends before the answer does; None for an answer that goes on by itself, to
            which its client can come back.
        headers: beside those of every stream.
    """

    def __init__(
        self,
        events: Events,
        framing: Framing,
        attendance: Attendance,
        *,
        eager: bool,
        abandon: Callable[[], None] | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        told = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self.status_code, self.background, self.raw_headers = 200, None, [*HEADERS, *told]
        self._events = events
        self._framing = framing
        self._attendance = attendance
        self._eager = eager
        self._abandon = abandon
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        frames: Send = scope["state"]["send"]
        try:
            await self._attendance.attend(
                self._write(send, frames), disconnect(receive), resumable=self._abandon is None
            )
        except ClientGone:
            self._leave()
            raise
        except Stopping:
            self._leave()
            if not self._started:
                raise stopping() from None
            await self._end(send, self._framing.interruption(stopping()))

    async def _write(self, send: Send, frames: Send) -> None:
        """The status by `send`, through every layer; what follows by `frames`, straight to the server."""
        if self._eager:
            await self._start(send, frames)
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if not self._started:
                        _raise_refusal(event)
                        await self._start(send, frames)
                    frame = KEEPALIVE if event is None else self._framing.event(event)
                    await _tell(frames, frame)
        except HeadraceError as error:
            if not self._started:
                raise
            await self._interrupt(send, error)
        except Exception:
            if not self._started:
                raise
            log.exception("stream_failed")
            await self._interrupt(send, HeadraceError("the server failed"))
        else:
            await self._end(send)

    def _leave(self) -> None:
        if self._abandon is not None:
            self._abandon()

    async def _interrupt(self, send: Send, error: HeadraceError) -> None:
        self._leave()
        await self._end(send, self._framing.interruption(error))

    async def _start(self, send: Send, frames: Send) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _tell(frames, self._framing.opening())

    async def _end(self, send: Send, frame: bytes = b"") -> None:
        await send({"type": "http.response.body", "body": frame, "more_body": False})


async def _tell(frames: Send, frame: bytes) -> None:
    if frame:
        await frames({"type": "http.response.body", "body": frame, "more_body": True})


def _raise_refusal(event: TokenEvent | None) -> None:
    """A request that failed, or was cancelled, before its first token."""
    if event is None or event.tokens or event.terminal is None:
        return
    if (error := ending(event.terminal)) is not None:
        raise error
