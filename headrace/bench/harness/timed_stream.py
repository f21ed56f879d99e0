"""Parser of one streamed answer of an OpenAI-compatible server, which records arrival times and token counts.

It uses httptools and msgspec, since on a small machine a heavier client would measure itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import httptools
import msgspec

MAX_LINE_BYTES = 2**20
MAX_ERROR_CODE_CHARS = 40  # longer error codes of a server are cut


class StreamFailed(Exception):
    """The server refused the request, or the stream broke off. The message is the kind of error."""


@dataclass
class Sample:
    """Measurements of one request; times are time.perf_counter's. `scheduled`: when it should have been sent.

    An arrival is an event with text; it may hold several tokens.
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
    """Parser of one response. Feed it the bytes of the socket; it fills in the sample. Raises StreamFailed."""

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

    # callbacks of httptools

    def on_body(self, data: bytes) -> None:
        if self._parser.get_status_code() != 200:
            return
        now = time.perf_counter()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
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
            raise StreamFailed(f"stream error {code or ''}".strip()[:MAX_ERROR_CODE_CHARS])
        if chunk.usage is not None:
            self._counted = True
            self._sample.output_tokens = chunk.usage.completion_tokens
            self._sample.prompt_tokens = chunk.usage.prompt_tokens
        if any(choice.has_text() for choice in chunk.choices):
            self._sample.arrivals.append(now)
