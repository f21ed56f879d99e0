"""Errors in the format of the API that was called: OpenAI's, TGI's, KServe's, or an RFC 9457 problem."""

from __future__ import annotations

import http
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from shared.errors import (
    DeadlineExceeded,
    EngineFailed,
    HeadraceError,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    QueueFull,
    RateLimited,
    RequestAbandoned,
    RequestLost,
    TenantQueueFull,
    Unauthenticated,
    UpstreamFailed,
)
from shared.schemas.parsing import InvalidFields

if TYPE_CHECKING:  # the tasks process needs no application
    from fastapi import FastAPI

# `error.type` in the SDKs, by HTTP status
OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}

FieldNames = tuple[tuple[str, str], ...]  # patterns of an error's param, and what an API calls the field instead


def openai_error(error: HeadraceError) -> dict[str, Any]:
    """Return the body from which the SDKs make their exceptions."""
    kind = OPENAI_TYPES.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    found = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": found | error.details}


def renamed(error: HeadraceError, names: FieldNames) -> HeadraceError:
    """Return the error with an API's name of the field; schema errors have it already."""
    if error.param is None or isinstance(error, InvalidFields):
        return error
    for pattern, replacement in names:
        if (name := re.sub(pattern, replacement, error.param)) != error.param:
            rest = error.message.removeprefix(f"{error.param} ")
            message = error.message if rest == error.message else f"{name} {rest}"
            return type(error)(message, param=name, retry_after=error.retry_after)
    return error


def problem(error: HeadraceError, instance: str) -> dict[str, Any]:
    """Return an RFC 9457 problem, extended by code, param and, for a body, every field at fault."""
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
    found |= error.details
    if isinstance(error, InvalidFields):
        found["errors"] = [{"param": param, "message": message} for param, message in error.fields]
    return found


class _TgiKind(NamedTuple):
    """Kind of error in TGI's API; the text begins with `words`."""

    status: int
    type: str
    words: str = ""


TGI_GRAMMAR = "parameters.grammar"  # the field of a constraint
TGI_FIELDS: FieldNames = (
    ("^prompt$", "inputs"),
    ("^max_tokens$", "max_new_tokens"),
    ("^n$", "best_of"),
    ("^truncate_prompt_tokens$", "truncate"),
)


def _tgi_kind(error: HeadraceError) -> _TgiKind:
    """Return TGI's kind of an error; those that TGI does not know keep their status and code."""
    match error:
        case InvalidRequest():
            return _TgiKind(422, "validation", "Input validation error: ")
        case QueueFull() | TenantQueueFull() | RateLimited(retryable=True):
            return _TgiKind(429, "overloaded", "Model is overloaded: ")
        case EngineFailed() | UpstreamFailed() | RequestAbandoned():
            return _TgiKind(424, "generation", "Request failed during generation: ")
        case DeadlineExceeded() | RequestLost() | HeadraceError(code="internal_error"):
            return _TgiKind(error.status, "incomplete_generation", "Incomplete generation: ")
        case _:
            return _TgiKind(error.status, error.code)


def tgi_error(error: HeadraceError) -> dict[str, Any]:
    """Return the body from which huggingface_hub makes its exceptions."""
    kind = _tgi_kind(error)
    text = renamed(error, TGI_FIELDS).message
    if error.param == TGI_GRAMMAR:
        text = f"grammar is not valid: {text}"
    return {"error": kind.words + text, "error_type": kind.type} | error.details


def incomplete_stream(error: HeadraceError) -> dict[str, Any]:
    """Return the data that ends a stream of TGI's API before its answer has ended."""
    return {
        "error": f"Incomplete generation stream: {error.message}",
        "error_type": "incomplete_generation_stream",
    }


class ErrorFormat(Protocol):
    """Error bodies of one API."""

    schema: ClassVar[str]  # its name in the OpenAPI document
    media_type: ClassVar[str]

    def body(self, error: HeadraceError, path: str) -> dict[str, Any]: ...

    def response(self, error: HeadraceError, path: str) -> Response:
        """Return the response to a request for `path`, with Retry-After where a time is known."""


