"""Streams a TokenLog's events as server-sent events, at the client's pace.

The next event is read once the last frame is sent. Each API has a Framing, which writes the frames.
Reference: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from producer_api.http.open_streams import ClientGone, OpenAnswers, Stopping, disconnect, shutdown_error
from shared.errors import HeadraceError
from shared.protocol import TokenEvent
from shared.token_log.answer import ending

KEEPALIVE = b": keepalive\n"  # no blank line: once it has seen an id, OpenAI's package takes one for an event
RETRY = b"retry: 1000\n"  # milliseconds until a client that was asked to reconnect does so
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy must not buffer frames
]

log = structlog.get_logger(__name__)

Events = AsyncGenerator[TokenEvent | None]


class Framing(Protocol):
    """Frames of one API."""

    def opening(self) -> bytes:
        """Return the frames at the start of a stream, before the first event."""

    def event(self, event: TokenEvent) -> bytes:
        """Return the frames of one event; empty where it adds nothing visible."""

    def interruption(self, error: HeadraceError) -> bytes:
        """Return the frames that end a stream whose answer has not ended."""


class EventStream(Response):
    """Response that streams one answer.

    Args:
        events: from a TokenLog's `follow`; None asks for a keepalive.
        framing: writes the frames.
        open_answers: counts the stream, and ends it on shutdown.
        eager: send the status at once. Otherwise it waits for the first event or keepalive, so that a request that
            its worker refuses gets its real status.
        abandon: called when the stream ends before the answer; None for an answer that continues without its
            client, which can resume it.
        headers: in addition to those of every stream.
    """

    def __init__(
        self,
        events: Events,
        framing: Framing,
        open_answers: OpenAnswers,
        *,
        eager: bool,
        abandon: Callable[[], None] | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        more = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self.status_code, self.background, self.raw_headers = 200, None, [*HEADERS, *more]
        self._events = events
        self._framing = framing
        self._open_answers = open_answers
        self._eager = eager
        self._abandon = abandon
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._end(send)
            return
        frames: Send = scope["state"]["send"]
        try:
            await self._open_answers.run(
                self._write(send, frames), disconnect(receive), resumable=self._abandon is None
            )
        except ClientGone:
            self._abandon_answer()
            raise
        except Stopping:
            self._abandon_answer()
            if not self._started:
                raise shutdown_error() from None
            await self._end(send, self._framing.interruption(shutdown_error()))

    async def _write(self, send: Send, frames: Send) -> None:
        """Send the head by `send`, through every layer, and the frames by `frames`, directly to the server."""
        if self._eager:
            await self._start(send, frames)
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if not self._started:
                        _raise_refusal(event)
                        await self._start(send, frames)
                    if frame := KEEPALIVE if event is None else self._framing.event(event):
                        await frames(_part(frame))
        except HeadraceError as error:
            if not self._started:
                raise
            await self._interrupt(send, error)
        except Exception:
            if not self._started:
                raise
            log.exception("stream_failed")
            await self._interrupt(send, HeadraceError("internal server error"))
        else:
            await self._end(send)

    def _abandon_answer(self) -> None:
        if self._abandon is not None:
            self._abandon()

    async def _interrupt(self, send: Send, error: HeadraceError) -> None:
        self._abandon_answer()
        await self._end(send, self._framing.interruption(error))

    async def _start(self, send: Send, frames: Send) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if frame := self._framing.opening():
            await frames(_part(frame))

    async def _end(self, send: Send, frame: bytes = b"") -> None:
        await send({"type": "http.response.body", "body": frame, "more_body": False})


def _part(frame: bytes) -> Message:
    return {"type": "http.response.body", "body": frame, "more_body": True}


def _raise_refusal(event: TokenEvent | None) -> None:
    """Raise the error of a request that failed, or was cancelled, before its first token."""
    if event is None or event.tokens or event.terminal is None:
        return
    if (error := ending(event.terminal)) is not None:
        raise error
