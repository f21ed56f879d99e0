"""The OpenAPI document, made from the declarations of the endpoints."""

from __future__ import annotations

import http
import inspect
from collections.abc import Callable, Mapping, Sequence

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.responses import Response
from starlette.routing import compile_path

from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.openapi.examples import filled
from producer_api.openapi.parameters import TURN, Described

REF = "#/components/schemas/{}"
Responses = dict[int | str, Described]

_NULLABLE_STRING = {"type": ["string", "null"]}
ERRORS: Described = {
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {**_NULLABLE_STRING, "description": "the field at fault"},
                    "code": {"type": "string"},
                },
            }
        },
    },
    "TgiError": {
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
    },
    "KServeError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "required": ["type", "title", "status", "detail", "instance", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string"},
            "code": {"type": "string"},
            "param": {"type": "string", "description": "the field at fault"},
            "errors": {
                "type": "array",
                "description": "every field at fault",
                "items": {
                    "type": "object",
                    "properties": {"param": {"type": "string"}, "message": {"type": "string"}},
                },
            },
        },
    },
}

EVENT: Described = {  # one event of a stream
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def describe(app: FastAPI, endpoints: Sequence[Endpoint], models: Mapping[str, str]) -> None:
    """Make `app.openapi` return the document of `endpoints`; it is built once, when it is first requested.

    Args:
        models: names of the server's models, by the placeholders of examples.
    """
    shown = [each for each in endpoints if each.summary]

    def document() -> Described:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, shown, models)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, endpoints: Sequence[Endpoint], models: Mapping[str, str]) -> Described:
    routes = [_route(each, models) for each in endpoints]
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=routes)
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "required if the server's `auth` is on"}
    }
    components["schemas"] = components.get("schemas", {}) | _schemas(endpoints) | ERRORS
    return document


def _schemas(endpoints: Sequence[Endpoint]) -> Described:
    """Return the components that the endpoints' bodies and responses refer to."""
    bodies = [each.body for each in endpoints if each.body is not None]
    responses = [response for each in endpoints for response in each.responses]
    structs = [
        struct
        for response in responses
        for struct in (response.struct, *(response.events or ()))
        if struct is not None
    ]
    models = models_json_schema(
        [(body, "validation") for body in dict.fromkeys(bodies)], ref_template=REF.format("{model}")
    )
    components = msgspec.json.schema_components(list(dict.fromkeys(structs)), ref_template=REF.format("{name}"))
    found: Described = models[1].get("$defs", {}) | components[1]
    return found


def _route(endpoint: Endpoint, models: Mapping[str, str]) -> APIRoute:
    """Return a route that FastAPI can describe; it is never called."""
    responses: Responses = {each.status: _response(each) for each in endpoint.responses}
    responses |= {status: _failure(endpoint, status) for status in endpoint.failures}
    extra = _request_body(endpoint, models)
    if parameters := [*endpoint.parameters, *(TURN if endpoint.charged else ())]:
        extra["parameters"] = parameters
    if not endpoint.public:
        extra["security"] = [{"key": []}]
        responses |= {status: _failure(endpoint, status) for status in (401, 403, 429)}
    return APIRoute(
        endpoint.path,
        _stub(endpoint),
        methods=[endpoint.method],
        name=endpoint.handler.__name__,
        summary=endpoint.summary,
        tags=[endpoint.tag],
        status_code=endpoint.responses[0].status,
        response_class=Response,
        responses=responses,
        openapi_extra=extra,
    )


def _stub(endpoint: Endpoint) -> Callable[..., None]:
    """Return a function whose signature has the parameters of the path."""

    def stub() -> None: ...

    names = compile_path(endpoint.path)[2]
    stub.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=str) for name in names]
    )
    return stub


def _response(response: ResponseDoc) -> Described:
    content: Described = {}
    if response.events is not None:
        content["text/event-stream"] = {"schema": EVENT}
    if response.struct is not None:
        content["application/json"] = {"schema": {"$ref": REF.format(response.struct.__name__)}}
    elif response.schema is not None:
        content["application/json"] = {"schema": response.schema}
    return {"description": response.description} | ({"content": content} if content else {})


def _failure(endpoint: Endpoint, status: int) -> Described:
    content = {endpoint.errors.media_type: {"schema": {"$ref": REF.format(endpoint.errors.schema)}}}
    return {"description": http.HTTPStatus(status).phrase, "content": content}


def _request_body(endpoint: Endpoint, models: Mapping[str, str]) -> Described:
    if endpoint.form is not None:
        content: Described = {"multipart/form-data": {"schema": endpoint.form}}
    elif endpoint.body is not None:
        media: Described = {"schema": {"$ref": REF.format(endpoint.body.__name__)}}
        if endpoint.examples:
            media["examples"] = {name: {"value": filled(body, models)} for name, body in endpoint.examples.items()}
        content = {"application/json": media}
    else:
        return {}
    return {"requestBody": {"required": True, "content": content}}
