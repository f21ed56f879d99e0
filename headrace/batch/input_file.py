"""The input of a batch run: a file of lines, read one at a time, however large it is.

A line is OpenAI's batch line ({"custom_id", "method", "url", "body"}), or plain: the body alone, or one JSON
string, which is what a user says. It does not know where the requests go.

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

MOST_LINE = 8 * 2**20  # bytes of one line; a longer one is refused, and never in memory whole
CHUNK = 2**20
CHAT = "/v1/chat/completions"
JOBS = "/v1/jobs"
LINE_FIELDS = {"custom_id", "method", "url", "body"}


class Defaults(msgspec.Struct, frozen=True):
    """What a line gets that does not say it itself."""

    model: str
    max_tokens: int | None = None
    priority: str = "batch"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"model": self.model, "priority": self.priority, **body}
        if self.max_tokens is not None and "max_completion_tokens" not in body:
            found.setdefault("max_tokens", self.max_tokens)
        return found


@dataclass(frozen=True)
class Line:
    """One line that is not empty, by its number from 1; where `error` is set it is no request."""

    number: int
    custom_id: str | None
    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    error: HeadraceError | None = None


@dataclass(frozen=True)
class Source:
    """The file as it was when the run looked at it: its digest is its identity.

    `requests` counts the lines that are not empty, `lines` all.
    """

    path: Path
    digest: str
    lines: int
    requests: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """Raises ConfigError where it cannot be read."""
        digest, lines, requests = hashlib.sha256(), 0, 0
        try:
            with path.open("rb") as stream:
                for raw in _pieces(stream):
                    digest.update(raw.data)
                    lines += raw.last
                    requests += raw.last and not raw.empty
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        return cls(path, digest.hexdigest(), lines, requests)

    def read(self, wanted: Callable[[int], bool], defaults: Defaults) -> Iterator[Line]:
        """The lines whose number is wanted. Raises ConfigError where the file is gone or shorter than it was."""
        number, text, too_long = 1, b"", False
        try:
            with self.path.open("rb") as stream:
                for raw in _pieces(stream):
                    too_long = too_long or len(text) + len(raw.data) > MOST_LINE
                    text = b"" if too_long else text + raw.data
                    if not raw.last:
                        continue
                    if not raw.empty and wanted(number):
                        yield _too_long(number) if too_long else parse(number, text, defaults)
                    number, text, too_long = number + 1, b"", False
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from None
        if number <= self.lines:
            raise ConfigError(f"{self.path} became shorter while it was read")


@dataclass(frozen=True)
class _Piece:
    """A part of a line; with `last`, `empty` tells whether the whole line was white space."""

    data: bytes
    last: bool
    empty: bool


def _pieces(stream: IO[bytes]) -> Iterator[_Piece]:
    """The lines of a file in pieces of bounded size."""
    empty, open_line = True, False
    while data := stream.readline(CHUNK):
        empty = empty and not data.strip()
        last = data.endswith(b"\n")
        open_line = not last
        yield _Piece(data, last, empty)
        if last:
            empty = True
    if open_line:
        yield _Piece(b"", True, empty)


def _too_long(number: int) -> Line:
    return Line(number, None, error=PayloadTooLarge(f"the line is longer than {MOST_LINE} bytes"))


def parse(number: int, text: bytes, defaults: Defaults) -> Line:
    """What a line asks for. What is wrong with it is in the Line, not raised."""
    custom_id: str | None = None
    try:
        found = _decoded(text)
        if isinstance(found, str):
            found = {"messages": [{"role": "user", "content": found}]}
        if not isinstance(found, dict):
            raise MalformedBody("a line must be a JSON object or a string")
        custom_id = _custom_id(found, number)
        url, body = _batch_line(found) if "body" in found or "url" in found else _plain_line(found)
    except HeadraceError as error:
        return Line(number, custom_id, error=error)
    return Line(number, custom_id, url, defaults.complete(body))


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the line is no JSON: {error}") from None


def _custom_id(found: dict[str, Any], number: int) -> str:
    custom_id = found.get("custom_id", f"line-{number}")
    if not isinstance(custom_id, str):
        raise InvalidRequest("custom_id must be a string", param="custom_id")
    return custom_id


def _batch_line(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if unknown := set(found) - LINE_FIELDS:
        raise InvalidRequest(f"a batch line has no field {min(unknown)!r}", param=min(unknown))
    if found.get("method", "POST") != "POST":
        raise InvalidRequest("method must be POST", param="method")
    url, body = found.get("url", CHAT), found.get("body")
    if url not in (CHAT, JOBS):
        raise InvalidRequest(f"url must be {CHAT} or {JOBS}", param="url")
    if not isinstance(body, dict):
        raise InvalidRequest("body must be an object", param="body")
    return url, _whole(body) if url == CHAT else body


def _plain_line(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A chat, or a prompt that is taken as it is."""
    body = {name: value for name, value in found.items() if name not in ("custom_id", "method")}
    if ("messages" in body) == ("prompt" in body):
        raise InvalidRequest("a line must have a body, or either messages or a prompt", param="messages")
    return (CHAT, _whole(body)) if "messages" in body else (JOBS, body)


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion that is not streamed to anybody."""
    if body.get("stream"):
        raise InvalidRequest("stream: a batch has no streams", param="stream")
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
