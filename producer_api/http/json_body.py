"""Reads JSON request bodies into their schemas, and writes JSON responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from producer_api.admission.model_catalog import under_name
from producer_api.http.open_streams import ClientGone
from producer_api.http.threads import Threads
from shared.errors import MalformedBody, UnsupportedMediaType
from shared.protocol import Request as Draft
from shared.schemas.neutral_fields import RequestIdField
from shared.schemas.parsing import Model, validate
from shared.schemas.unknown_fields import ignored_fields
from shared.validation.schema_check import not_held

Result = TypeVar("Result")


async def read_body(request: Request, schema: type[Model]) -> Model:
    """Return the body as `schema`; its unknown fields are reported in the response's headers.

    Raises:
        UnsupportedMediaType, MalformedBody, InvalidFields (the fields at fault), ClientGone.
    """
    data = await _read_json_bytes(request)
    strict = request.app.state.context.settings.strict_fields

    def read() -> tuple[Model, str]:
        body = validate(data, schema, strict_fields=strict)
        return body, ignored_fields(body)

    body, ignored = await off_loop(request, read)
    facts = request.state.facts
    facts.report_ignored(ignored)
    if isinstance(body, RequestIdField) and body.request_id and "x-request-id" not in request.headers:
        facts.client.rename(body.request_id)
    return body


class Peeked(msgspec.Struct):
    """Fields of a body that decide which API reads it."""

    model: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()

    def has(self, name: str) -> bool:
        """Return whether a field has a value."""
        return bytes(getattr(self, name)) not in (b"", b"null")

    @property
    def model_name(self) -> str:
        """The name of the model; empty if the field is missing or no text."""
        try:
            return msgspec.json.decode(self.model, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return ""


async def peek(request: Request) -> Peeked:
    """Return some fields of a body without checking it; none if it is not a JSON object.

    Raises:
        UnsupportedMediaType, MalformedBody, ClientGone.
    """
    data = await _read_json_bytes(request)

    def read() -> Peeked:
        try:
            return msgspec.json.decode(data, type=Peeked)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):  # `read_body` says what is wrong
            return Peeked()

    return await off_loop(request, read)


async def _read_json_bytes(request: Request) -> bytes:
    """Return the body, which may be read again. Raises UnsupportedMediaType, MalformedBody, ClientGone.

    The required content type also keeps other sites' pages out: browsers send it only after a CORS preflight.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("content-type must be application/json")
    return await read_bytes(request)


async def read_bytes(request: Request) -> bytes:
    """Return the body, which may be read again. Raises MalformedBody, ClientGone."""
    context = request.app.state.context
    try:
        with context.body_timeouts.start():
            return await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise MalformedBody(f"the body did not arrive within {context.settings.body_timeout:.0f} s") from None


async def off_loop(request: Request, work: Callable[[], Result]) -> Result:
    """Return the result of `work` on a body that was read; large bodies are handled in a thread."""
    size = len(await request.body())
    threads: Threads = request.app.state.context.threads
    return await threads.run(size, work)


async def make_drafts(request: Request, make: Callable[[], Sequence[Draft]]) -> Sequence[Draft]:
    """Return the drafts of a body that was read, checked against the limits. Raises InvalidRequest, Unavailable.

    Keywords of schemas that answers are not held to are reported in the response's headers.
    """
    context = request.app.state.context
    model = await context.gateway.any_model()

    def checked() -> Sequence[Draft]:
        made = under_name(make(), model)
        context.gateway.check_together(made)
        return made

    made = await off_loop(request, checked)
    drafts: Sequence[Draft] = await context.catalog.resolved(made)
    request.state.facts.report_not_held(not_held(drafts))
    return drafts


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as a JSON response."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
