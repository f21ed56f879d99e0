"""JSON schemas of requests: what is accepted, and the report of keywords that an answer is not held to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from producer_api.rpc import inference_pb2 as pb
from shared.backend import Backend
from shared.settings import Settings
from tests.support.api_server import chat
from tests.support.fakes import MODEL
from tests.support.grpc_client import chat as rpc_chat
from tests.support.grpc_client import serving as serving_rpc
from tests.support.scripted_worker import ScriptedWorker

HEADER = "x-headrace-schema-not-held"
INTEGER = {"type": "integer"}
ACCEPTED: list[dict[str, Any]] = [
    {"type": "string", "pattern": "^\\d+$", "maxLength": 3},
    {"type": "string", "pattern": "\\p{L}+"},
    {"$id": "x", "type": "object", "name": "legacy", "properties": {"a": INTEGER}},
    {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/k", "description": "d", "maximum": 3}},
        "$defs": {"k": INTEGER},
    },
    {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"properties": {"b": INTEGER}},
        ]
    },
]
NOT_HELD = {"type": "array", "items": INTEGER, "uniqueItems": True, "contains": {"const": 1}}
NAMES = "uniqueItems, contains"
PARAMETERS = {"type": "object", "properties": {"a": NOT_HELD}}


def form(schema: dict[str, Any], *, strict: bool = False) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "strict": strict, "schema": schema}}


GENERATING: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", chat(response_format=form(NOT_HELD))),
    ("/v1/chat/completions", chat(response_format=form(NOT_HELD), stream=True)),
    ("/v1/completions", {"model": MODEL, "prompt": "a", "response_format": form(NOT_HELD)}),
    (
        "/v1/responses",
        {
            "model": MODEL,
            "input": "x",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": NOT_HELD}},
        },
    ),
    ("/v1/jobs", {"model": MODEL, "prompt": "x", "response_format": form(NOT_HELD)}),
]


@pytest.mark.parametrize("schema", ACCEPTED, ids=lambda schema: str(schema)[:40])
async def test_strict_schema_is_held_in_full(
    client: httpx.AsyncClient, worker: ScriptedWorker, schema: dict[str, Any]
) -> None:
    body = chat(response_format=form(schema, strict=True))
    response, request = await asyncio.gather(client.post("/v1/chat/completions", json=body), worker.answer("x"))
    assert response.status_code == 200, response.text
    assert HEADER not in response.headers
    assert request.params.structured_outputs.strict


async def test_strict_schema_is_refused_by_the_keyword(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/chat/completions", json=chat(response_format=form(NOT_HELD, strict=True)))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "response_format"
    assert "uniqueItems at # is not supported" in error["message"]


@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_keywords_that_are_not_held_are_named(
    client: httpx.AsyncClient, worker: ScriptedWorker, path: str, body: dict[str, Any]
) -> None:
    """Whole, streamed and in the background."""
    response, _ = await asyncio.gather(client.post(path, json=body), worker.answer("x"))
    assert response.status_code in (200, 202), response.text
    assert response.headers[HEADER] == NAMES


async def test_keywords_of_tools_are_named(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    parameters = {**PARAMETERS, "if": {"required": ["a"]}, "then": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    response, _ = await asyncio.gather(
        client.post("/v1/chat/completions", json=chat(tools=tools)), worker.answer("x")
    )
    assert response.headers[HEADER] == f"{NAMES}, if"


async def test_metadata_name_them(settings: Settings, backend: Backend, worker: ScriptedWorker) -> None:
    """Over gRPC, where the schemas of tools may be lenient."""
    job = rpc_chat(tools=[pb.Tool(function=pb.FunctionDefinition(name="f", parameters=json.dumps(PARAMETERS)))])
    async with serving_rpc(settings, backend) as (_, client):
        call = client.Submit(job)
        await call
        assert dict(await call.initial_metadata())[HEADER] == NAMES
