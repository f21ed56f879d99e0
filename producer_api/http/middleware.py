"""Middleware around all endpoints: request id, log, security headers, limits on requests and bodies.

Pure ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import time
from functools import partial
from urllib.parse import quote

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer_api.auth.client_address import TrustedProxies
from producer_api.http.endpoint_table import EndpointTable, match_of
from producer_api.http.errors import error_response
from producer_api.http.open_streams import ClientGone, OpenAnswers, shutdown_error
from producer_api.observability.request_log import CLIENT_CLOSED, RequestFacts, RequestLogger
from shared.errors import PayloadTooLarge, Unavailable
from shared.tracing.conventions import http_span, http_status

# RequestLog makes the spans. FastAPI's own hold paths, queries and the messages of errors, and appear wherever a
# provider for the whole process is set, or FASTAPI_OTEL_AUTO_CONFIGURE.
NO_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)
# for responses that declare none; without img-src, browsers report their own request for the icon as blocked
DEFAULT_POLICY = b"default-src 'none'; img-src 'self'; frame-ancestors 'none'"
SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


class RequestId:
    """Matches each request to its endpoint, and returns its id, the client's if valid."""

    def __init__(self, app: ASGIApp, endpoints: EndpointTable, proxies: TrustedProxies) -> None:
        self._app = app
        self._endpoints = endpoints
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = self._proxies.client((scope.get("client") or ("",))[0], scope["headers"])
        state = scope.setdefault("state", {})
        state["match"] = self._endpoints.match(scope["method"], _sent_path(scope))
        scope["path"] = state["match"].path  # so that no inner layer sees another spelling of the same path
        facts = state["facts"] = RequestFacts(client, time.perf_counter())
        # for the frames of a stream, of which only the head passes every layer; Headrace's server has set its own
        state.setdefault("send", send)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = {"x-request-id": client.http_request_id, **facts.headers}
                added = [(name.encode(), value.encode()) for name, value in more.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_with_id)


def _sent_path(scope: Scope) -> str:
    """Return the path as it was sent; the ASGI specification lets servers leave it out."""
    raw: bytes | None = scope.get("raw_path")
    return quote(scope["path"]) if raw is None else raw.decode("latin-1")


class RequestLog:
    """Logs and counts each request; logs unexpected errors, and answers them with a 500 without internals."""

    def __init__(self, app: ASGIApp, journal: RequestLogger) -> None:
        self._app = app
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts: RequestFacts = scope["state"]["facts"]
        found = match_of(scope)
        quiet = found.endpoint is not None and not found.endpoint.logged
        if not quiet:
            self._journal.begin(facts, partial(http_span, scope["method"], found.template))
        status = 0

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        except ClientGone:
            status = CLIENT_CLOSED
        except Exception:
            failure = self._journal.failure(facts)
            if status:
                raise  # too late for a response: the server closes the connection
            await error_response(failure, scope)(scope, receive, send_noting_status)
        finally:
            if facts.span is not None:
                facts.span.set(http_status(status))
            self._journal.write(facts, method=scope["method"], route=found.template, status=status, quiet=quiet)


class SecurityHeaders:
    """Adds the headers that restrict browsers, and DEFAULT_POLICY where the response has no policy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *SECURITY]
                if all(name != b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", DEFAULT_POLICY))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_secured)


class Drain:
    """Refuses new work while the server shuts down, and closes each connection after its response."""

    def __init__(self, app: ASGIApp, open_answers: OpenAnswers) -> None:
        self._app = app
        self._open_answers = open_answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._open_answers.draining:
            await self._app(scope, receive, send)
            return

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        endpoint = match_of(scope).endpoint
        if endpoint is not None and endpoint.while_draining:
            await self._app(scope, receive, send_closing)
        else:
            await error_response(shutdown_error(), scope)(scope, receive, send_closing)


class RequestLimit:
    """Refuses more than `max_requests` requests at a time."""

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._open >= self._max_requests:
            refusal = Unavailable(
                f"the server handles {self._max_requests} requests already, its limit", retry_after=1
            )
            await error_response(refusal, scope)(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1


class BodyLimit:
    """Refuses a body of more bytes than its endpoint takes: by its declared length, or while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = match_of(scope).endpoint
        uploads = endpoint is not None and endpoint.uploads
        max_bytes = self._max_upload_bytes if uploads else self._max_bytes
        refusal = PayloadTooLarge(f"the body must have at most {max_bytes} bytes")
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(declared) > max_bytes:  # the HTTP parser has checked that it is a number
            await error_response(refusal, scope)(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise refusal
            return message

        await self._app(scope, receive_counted, send)