@dataclass(frozen=True)
class OpenAIErrors:
    """OpenAI's error object.

    Attributes:
        field_names: what this API calls the fields that errors name as a chat does.
    """

    field_names: FieldNames = ()
    schema: ClassVar[str] = "OpenAIError"
    media_type: ClassVar[str] = "application/json"

    def response(self, error: HeadraceError, path: str) -> Response:
        retry = "true" if error.retryable else "false"  # the SDKs would retry any 409 or 5xx
        headers = {"x-should-retry": retry, **_headers(error)}
        return Response(msgspec.json.encode(self.body(error, path)), error.status, headers, self.media_type)

    def body(self, error: HeadraceError, path: str) -> dict[str, Any]:
        return openai_error(renamed(error, self.field_names))


@dataclass(frozen=True)
class Problems:
    """RFC 9457 problems, in the native APIs."""

    schema: ClassVar[str] = "Problem"
    media_type: ClassVar[str] = "application/problem+json"

    def body(self, error: HeadraceError, path: str) -> dict[str, Any]:
        return problem(error, path)

    def response(self, error: HeadraceError, path: str) -> Response:
        body = msgspec.json.encode(self.body(error, path))
        return Response(body, error.status, _headers(error), self.media_type)


@dataclass(frozen=True)
class TgiErrors:
    """TGI's errors: a text and a type."""

    schema: ClassVar[str] = "TgiError"
    media_type: ClassVar[str] = "application/json"

    def body(self, error: HeadraceError, path: str) -> dict[str, Any]:
        return tgi_error(error)

    def response(self, error: HeadraceError, path: str) -> Response:
        body = msgspec.json.encode(tgi_error(error))
        return Response(body, _tgi_kind(error).status, _headers(error), self.media_type)


class KServeErrors:
    """A text alone, in KServe's protocol. A prompt is the input `text_input` there."""

    field_names: ClassVar[FieldNames] = ((r"^prompt$", "text_input"),)
    schema: ClassVar[str] = "KServeError"
    media_type: ClassVar[str] = "application/json"

    def body(self, error: HeadraceError, path: str) -> dict[str, Any]:
        return {"error": renamed(error, self.field_names).message} | error.details

    def response(self, error: HeadraceError, path: str) -> Response:
        body = msgspec.json.encode(self.body(error, path))
        return Response(body, error.status, _headers(error), self.media_type)


OPENAI = OpenAIErrors()
NATIVE = Problems()
TGI = TgiErrors()
KSERVE = KServeErrors()


def _headers(error: HeadraceError) -> dict[str, str]:
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        wrong = ', error="invalid_token"' if isinstance(error, InvalidApiKey) else ""
        headers["www-authenticate"] = f'Bearer realm="headrace"{wrong}'
    return headers


def error_response(error: HeadraceError, scope: Scope) -> Response:
    """Return `error` in the format of the API that the request is for."""
    errors: ErrorFormat = scope["state"]["match"].errors
    if (facts := scope["state"].get("facts")) is not None:
        facts.refusal = error.code
    return errors.response(error, scope["path"])


def register_errors(app: FastAPI) -> None:
    """Answer our own errors and the router's in the format of the API that was called."""

    async def answer_error(request: Request, error: HeadraceError) -> Response:
        return error_response(error, request.scope)

    async def answer_router_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            refusal: HeadraceError = MethodNotAllowed(f"{request.method} is not allowed on {path}")
        elif error.status_code == 404:
            refusal = NotFound(f"there is nothing at {path}")
        else:
            refusal = InvalidRequest(str(error.detail))
        response = error_response(refusal, request.scope)
        response.headers.update(error.headers or {})
        return response

    app.exception_handler(HeadraceError)(answer_error)
    app.exception_handler(HTTPException)(answer_router_error)
