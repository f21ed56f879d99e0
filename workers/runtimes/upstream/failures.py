"""Failures of an upstream server: which end a request, and which are tried again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

from shared.errors import (
    ContextLengthExceeded,
    HeadraceError,
    InvalidRequest,
    PayloadTooLarge,
    UpstreamRefused,
)
from shared.numbers import whole

MAX_QUOTED_CHARS = 300  # of an upstream server's message
CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error")
INVALID_KINDS = (*CONTEXT_CODES, "invalid_request_error", "BadRequestError")
BUSY = (429, 503)


class Broken(Exception):
    """An attempt failed in a way that another may not: a lost connection, a malformed or incomplete answer."""


class Busy(Exception):
    """The server asks to come back later; `seconds` is its Retry-After, None without one."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


class _Details(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    type: str | None = None


class ErrorBody(msgspec.Struct):
    """Body of an error, in the forms of OpenAI, vLLM, llama.cpp and FastAPI."""

    error: _Details | str | None = None
    message: str | None = None
    detail: str | None = None

    @classmethod
    def parse(cls, body: bytes) -> ErrorBody:
        """Return the error that a body describes, without a message if it describes none."""
        try:
            return msgspec.json.decode(body, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return cls()

    @property
    def text(self) -> str:
        if isinstance(self.error, _Details):
            return self.error.message
        return self.error or self.message or self.detail or ""

    @property
    def code(self) -> str | int | None:
        return self.error.code if isinstance(self.error, _Details) else None

    @property
    def kind(self) -> str | None:
        return self.error.type if isinstance(self.error, _Details) else None


def failure(status: int, body: ErrorBody, headers: Mapping[str, str], key: str) -> Exception:
    """Return the error for a refusal: a HeadraceError ends the request, Broken and Busy are tried again.

    Args:
        key: the worker's API key, which no message may show.
    """
    said = quoted(body.text, key)
    if 300 <= status < 400:
        return UpstreamRefused(
            f"the upstream server redirects to another address (HTTP {status}), which is not followed: set "
            "upstream_url to that address"
        )
    if status in (401, 403):
        return UpstreamRefused(f"the upstream server refused the key of this worker (HTTP {status})")
    if status in BUSY:
        return Busy(f"the upstream server is busy (HTTP {status}){said}", retry_after(headers.get("retry-after")))
    if status in (404, 405, 501):
        return UpstreamRefused(f"the upstream server has no such model or route (HTTP {status}){said}")
    if status in (408, 425) or status >= 500 or status < 400:
        return Broken(f"the upstream server failed (HTTP {status}){said}")
    return _invalid(status, body, said)


def _invalid(status: int, body: ErrorBody, said: str) -> HeadraceError:
    message = f"the upstream server refused the request (HTTP {status}){said}"
    if status == 413:
        return PayloadTooLarge(message)
    if body.code in CONTEXT_CODES or body.kind in CONTEXT_CODES:
        return ContextLengthExceeded(message)
    return InvalidRequest(message)


def failure_in_answer(body: ErrorBody, key: str) -> Exception:
    """Return the error that an answer with the status 200 contains."""
    code = body.code
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    if code in CONTEXT_CODES or body.kind in INVALID_KINDS:
        status = 400
    return failure(status, body, {}, key)


def quoted(text: str, key: str) -> str:
    """Return a server's message after a colon: bounded, on one line, and without the key; "" for none."""
    if key:
        text = text[: 10 * MAX_QUOTED_CHARS].replace(key, "***")
    shown = " ".join(text[: 10 * MAX_QUOTED_CHARS].split())
    shown = "".join(character for character in shown if character.isprintable())
    if not shown:
        return ""
    return f": {shown[:MAX_QUOTED_CHARS]}{'…' if len(shown) > MAX_QUOTED_CHARS else ''}"


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which has seconds or a date; None if it has neither."""
    if value is None:
        return None
    seconds = whole(value.strip())
    if seconds is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
