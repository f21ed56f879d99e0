"""Reads JSON request bodies into their schemas, and writes JSON responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

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

    The required content type also keeps other sites' pages out: browsers send it only after a CORS preflight.

    Raises:
        UnsupportedMediaType, MalformedBody, InvalidFields (the fields at fault), ClientGone.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("content-type must be application/json")
    settings = request.app.state.context.settings
    data = await read_bytes(request)

    def read() -> tuple[Model, str]:
        body = validate(data, schema, strict_fields=settings.strict_fields)
        return body, ignored_fields(body)

    body, ignored = await off_loop(request, read)
    facts = request.state.facts
    facts.report_ignored(ignored)
    if isinstance(body, RequestIdField) and body.request_id and "x-request-id" not in request.headers:
        facts.client.rename(body.request_id)
    return body


async def read_bytes(request: Request) -> bytes:
    """Return the body. Raises MalformedBody, ClientGone."""
    limit = request.app.state.context.settings.body_timeout
    try:
        async with asyncio.timeout(limit):
            return await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise MalformedBody(f"the body did not arrive within {limit:.0f} s") from None


async def off_loop(request: Request, work: Callable[[], Result]) -> Result:
    """Return the result of `work` on a body that was read; large bodies are handled in a thread."""
    size = len(await request.body())
    threads: Threads = request.app.state.context.threads
    return await threads.run(size, work)


async def make_drafts(request: Request, make: Callable[[], Sequence[Draft]]) -> Sequence[Draft]:
    """Return the drafts of a body that was read, checked against the limits. Raises InvalidRequest, Unavailable.

    Keywords of schemas that answers are not held to are reported in the response's headers.
    """
    gateway = request.app.state.context.gateway
    model = await gateway.any_model()

    def checked() -> Sequence[Draft]:
        made = under_name(make(), model)
        gateway.check_together(made)
        return made

    drafts = await off_loop(request, checked)
    request.state.facts.report_not_held(not_held(drafts))
    return drafts


def json_response(value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as a JSON response."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
