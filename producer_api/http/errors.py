"""Turns an error into the words of the API that was called: OpenAI's error object, or an RFC 9457 problem.

It does not know where errors come from; unexpected ones are logged by the request log and told as a plain 500.
"""

from __future__ import annotations

import http
import math
import re
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from shared.errors import (
    HeadraceError,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
)
from shared.schemas.parsing import InvalidFields

NATIVE = ("/v1/jobs/", "/v1/dead-letters/")
OPENAI_TOO = ("/tokenize", "/detokenize")  # vLLM's

# what an API calls the fields that errors name as a chat does
FIELDS = {
    "/v1/responses": (
        (r"^messages\b.*", "input"),
        (r"^max_tokens$", "max_output_tokens"),
        (r"^logprobs$", "top_logprobs"),
        (r"^(tools\[\d+\])\.function", r"\1"),
    )
}

# what the SDK's users see as `error.type`, by HTTP status
OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


def speaks_openai(path: str) -> bool:
    if path.rstrip("/") in OPENAI_TOO:
        return True
    return path.startswith("/v1/") and not any(f"{path}/".startswith(prefix) for prefix in NATIVE)


def openai_error(error: HeadraceError) -> dict[str, Any]:
    """The body that the SDKs make their exceptions from."""
    kind = OPENAI_TYPES.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def problem(error: HeadraceError, instance: str) -> dict[str, Any]:
    """An RFC 9457 problem, extended by our code, param and, for a body, all that is wrong with it."""
    found: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "instance": instance,
        "code": error.code,
    }
    if error.param is not None:
        found["param"] = error.param
    if isinstance(error, InvalidFields):
        found["errors"] = [{"param": param, "message": message} for param, message in error.fields]
    return found


def error_response(error: HeadraceError, path: str) -> Response:
    """`error` in the shape of the API at `path`, with Retry-After where a time is known."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        wrong = ', error="invalid_token"' if isinstance(error, InvalidApiKey) else ""
        headers["www-authenticate"] = f'Bearer realm="headrace"{wrong}'
    if speaks_openai(path):
        headers["x-should-retry"] = "true" if error.retryable else "false"  # the SDKs would retry any 409 or 5xx
        body, media_type = openai_error(renamed(error, path)), "application/json"
    else:
        body, media_type = problem(error, path), "application/problem+json"
    return Response(msgspec.json.encode(body), error.status, headers, media_type)


def renamed(error: HeadraceError, path: str) -> HeadraceError:
    """With the name that the field has in that API; what its schema found is by that name already."""
    if error.param is None or isinstance(error, InvalidFields):
        return error
    for pattern, to in FIELDS.get(path, ()):
        if (name := re.sub(pattern, to, error.param)) != error.param:
            rest = error.message.removeprefix(f"{error.param} ")
            message = error.message if rest == error.message else f"{name} {rest}"
            return type(error)(message, param=name, retry_after=error.retry_after)
    return error


def register_errors(app: FastAPI) -> None:
    """Answer our own errors and the router's in the shape of the API that was called."""

    async def ours(request: Request, error: HeadraceError) -> Response:
        return error_response(error, request.url.path)

    async def routers(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            response = error_response(MethodNotAllowed(f"{request.method} is not allowed on {path}"), path)
            response.headers.update(error.headers or {})
            return response
        if error.status_code == 404:
            return error_response(NotFound(f"there is nothing at {path}"), path)
        return error_response(InvalidRequest(str(error.detail)), path)

    app.exception_handler(HeadraceError)(ours)
    app.exception_handler(HTTPException)(routers)
