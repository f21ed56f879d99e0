"""Bodies as real clients send them: accepted, and understood as other servers understand them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.requests import to_submission
from shared.kafka.message import KafkaRequest
from shared.protocol import PriorityClass, Request, Structured
from shared.schemas.parsing import validate
from shared.schemas.unknown_fields import HEADER
from shared.validation.request_limits import Limits, check_request
from shared.validation.sampling_parameters import MAX_INT64
from tests.support.api_server import chat
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker

CHAT, JOBS = "/v1/chat/completions", "/v1/jobs"
CACHED = {"type": "ephemeral"}
USER = {"role": "user", "content": "Say hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
MCP = "mcp.server:files/read"
MESSAGES = [
    [
        USER,
        {"role": "assistant", "content": [], "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ],
    [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
    [USER, {"role": "assistant"}, USER],
    [USER, {"role": "assistant", "content": "x", "reasoning_content": "hm"}, USER],
    [USER, {"role": "assistant", "content": "x", "reasoning": None}, USER],
    [USER, {"role": "assistant", "content": "x", "id": "m1", "cache_control": CACHED}, USER],
    [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": CACHED}]}],
]
OFF: dict[str, Any] = {
    "prompt_logprobs": None,
    "detokenize": True,
    "length_penalty": 1.0,
    "use_beam_search": False,
    "logits_processors": None,
    "parallel_tool_calls": None,
    "tools": [],
    "tool_choice": "auto",
    "response_format": {"type": "text"},
    "documents": [],
}
OFF_IN_CHATS: dict[str, Any] = {
    "store": True,
    "metadata": {"a": "b"},
    "safety_identifier": "u",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["text"],
    "web_search_options": None,
    "echo": False,
    "best_of": 1,
}


def tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


async def asked(client: httpx.AsyncClient, worker: ScriptedWorker, path: str, **fields: Any) -> Request:
    """Return the worker's request for a chat with these fields, of which the server ignores none."""
    response, request = await asyncio.gather(client.post(path, json=chat(**fields)), worker.answer("x"))
    assert response.status_code in (200, 202), response.text
    assert HEADER not in response.headers
    return request


@pytest.mark.parametrize("path", [CHAT, JOBS])
async def test_messages_are_accepted(client: httpx.AsyncClient, worker: ScriptedWorker, path: str) -> None:
    for messages in MESSAGES:
        request = await asked(client, worker, path, messages=messages)
        assert request.messages is not None
        assert len(request.messages) == len(messages)


@pytest.mark.parametrize(
    ("fields", "functions"),
    [
        (
            {"tools": [tool(parameters={"type": "object", "properties": None, "required": None})]},
            [("f", {"type": "object"})],
        ),
        ({"tools": [tool(MCP)]}, [(MCP, None)]),
        ({"tools": [tool("f" * 128, strict=None, description=None)]}, [("f" * 128, None)]),
        ({"tools": [tool(f"f{i}") for i in range(512)]}, [(f"f{i}", None) for i in range(512)]),
        (
            {"tools": [{**tool(parameters=PARAMETERS, cache_control=CACHED), "cache_control": CACHED}]},
            [("f", PARAMETERS)],
        ),
        ({"tools": [{"function": {"name": "f"}}]}, [("f", None)]),
        ({"tools": [], "tool_choice": "none"}, []),
        ({"tools": None, "tool_choice": "auto", "parallel_tool_calls": False}, []),
    ],
)
async def test_tools_are_accepted(
    client: httpx.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], functions: list[tuple[str, Any]]
) -> None:
    for path in (CHAT, JOBS):
        tools = (await asked(client, worker, path, **fields)).tools
        found = [] if tools is None else tools.functions
        assert [
            (each.name, json.loads(each.parameters) if each.parameters else None) for each in found
        ] == functions


