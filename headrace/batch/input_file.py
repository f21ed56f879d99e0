"""Input file of a batch run, read line by line, so that its size does not matter.

A line is an OpenAI batch line ({"custom_id", "method", "url", "body"}), a request body alone, or one JSON string,
which is the text of a user message.

Reference: OpenAI API, "The request input object".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from shared.errors import ConfigError, HeadraceError, InvalidRequest, MalformedBody, PayloadTooLarge
from shared.files.json_lines import foreign_encoding, json_text

MAX_LINE_BYTES = 8 * 2**20  # a longer line is refused, and never held in memory as a whole
CHUNK_BYTES = 2**20
CHAT_URL = "/v1/chat/completions"
JOBS_URL = "/v1/jobs"
LINE_FIELDS = {"custom_id", "method", "url", "body"}


class Defaults(msgspec.Struct, frozen=True):
    """Values for the fields that a line leaves out."""

    model: str
    max_tokens: int | None = None
    priority: str = "batch"

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body with the missing fields filled in."""
        completed: dict[str, Any] = {"model": self.model, "priority": self.priority, **body}
        if self.max_tokens is not None and "max_completion_tokens" not in body:
            completed.setdefault("max_tokens", self.max_tokens)
        return completed


@dataclass(frozen=True)
class Line:
    """One non-empty line. `number` counts from 1. If `error` is set, the line is not a valid request."""

    number: int
    custom_id: str | None
    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    error: HeadraceError | None = None


@dataclass(frozen=True)
class InputFile:
    """The file as it was when it was scanned; its digest identifies it.

    `lines` counts all lines, `requests` only those that are not empty.
    """

    path: Path
    digest: str
    lines: int
    requests: int

    @classmethod
    def scan(cls, path: Path) -> InputFile:
        """Read the file once, for its digest and its number of lines.

        Raises ConfigError if it cannot be read, or is not UTF-8.
        """
        digest, lines, requests = hashlib.sha256(), 0, 0
        try:
            with path.open("rb") as stream:
                if encoding := foreign_encoding(stream.read(4)):
                    raise ConfigError(f"{path} must be UTF-8, but it is {encoding}")
                stream.seek(0)
                for raw in _pieces(stream):
                    digest.update(raw.data)
                    lines += raw.last
                    requests += raw.last and not raw.empty
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        return cls(path, digest.hexdigest(), lines, requests)

    def read(self, wanted: Callable[[int], bool], defaults: Defaults) -> Iterator[Line]:
        """Yield the non-empty lines whose number is wanted.

        Raises ConfigError if the file cannot be read or has become shorter since the scan.
        """
        number, text, too_long = 1, b"", False
        try:
            with self.path.open("rb") as stream:
                for raw in _pieces(stream):
                    too_long = too_long or len(text) + len(raw.data) > MAX_LINE_BYTES
                    text = b"" if too_long else text + raw.data
                    if not raw.last:
                        continue
                    if not raw.empty and wanted(number):
                        yield _too_long(number) if too_long else parse(number, text, defaults)
                    number, text, too_long = number + 1, b"", False
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from None
        if number <= self.lines:
            raise ConfigError(f"{self.path} became shorter during the run")


@dataclass(frozen=True)
class _Piece:
    """Part of a line. In the last part, `empty` is true if the whole line has no text."""

    data: bytes
    last: bool
    empty: bool


def _pieces(stream: IO[bytes]) -> Iterator[_Piece]:
    """Yield the lines of a file in pieces of at most CHUNK_BYTES."""
    empty, open_line, first = True, False, True
    while data := stream.readline(CHUNK_BYTES):
        empty = empty and not json_text(data, first=first)
        first = False
        last = data.endswith(b"\n")
        open_line = not last
        yield _Piece(data, last, empty)
        if last:
            empty = True
    if open_line:
        yield _Piece(b"", True, empty)


def _too_long(number: int) -> Line:
    return Line(number, None, error=PayloadTooLarge(f"the line is longer than {MAX_LINE_BYTES} bytes"))


def parse(number: int, text: bytes, defaults: Defaults) -> Line:
    """Return the request of a line. An error is stored in the Line, not raised."""
    custom_id: str | None = None
    try:
        found = _decoded(json_text(text, first=number == 1))
        if isinstance(found, str):
            found = {"messages": [{"role": "user", "content": found}]}
        if not isinstance(found, dict):
            raise MalformedBody("a line must be a JSON object or a string")
        custom_id = _custom_id(found, number)
        url, body = _batch_line(found) if "body" in found or "url" in found else _plain_line(found)
    except HeadraceError as error:
        return Line(number, custom_id, error=error)
    return Line(number, custom_id, url, defaults.apply(body))


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the line is not valid JSON: {error}") from None


def _custom_id(found: dict[str, Any], number: int) -> str:
    custom_id = found.get("custom_id", f"line-{number}")
    if not isinstance(custom_id, str):
        raise InvalidRequest("custom_id must be a string", param="custom_id")
    return custom_id


def _batch_line(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if unknown := set(found) - LINE_FIELDS:
        raise InvalidRequest(
            f"unknown field {min(unknown)!r}; a batch line has custom_id, method, url and body", param=min(unknown)
        )
    if found.get("method", "POST") != "POST":
        raise InvalidRequest("method must be POST", param="method")
    url, body = found.get("url", CHAT_URL), found.get("body")
    if url not in (CHAT_URL, JOBS_URL):
        raise InvalidRequest(f"url must be {CHAT_URL} or {JOBS_URL}", param="url")
    if not isinstance(body, dict):
        raise InvalidRequest("body must be an object", param="body")
    return url, _without_streaming(body) if url == CHAT_URL else body


def _plain_line(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the url and the body of a line that is a body alone: chat messages, or a raw prompt."""
    body = {name: value for name, value in found.items() if name not in ("custom_id", "method")}
    if ("messages" in body) == ("prompt" in body):
        raise InvalidRequest("a line must have a body, or exactly one of messages and prompt", param="messages")
    return (CHAT_URL, _without_streaming(body)) if "messages" in body else (JOBS_URL, body)


def _without_streaming(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("stream"):
        raise InvalidRequest("stream must be false in a batch", param="stream")
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
