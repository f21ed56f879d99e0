"""What the OpenAPI document says beyond what FastAPI sees: our own bodies, answers, errors and streams.

It does not know the routes: they describe themselves with the functions here.
"""

from __future__ import annotations

import http
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from producer_api.http.access import routes_of, rule_of
from producer_api.http.errors import speaks_openai
from producer_api.openapi.examples import Examples

REF = "#/components/schemas/{}"
Described = dict[str, Any]
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


def body_of(schema: type[BaseModel]) -> Described:
    """The request body of a route that reads it by itself."""
    content = {"application/json": {"schema": {"$ref": REF.format(schema.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def parameter(name: str, where: Literal["query", "header"], description: str, **schema: Any) -> Described:
    """One optional parameter."""
    return {"name": name, "in": where, "required": False, "schema": schema, "description": description}


IDEMPOTENCY = parameter(
    "Idempotency-Key",
    "header",
    "what is sent again with the same key and body is run once, and answered as the same request",
    type="string",
    pattern="^[!-~]{1,255}$",
)
RESUMING = parameter(
    "Last-Event-ID", "header", "the stream goes on after the frame with this id", type="integer", minimum=-1
)
PLACE = parameter(
    "Last-Event-ID",
    "header",
    "the stream goes on after the frame with this id; with several prompts it has dots",
    type="string",
    pattern=r"^(-1|[0-9]{1,15})(\.(-1|[0-9]{1,15}))*$",
)
ENDED: Responses = {204: {"description": "nothing comes after Last-Event-ID: the answer has ended"}}


def struct_response(description: str, struct: type[msgspec.Struct]) -> Described:
    """An answer that is one of our structs."""
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": REF.format(struct.__name__)}}},
    }


EVENT: Described = {  # of each event
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def sse_response(description: str, struct: type[msgspec.Struct] | None) -> Responses:
    """An answer that is a stream, or maybe also one of our structs."""
    content: Described = {"text/event-stream": {"schema": EVENT}}
    if struct is not None:
        content["application/json"] = {"schema": {"$ref": REF.format(struct.__name__)}}
    return {200: {"description": description, "content": content}}


def failures(shape: Literal["openai", "problem"], *statuses: int) -> Responses:
    """The errors of a route, in its API's shape."""
    name, media_type = (
        ("OpenAIError", "application/json")
        if shape == "openai"
        else (
            "Problem",
            "application/problem+json",
        )
    )
    content = {media_type: {"schema": {"$ref": REF.format(name)}}}
    return {status: {"description": http.HTTPStatus(status).phrase, "content": content} for status in statuses}


def describe(
    app: FastAPI,
    bodies: Sequence[type[BaseModel]],
    structs: Sequence[type[msgspec.Struct]],
    shown: Mapping[str, Examples] = MappingProxyType({}),
) -> None:
    """Make `app` tell its document with the schemas that its routes refer to; made once, when first asked for.

    Args:
        shown: examples of bodies, by the path of their POST.
    """

    def document() -> Described:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            schemas |= models_json_schema(
                [(body, "validation") for body in bodies], ref_template=REF.format("{model}")
            )[1].get("$defs", {})
            schemas |= msgspec.json.schema_components(structs, ref_template=REF.format("{name}"))[1]
            schemas |= ERRORS
            _secure(found, app)
            for path, bodies_of_path in shown.items():
                content = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]
                content["examples"] = {name: {"value": body} for name, body in bodies_of_path.items()}
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _secure(document: Described, app: FastAPI) -> None:
    """Tell of each route with a rule that it wants a key, and what is answered without one that fits."""
    schemes = document["components"].setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer", "description": "where the server's `auth` is on"}
    for route in routes_of(app):
        if rule_of(route) is None or not route.include_in_schema:
            continue
        shape: Literal["openai", "problem"] = "openai" if speaks_openai(route.path_format or "") else "problem"
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            operation["security"] = [{"key": []}]
            operation["responses"] |= {str(status): told for status, told in failures(shape, 401, 403, 429).items()}