async def test_a_tool_choice_names_one_or_some(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    tools = [tool("f"), tool(MCP), tool("g")]
    some = {"mode": "required", "tools": [tool(MCP), {"function": {"name": "g"}}]}
    named = await asked(client, worker, CHAT, tools=tools, tool_choice={"function": {"name": MCP}})
    allowed = await asked(
        client, worker, JOBS, tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": some}
    )

    assert named.tools is not None
    assert (named.tools.named, [each.name for each in named.tools.allowed]) == (MCP, [MCP])
    assert allowed.tools is not None
    assert (allowed.tools.required, allowed.tools.named) == (True, None)
    assert [each.name for each in allowed.tools.functions] == ["f", MCP, "g"]
    assert [each.name for each in allowed.tools.allowed] == [MCP, "g"]


@pytest.mark.parametrize(
    ("form", "structured"),
    [
        (
            {"type": "json_object", "value": PARAMETERS},
            Structured(json_schema=json.dumps(PARAMETERS), strict=False),
        ),
        (
            {"type": "json_object", "schema": PARAMETERS},
            Structured(json_schema=json.dumps(PARAMETERS), strict=False),
        ),
        ({"type": "json", "value": PARAMETERS}, Structured(json_schema=json.dumps(PARAMETERS), strict=False)),
        ({"type": "json_object"}, Structured(json_object=True)),
        ({"type": "regex", "value": "a+"}, Structured(regex="a+")),
        ({"type": "text"}, None),
    ],
)
async def test_forms_of_other_servers_constrain_the_answer(
    client: httpx.AsyncClient, worker: ScriptedWorker, form: dict[str, Any], structured: Structured | None
) -> None:
    found = (await asked(client, worker, CHAT, response_format=form)).params.structured_outputs
    assert (found and (found.json_schema, found.strict, found.json_object, found.regex)) == (
        structured and (structured.json_schema, structured.strict, structured.json_object, structured.regex)
    )


async def test_fields_that_change_nothing_are_accepted(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    plain = await asked(client, worker, CHAT, seed=1)
    for path, fields in ((CHAT, {**OFF, **OFF_IN_CHATS}), (JOBS, OFF)):
        request = await asked(client, worker, path, seed=1, **fields)
        assert request.tools is None
        assert request.params == plain.params


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({"service_tier": "flex"}, PriorityClass.BATCH),
        ({"service_tier": "flex", "priority": "standard"}, PriorityClass.STANDARD),
        ({"service_tier": "auto"}, PriorityClass.INTERACTIVE),
        ({"service_tier": "priority"}, PriorityClass.INTERACTIVE),
        ({"service_tier": None}, PriorityClass.INTERACTIVE),
        ({"service_tier": "flex", "priority": 0}, PriorityClass.BATCH),
        ({"service_tier": "flex", "priority": None}, PriorityClass.BATCH),
        ({"priority": 0}, PriorityClass.INTERACTIVE),
    ],
)
async def test_a_flexible_request_waits_with_batch_work(
    client: httpx.AsyncClient, worker: ScriptedWorker, fields: dict[str, Any], priority: PriorityClass
) -> None:
    assert (await asked(client, worker, CHAT, **fields)).priority is priority


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (CHAT, "max_tokens"),
        (CHAT, "max_completion_tokens"),
        ("/v1/completions", "max_tokens"),
        (JOBS, "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ],
)
async def test_max_tokens_is_lowered_to_the_context(
    client: httpx.AsyncClient, worker: ScriptedWorker, path: str, name: str
) -> None:
    body = {CHAT: chat(), JOBS: chat(), "/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"}}[path]
    answer, request = await asyncio.gather(
        client.post(path, json={"model": MODEL, **body, name: MAX_INT64}), worker.answer("x")
    )
    assert answer.status_code in (200, 202), answer.text
    assert request.params.max_tokens == 1024
    refused = await client.post(path, json={"model": MODEL, **body, name: MAX_INT64 + 1})
    assert refused.status_code == 400 and f"must be between 0 and {MAX_INT64}" in refused.text


async def test_a_request_id_in_the_body_is_echoed(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    """The header takes precedence; an id that is not valid as one is not taken."""
    for headers, given, echoed in (
        ({}, "mine-1", "mine-1"),
        ({"x-request-id": "h"}, "mine-1", "h"),
        ({}, "a\nb", None),
    ):
        body = chat(request_id=given)
        response, _ = await asyncio.gather(client.post(CHAT, json=body, headers=headers), worker.answer("x"))
        assert response.status_code == 200
        assert response.headers["x-request-id"] == echoed or (
            echoed is None and len(response.headers["x-request-id"]) == 32
        )


async def test_a_retry_may_have_another_request_id(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    jobs = [
        await client.post(JOBS, json=chat(request_id=name), headers={"idempotency-key": "k"}) for name in ("a", "b")
    ]
    assert [job.status_code for job in jobs] == [202, 202]
    assert jobs[0].json()["id"] == jobs[1].json()["id"]


async def test_a_client_with_fields_of_another_server(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    body = chat(keep_alive="5m", options={})
    response, _ = await asyncio.gather(client.post(CHAT, json=body), worker.answer("x"))
    assert (response.status_code, response.headers[HEADER]) == (200, "keep_alive, options")


def test_other_transports_take_the_same() -> None:
    """Over gRPC and Kafka."""
    function = pb.FunctionDefinition(name=MCP, parameters='{"type": "object", "properties": null}')
    job = pb.JobRequest(
        model=MODEL,
        messages=[pb.Message(role="assistant"), pb.Message(role="user", content="x")],
        tools=[pb.Tool(function=function)],
        tool_choice=pb.ToolChoice(function=MCP),
    )
    sent = {
        "model": MODEL,
        "messages": MESSAGES[0],
        "tools": [tool(MCP)],
        "response_format": {"type": "json", "value": {}},
    }
    for draft in (
        to_submission(job).to_request("t"),
        validate(json.dumps(sent).encode(), KafkaRequest).to_request("t"),
    ):
        check_request(draft, Limits())
        assert draft.tools is not None
        assert draft.tools.functions[0].name == MCP
