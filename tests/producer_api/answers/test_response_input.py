"""Fields of /v1/responses: refused by name, or accepted because they are off."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from openai.types.responses import Response as SDKResponse

from tests.support.fakes import MODEL
from tests.support.responses_api import INPUT, LOGPROBS, TOOL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

OUTPUT = {"type": "function_call_output", "output": "x"}
CALL = {"type": "function_call", "call_id": "c", "name": "f"}
HOSTED, CUSTOM = {"type": "web_search"}, {"type": "custom", "name": "c"}
LARK = {"type": "grammar", "syntax": "lark"}
ALLOWED, ALLOWED_NAME = {"type": "allowed_tools", "mode": "required"}, "tool_choice.tools[0].name"
UNHOLDABLE = {**TOOL, "name": "h", "strict": True, "parameters": {"not": {}}}
NAMED = {"type": "function", "name": "h"}
FORMAT = {"type": "json_schema", "name": "n", "strict": True}


SIZES = [999_000] * 4 + [196_900]  # as much as a body may have, and what is kept with it is more
BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"truncation": "middle"}, "truncation"),
    ({"input": [{**CALL, "arguments": '{"a":"\\ud800"}'}]}, "input[0].arguments"),
    ({"input": [{**CALL, "arguments": "[" * 1200}]}, "input[0].arguments"),
    ({"instructions": 3}, "instructions"),
    ({"max_output_tokens": -1}, "max_output_tokens"),
    ({"max_output_tokens": 2**63}, "max_output_tokens"),
    ({"max_output_tokens": 10**400}, "max_output_tokens"),
    ({"temperature": 101}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_logprobs": 21, "include": [LOGPROBS]}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": ["everything"]}, "include[0]"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"background": True, "store": False}, "store"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"user": "x" * 513}, "user"),
    ({"user": "a\x00b"}, "user"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"tools": [{"type": "function", "name": "no name"}]}, "tools[0].name"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": [{**TOOL, "strict": True, "parameters": {"not": {}}}]}, "tools[0].parameters"),
    ({"tools": [{**TOOL, "parameters": "x"}]}, "tools[0].parameters"),
    ({"tools": [HOSTED, {**TOOL, "strict": True, "parameters": {"not": {}}}]}, "tools[1].parameters"),
    ({"tools": [{**CUSTOM, "format": {**LARK, "definition": "x"}}]}, "tools[0].format.syntax"),
    ({"tools": [HOSTED], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {**ALLOWED, "tools": [{"type": "function", "name": "g"}]}}, ALLOWED_NAME),
    ({"tools": [TOOL], "tool_choice": {**ALLOWED, "tools": [HOSTED]}}, "tool_choice"),
    ({"tools": [TOOL, UNHOLDABLE], "tool_choice": {**ALLOWED, "tools": [NAMED]}}, "tools[1].parameters"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"format": {**FORMAT, "schema": {"not": {}}}}}, "text.format"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": [{**OUTPUT, "call_id": "c"}]}, "input"),
    ({"input": [{**OUTPUT, "call_id": "c" * 129}]}, "input[0].call_id"),
    ({"tools": [{**TOOL, "description": "x" * size} for size in SIZES], "tool_choice": "none"}, "store"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"background_options": {"completion_window": "2h"}}, "background_options"),
    ({"previous_response_id": 3}, "previous_response_id"),
    ({"timeout": -1}, "timeout"),
    ({"seed": 2**63}, "seed"),
    ({"priority": "urgent"}, "priority"),
]


async def test_a_wrong_input_item_is_named(client: httpx.AsyncClient) -> None:
    for fields, param in BAD:
        async with asyncio.timeout(LIMIT_S):  # what is not refused waits for a worker
            response = await client.post("/v1/responses", json={"model": MODEL, "input": INPUT, **fields})
        assert response.status_code == 400, (param, response.text)
        error = response.json()["error"]
        assert error["param"] == param, error
        assert error["message"]


async def test_wrong_query_parameters_are_named(client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/responses", json={"model": MODEL, "input": INPUT, "background": True})).json()
    path = f"/v1/responses/{made['id']}"
    for query, param in (
        ("?stream=maybe", "stream"),
        ("?starting_after=1", "starting_after"),
        ("?stream=true&starting_after=x", "starting_after"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?order=up", "order"),
    ):
        response = await client.get(path + query)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert (await client.get(path + "/input_items?after=unknown")).json()["data"] == []


async def test_unsupported_fields_that_are_off_are_accepted(
    client: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    nothing = {
        "tools": [],
        "tool_choice": "none",
        "reasoning": {"effort": None, "summary": None},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "disabled",
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "include": ["reasoning.encrypted_content"],
        "conversation": None,
        "safety_identifier": "s",
        "prompt_cache_key": "c",
        "max_tool_calls": 3,
    }
    asked = asyncio.create_task(client.post("/v1/responses", json={"model": MODEL, "input": INPUT, **nothing}))
    await worker.answer("x")
    response = SDKResponse.model_validate((await asked).json())
    assert (response.safety_identifier, response.prompt_cache_key, response.max_tool_calls) == ("s", "c", 3)
    assert response.parallel_tool_calls is False
