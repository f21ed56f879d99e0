"""JSON bodies: a request's read into its schema, an answer's written. It knows nothing of what the fields mean."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from producer_api.attend import ClientGone
from shared.errors import MalformedBody, UnsupportedMediaType
from shared.schemas.validation import Model, validate


async def read_body(request: Request, schema: type[Model]) -> Model:
    """The body as `schema`.

    Insisting on the content type also keeps other sites' pages out: browsers do not send that unasked.

    Raises:
        UnsupportedMediaType, MalformedBody, InvalidFields (the fields at fault), ClientGone.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("content-type must be application/json")
    limit = request.app.state.context.settings.body_timeout
    try:
        async with asyncio.timeout(limit):
            data = await request.body()
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise MalformedBody(f"the body did not arrive within {limit:.0f} s") from None
    return validate(data, schema)


def json_answer(value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says `value`."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
