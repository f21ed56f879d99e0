"""Reads one streamed answer of an OpenAI-compatible server: HTTP in, arrival times and token counts out.

It parses with httptools and msgspec, since on a small machine a heavier client would measure itself. It knows
nothing of sockets or of load.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import httptools
import msgspec

MOST_LINE = 2**20  # bytes
MOST_KIND = 40  # characters of a server's error code that are kept


class StreamFailed(Exception):
    """The server said no, or the stream broke off; the message is the kind of error."""


@dataclass
class Sample:
    """What one request gave; times by time.perf_counter. `scheduled` is when it should have been sent.

    An arrival is an event with text: a server may put several tokens into one.
    """

    scheduled: float
    arrivals: list[float] = field(default_factory=list)
    ended: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int = 0
    error: str | None = None

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None

    def has_text(self) -> bool:
        return bool(self.text or (self.delta is not None and self.delta.content))


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Error(msgspec.Struct):
    code: str | int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


_DECODER = msgspec.json.Decoder(_Chunk)


class AnswerStream:
    """One response. Feed it what the socket gives; it fills in the sample, and raises StreamFailed."""

    def __init__(self, sample: Sample) -> None:
        self.complete = False
        self._sample = sample
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._done = False
        self._counted = False

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, StreamFailed):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError:
            raise StreamFailed("malformed HTTP") from None

    # called by the parser

    def on_body(self, data: bytes) -> None:
        if self._parser.get_status_code() != 200:
            return
        now = time.perf_counter()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MOST_LINE:
            raise StreamFailed("oversized event")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def on_message_complete(self) -> None:
        self.complete = True
        status = self._parser.get_status_code()
        if status != 200:
            raise StreamFailed(f"HTTP {status}")
        if not self._done:
            raise StreamFailed("stream without [DONE]")
        if not self._counted:
            raise StreamFailed("no usage")

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            chunk = _DECODER.decode(data)
        except msgspec.DecodeError:
            raise StreamFailed("malformed event") from None
        if chunk.error is not None:
            code = chunk.error.code if isinstance(chunk.error, _Error) else None
            raise StreamFailed(f"stream error {code or ''}".strip()[:MOST_KIND])
        if chunk.usage is not None:
            self._counted = True
            self._sample.output_tokens = chunk.usage.completion_tokens
            self._sample.prompt_tokens = chunk.usage.prompt_tokens
        if any(choice.has_text() for choice in chunk.choices):
            self._sample.arrivals.append(now)
