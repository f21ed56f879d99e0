"""A client of Headrace's own API: submit, follow through lost connections, cancel, chat.

It knows HTTP alone: nothing of Redis or of engines.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import stamina
from httpx_sse import EventSource, ServerSentEvent, connect_sse

from shared.errors import HeadraceError, Unavailable, error_classes

SILENCE = 60.0  # seconds; the server sends a comment at least every 15
ENDINGS = ("done", "error", "cancelled")
ATTEMPTS = 30  # reconnections in a row without a new token, about a minute in all


@dataclass(frozen=True)
class JobEvent:
    """One server-sent event of a job: `name` is token, done, error or cancelled; `seq` that of its last token."""

    seq: int
    name: str
    data: dict[str, Any]


class HeadraceClient:
    """Talks to one API address; a context manager. Every call may raise HeadraceError, as the server named it."""

    def __init__(self, base_url: str) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=httpx.Timeout(10, read=SILENCE))
        self._url = base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "/v1/jobs", json=body)

    def job(self, job_id: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._call("DELETE", f"/v1/jobs/{job_id}")

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/v1/models")["data"]
        return found

    def ready(self) -> dict[str, Any]:
        """What /ready says, ready or not."""
        return self._decode(self._send("GET", "/ready"))

    def events(self, job_id: str, after: int = -1) -> Iterator[JobEvent]:
        """Each event after seq `after`, once, through lost connections; the last one tells the end."""
        seen = after
        while True:
            for attempt in stamina.retry_context(
                on=(httpx.TransportError, Unavailable), attempts=ATTEMPTS, wait_max=2
            ):
                with attempt:
                    for event in self._stream(job_id, seen):
                        if event.name == "interrupted":
                            break
                        seen = event.seq
                        yield event
                        if event.name in ENDINGS:
                            return
                    else:
                        if self.job(job_id)["state"] in ("completed", "failed", "cancelled"):
                            return

    def _stream(self, job_id: str, after: int) -> Iterator[JobEvent]:
        path = f"/v1/jobs/{job_id}/events"
        with connect_sse(self._http, "GET", path, params={"after": after}) as source:
            self._checked(source)
            if source.response.status_code == httpx.codes.NO_CONTENT:
                return
            for frame in _frames(source):
                yield JobEvent(int(frame.id or after), frame.event, json.loads(frame.data))

    def chat(self, body: dict[str, Any]) -> Generator[str]:
        """The text of one streamed chat completion, piece by piece."""
        with connect_sse(self._http, "POST", "/v1/chat/completions/stream", json=body) as source:
            self._checked(source)
            for frame in _frames(source):
                if frame.data == "[DONE]":
                    return
                chunk = json.loads(frame.data)
                if "error" in chunk:
                    raise error_of(chunk["error"])
                for choice in chunk["choices"]:
                    if text := choice["delta"].get("content"):
                        yield text
        raise Unavailable("the stream ended before the answer did")

    def _checked(self, source: EventSource) -> None:
        if source.response.is_error:
            source.response.read()
            self._refuse(source.response)

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._send(method, path, **options)
        if response.is_error:
            self._refuse(response)
        return self._decode(response)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unavailable(f"no Headrace answers at {self._url}: {error}") from error

    def _refuse(self, response: httpx.Response) -> None:
        body = self._decode(response)
        raise error_of(body.get("error", body))

    def _decode(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body: dict[str, Any] = response.json()
        except ValueError:
            raise HeadraceError(f"{self._url} answered {response.status_code} without JSON: no Headrace?") from None
        return body


def _frames(source: EventSource) -> Iterator[ServerSentEvent]:
    """Events with data. httpx-sse also gives one for a comment that follows an id, which the standard drops."""
    return (frame for frame in source.iter_sse() if frame.data)


def error_of(body: dict[str, Any]) -> HeadraceError:
    """The server's error object, OpenAI's or RFC 9457's, as the class that its code names."""
    cls = error_classes().get(body.get("code") or "", HeadraceError)
    message = body.get("message") or body.get("detail") or body.get("title") or "the server refused"
    return cls(message, param=body.get("param"))
