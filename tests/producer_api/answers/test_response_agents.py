"""Responses as agents ask for them: hosted and custom tools, references, reasoning, counts of tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from shared.backend import Backend
from shared.protocol import CallDelta, FinishReason, PriorityClass, Token, ToolCall
from shared.schemas.unknown_fields import HEADER
from shared.settings import Settings
from tests.support.api_server import frames
from tests.support.fakes import MODEL
from tests.support.responses_api import BODY, INPUT, TOOL, answered, call, checked, said
from tests.support.scripted_worker import CACHED_TOKENS, Job, ScriptedWorker
from tests.support.worker_harness import Harness

HOSTED: list[dict[str, Any]] = [
    {"type": "web_search", "external_web_access": True},
    {"type": "mcp", "server_label": "x", "server_url": "https://x.example", "authorization": "secret"},
    {"type": "local_shell"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
]
CUSTOM: dict[str, Any] = {"type": "custom", "name": "patch", "description": "applies"}
PATCH = '*** Begin "Patch"\n+\U0001f600\\'
CODEX: dict[str, Any] = {  # the fields that Codex CLI sends, besides model and input
    "instructions": "You are a coding agent.",
    "tools": [HOSTED[0], {**TOOL, "strict": False}, CUSTOM],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "service_tier": "priority",
    "prompt_cache_key": "0199",
    "text": {"verbosity": "low"},
    "client_metadata": {"session": "1"},
}


async def write_patch(job: Job) -> None:
    """Write a call of the custom tool, whose arguments are cut within an escape."""
    pieces = ['{"input": "*** Begin \\"Pa', 'tch\\"\\n+\\ud83d', "\\ude00\\", '\\"}']
    await job.write(Token(0, 0, "", calls=(CallDelta(0, "patch"),)))
    for piece in pieces:
        await job.write(Token(0, 1, "", calls=(CallDelta(0, arguments=piece),)))
    await job.write(Token(0, 2, "", FinishReason.TOOL_CALLS))
    await job.end()


async def test_what_codex_sends_is_answered(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(http.post("/v1/responses", json={**BODY, **CODEX}))
    job = await worker.take()
    await call(job, text="see")
    whole = await asked
    assert whole.headers[HEADER] == "client_metadata, tools[0]"
    events = checked([frame async for frame in frames(whole)])
    response = events[-1]["response"]
    assert [tool["name"] for tool in response["tools"]] == ["f", "patch"]
    assert response["reasoning"] == {"effort": "medium", "summary": "auto"}
    assert response["text"]["verbosity"] == "low"
    request = job.request
    assert request.tools is not None
    assert [function.name for function in request.tools.functions] == ["f", "patch"]
    assert request.prompt_options.reasoning_effort == "medium"


async def test_hosted_tools_are_ignored_and_their_secrets_not_returned(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    asked = asyncio.create_task(http.post("/v1/responses", json={"model": MODEL, "input": INPUT, "tools": HOSTED}))
    assert (await worker.answer("x")).tools is None
    answer = await asked
    assert answer.headers[HEADER] == "tools[0], tools[1], tools[2], tools[3]"
    assert answer.json()["tools"] == []
    assert "secret" not in (await http.get(f"/v1/responses/{answer.json()['id']}")).text


async def test_a_custom_tool_is_a_function_with_one_text(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(
        sdk.responses.create(
            model=MODEL, input=INPUT, tools=[CUSTOM], tool_choice={"type": "custom", "name": "patch"}
        )
    )
    job = await worker.take()
    assert job.request.tools is not None
    [function] = job.request.tools.functions
    assert (function.name, function.description, job.request.tools.named) == ("patch", "applies", "patch")
    assert function.parameters == (
        '{"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"], '
        '"additionalProperties": false}'
    )
    await write_patch(job)
    response = await asked
    [made] = response.output
    assert (made.type, made.name, made.input, made.status) == ("custom_tool_call", "patch", PATCH, "completed")
    assert response.tools[0].format.type == "text"
    assert response.tool_choice.model_dump() == {"type": "custom", "name": "patch"}

    result = {
        "type": "custom_tool_call_output",
        "call_id": made.call_id,
        "output": [{"type": "input_text", "text": "ok"}],
    }
    for fields in (
        {"input": [result], "previous_response_id": response.id},
        {"input": [{"role": "user", "content": INPUT}, made, result]},
        {"input": [{"role": "user", "content": INPUT}, made.model_dump(), result]},
        {"input": [{"role": "user", "content": INPUT}, {"type": "item_reference", "id": made.id}, result]},
    ):
        later, request = await answered(sdk, worker, "done", tools=[CUSTOM], **fields)
        assert said(request) == [("user", INPUT), ("assistant", ""), ("tool", "ok")]
        assert request.messages is not None
        arguments = '{"input": "*** Begin \\"Patch\\"\\n+\U0001f600\\\\"}'
        assert request.messages[1].tool_calls == (ToolCall(made.call_id, "patch", arguments),)
        listed = [item async for item in sdk.responses.input_items.list(later.id, order="asc")]
        TypeAdapter(list[ResponseItem]).validate_python([item.model_dump(by_alias=True) for item in listed])
        assert [item.type for item in listed] == ["message", "custom_tool_call", "custom_tool_call_output"]


async def test_a_pattern_constrains_the_input_of_a_custom_tool(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "a|b"}
    response, request = await answered(sdk, worker, "x", tools=[{**CUSTOM, "format": form}])
    assert request.tools is not None
    [function] = request.tools.functions
    assert '"pattern": "^(?:a|b)$"' in function.parameters
    assert function.strict
    assert response.tools[0].format.definition == "a|b"


async def test_the_input_of_a_custom_tool_is_streamed(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(http.post("/v1/responses", json={**BODY, "tools": [CUSTOM]}))
    await write_patch(await worker.take())
    whole = await asked
    events = checked([frame async for frame in frames(whole)])
    piece = "response.custom_tool_call_input"
    assert [event["type"] for event in events[2:-1]] == [
        "response.output_item.added",
        *[f"{piece}.delta"] * 4,
        f"{piece}.done",
        "response.output_item.done",
    ]
    assert "".join(event["delta"] for event in events[3:7]) == events[7]["input"] == PATCH
    path = f"/v1/responses/{events[0]['response']['id']}?stream=true&starting_after=5"
    assert whole.content.endswith((await http.get(path)).content)


async def test_ids_are_the_same_in_events_final_and_stored_output(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    asked = asyncio.create_task(http.post("/v1/responses", json={**BODY, "tools": [TOOL, CUSTOM]}))
    job = await worker.take()
    await job.say("see")
    await job.write(Token(0, 1, "", calls=(CallDelta(0, "f"), CallDelta(0, arguments="{}"))))
    await job.write(Token(0, 1, "", calls=(CallDelta(1, "patch"), CallDelta(1, arguments='{"input": "x"}'))))
    await job.write(Token(0, 2, "bye", FinishReason.TOOL_CALLS))
    await job.end()
    events = checked([frame async for frame in frames(await asked)])
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["message", "function_call", "custom_tool_call", "message"]
    ids = [item["id"] for item in final["output"]]
    assert len(set(ids)) == 4
    for event in events[2:-1]:
        assert (event.get("item_id") or event["item"]["id"]) == ids[event["output_index"]]
    stored = (await http.get(f"/v1/responses/{final['id']}")).json()
    assert stored["output"] == final["output"]


async def test_allowed_tools_limit_what_may_be_called(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "custom", "name": "patch"}, HOSTED[0]],
    }
    response, request = await answered(sdk, worker, "x", tools=[TOOL, CUSTOM], tool_choice=choice)
    assert request.tools is not None
    assert [function.name for function in request.tools.functions] == [TOOL["name"], "patch"], "shown to the model"
    assert [function.name for function in request.tools.allowed] == ["patch"]
    assert request.tools.required
    assert response.tool_choice.model_dump() == choice


async def test_a_choice_may_name_a_function_without_its_type(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    body = {"model": MODEL, "input": INPUT, "tools": [TOOL], "tool_choice": {"name": "f"}}
    asked = asyncio.create_task(http.post("/v1/responses", json=body))
    request = await worker.answer("x")
    assert request.tools is not None
    assert request.tools.named == "f"
    assert (await asked).status_code == 200


async def test_references_lead_to_input_and_output_items(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    first, _ = await answered(sdk, worker, "one", input="1?")
    second, _ = await answered(sdk, worker, "two", input="2?", previous_response_id=first.id)
    listed = [item async for item in sdk.responses.input_items.list(second.id, order="asc")]
    ids = [*(item.id for item in listed), second.output[0].id]
    given = [
        {"type": "item_reference", "id": ids[0]},
        *({"id": each} for each in ids[1:]),
        {"role": "user", "content": "3?"},
    ]
    third, request = await answered(sdk, worker, "three", input=given)
    turns = [("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two"), ("user", "3?")]
    assert said(request) == turns
    again = [item.id async for item in sdk.responses.input_items.list(third.id, order="asc")]
    assert again[:4] == ids, "an item keeps its id"


async def test_a_reference_to_nothing_is_named(
    sdk: AsyncOpenAI, http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    running = await sdk.responses.create(model=MODEL, input=INPUT, background=True)
    name = running.id.removeprefix("resp_")
    for unknown in ("x", f"msg_{'0' * 32}", f"msg_{name}_9", f"msg_{name}"):
        given = [{"role": "user", "content": INPUT}, {"type": "item_reference", "id": unknown}]
        with pytest.raises(openai.NotFoundError) as missing:
            await sdk.responses.create(model=MODEL, input=given)
        assert missing.value.param == "input[1].id"
    [item] = [item async for item in sdk.responses.input_items.list(running.id)]
    await backend.redis.hset(f"hr:{{req_{name}}}:state", "tenant", "another")
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.create(model=MODEL, input=[{"type": "item_reference", "id": item.id}])
    many = [{"type": "item_reference", "id": f"msg_{number:032x}"} for number in range(33)]
    refused = await http.post("/v1/responses", json={"model": MODEL, "input": many})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


async def test_reasoning_and_refusals_of_earlier_answers_are_accepted(
    sdk: AsyncOpenAI, worker: ScriptedWorker
) -> None:
    given: Any = [
        {"role": "user", "content": []},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "short"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": INPUT},
        {
            "type": "reasoning",
            "id": "rs_2",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "long"}],
            "encrypted_content": "gAAA",
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": []},
    ]
    response, request = await answered(sdk, worker, "x", input=given)
    assert said(request) == [("user", ""), ("assistant", "no"), ("user", INPUT), ("assistant", ""), ("tool", "")]
    assert [message.reasoning for message in request.messages or ()] == ["", "short", "", "long", ""]
    listed = [item async for item in sdk.responses.input_items.list(response.id, order="asc")]
    TypeAdapter(list[ResponseItem]).validate_python([item.model_dump(by_alias=True) for item in listed])


async def test_options_reach_the_request_or_are_returned(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    response, request = await answered(
        sdk,
        worker,
        "x",
        truncation="auto",
        service_tier="flex",
        reasoning={"effort": "none"},
        max_tool_calls=3,
        prompt_cache_retention="24h",
        extra_body={"ignore_eos": True, "min_tokens": 4, "context_management": [{"type": "compaction"}]},
    )
    assert request.drop_oldest_turns
    assert request.priority is PriorityClass.BATCH
    assert (request.params.ignore_eos, request.params.min_tokens) == (True, 4)
    assert request.prompt_options.reasoning_effort == "none"
    assert (response.truncation, response.service_tier, response.reasoning.effort) == ("auto", "flex", "none")
    assert response.usage.input_tokens_details.cached_tokens == CACHED_TOKENS
    assert response.usage.output_tokens_details.reasoning_tokens == 0


async def test_input_tokens_are_counted(client: httpx.AsyncClient, backend: Backend, settings: Settings) -> None:
    """With instructions, tools and the earlier conversation; nothing is generated or stored."""
    async with Harness(backend, settings).worker():
        first = (
            await client.post("/v1/responses", json={"model": MODEL, "input": "hi", "max_output_tokens": 1})
        ).json()
        path, body = "/v1/responses/input_tokens", {"model": MODEL, "input": "hi", "instructions": "be"}
        counted = await client.post(path, json={**body, "tools": [*HOSTED, TOOL], "stream": True})
        assert counted.json() == {"object": "response.input_tokens", "input_tokens": len("system:be\nuser:hi\n")}
        chained = await client.post(path, json={**body, "previous_response_id": first["id"]})
        answer = f"assistant:{first['output'][0]['content'][0]['text']}\n"
        assert chained.json()["input_tokens"] == len(f"system:be\nuser:hi\n{answer}user:hi\n")
        refused = await client.post(path, json={"model": MODEL, "input": 3})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


async def test_compact_is_not_the_id_of_a_response(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/responses/compact", json={"model": MODEL, "input": INPUT})
    assert refused.status_code == 404
    assert "does not compact" in refused.json()["error"]["message"]
    assert (await client.get("/v1/responses/input_tokens")).status_code == 405
