"""Responses with function calls or a schema, through OpenAI's package."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response as SDKResponse
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from shared.protocol import CallDelta, FinishReason, Request, Token, TokenLogprobs, ToolCall
from tests.support.api_server import frames
from tests.support.fakes import MODEL
from tests.support.responses_api import BODY, INPUT, TOOL, Weather, answered, call, checked, said
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

OUTPUT = {"type": "function_call_output", "output": "it is"}


async def called(sdk: AsyncOpenAI, worker: ScriptedWorker, **fields: Any) -> tuple[SDKResponse, Request]:
    asked = asyncio.create_task(sdk.responses.create(model=MODEL, input=INPUT, tools=[TOOL], **fields))
    job = await worker.take()
    await call(job, text="let me see", calls=2)
    response = await asked
    SDKResponse.model_validate(response.model_dump(by_alias=True))
    return response, job.request


async def test_call_outputs_continue_the_chat(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """By a chain and with all items, the same chat."""
    response, request = await called(sdk, worker, parallel_tool_calls=True)
    assert request.tools is not None
    assert [(function.name, function.strict) for function in request.tools.functions] == [("f", False)]
    assert (request.tools.required, request.tools.named, request.tools.parallel) == (False, None, True)
    text, *calls = response.output
    assert (response.status, text.type, response.output_text) == ("completed", "message", "let me see")
    assert [(each.type, each.name, each.arguments, each.status) for each in calls] == [
        ("function_call", "f", '{"x": 0}', "completed"),
        ("function_call", "f", '{"x": 1}', "completed"),
    ]
    assert len({each.call_id for each in calls}) == len({each.id for each in response.output[1:]}) == 2

    outputs = [{**OUTPUT, "call_id": each.call_id} for each in calls]
    dumped = [item.model_dump() for item in response.output]
    for fields in (
        {"input": outputs, "previous_response_id": response.id},
        {"input": [{"role": "user", "content": INPUT}, *response.output, *outputs]},
        {"input": [{"role": "user", "content": INPUT}, *dumped, *outputs]},
    ):
        later, request = await answered(sdk, worker, "so", tools=[TOOL], **fields)
        assert said(request) == [("user", INPUT), ("assistant", "let me see"), ("tool", "it is"), ("tool", "it is")]
        assert request.messages is not None
        made = tuple(ToolCall(each.call_id, "f", each.arguments) for each in calls)
        assert request.messages[1].tool_calls == made
        assert [message.tool_call_id for message in request.messages[2:]] == [each.call_id for each in calls]
        listed = [item async for item in sdk.responses.input_items.list(later.id, order="asc")]
        TypeAdapter(list[ResponseItem]).validate_python([item.model_dump(by_alias=True) for item in listed])
        kinds = ["message", "message", *["function_call"] * 2, *["function_call_output"] * 2]
        assert [item.type for item in listed] == kinds


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        ("auto", (False, None)),
        ("required", (True, None)),
        ({"type": "function", "name": "f"}, (False, "f")),
        ("none", None),
    ],
)
async def test_tool_choices_reach_the_worker(
    sdk: AsyncOpenAI, worker: ScriptedWorker, choice: Any, tools: Any
) -> None:
    response, request = await answered(
        sdk, worker, "x", tools=[TOOL], tool_choice=choice, parallel_tool_calls=False
    )
    found = request.tools and (request.tools.required, request.tools.named)
    assert found == tools
    assert request.tools is None or not request.tools.parallel
    dumped = response.model_dump(exclude_none=True)
    assert (dumped["tool_choice"], dumped["parallel_tool_calls"]) == (choice, False)
    assert dumped["tools"] == [{**TOOL, "strict": False}]


async def test_a_truncated_call_is_incomplete_and_not_continued(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(sdk.responses.create(model=MODEL, input=INPUT, tools=[TOOL]))
    job = await worker.take()
    await call(job, finish=FinishReason.LENGTH)
    response = await asked
    assert (response.status, [item.status for item in response.output]) == ("incomplete", ["incomplete"])
    _, request = await answered(sdk, worker, "x", previous_response_id=response.id)
    assert said(request) == [("user", INPUT), ("user", INPUT)]


async def test_logprobs_of_a_call_are_not_those_of_the_text(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    include = ["message.output_text.logprobs"]
    asked = asyncio.create_task(sdk.responses.create(model=MODEL, input=INPUT, tools=[TOOL], include=include))
    job = await worker.take()
    marks = [TokenLogprobs(-float(number), (), str(number)) for number in range(4)]
    await job.write(Token(0, 0, "", None, marks[0]))
    await job.write(Token(0, 1, "", None, marks[1], (CallDelta(0, "f"), CallDelta(0, arguments="{}"))))
    await job.write(Token(0, 2, "done", None, marks[2]), Token(0, 3, "", FinishReason.TOOL_CALLS, marks[3]))
    await job.end()
    _, text = (await asked).output
    assert [found.token for found in text.content[0].logprobs] == ["2", "3"]


async def test_a_call_has_openais_events(api: str, sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        asked = asyncio.create_task(http.post("/v1/responses", json={**BODY, "tools": [TOOL]}))
        await call(await worker.take(), text="see", calls=2)
        whole = await asked
        events = checked([frame async for frame in frames(whole)])
        path = f"/v1/responses/{events[0]['response']['id']}?stream=true&starting_after=11"
        assert whole.content.endswith((await http.get(path)).content)
    piece = "response.function_call_arguments"
    item = ["response.output_item.added", f"{piece}.delta", f"{piece}.delta", f"{piece}.done"]
    kinds = [event["type"] for event in events]
    assert kinds[8:] == [*item, "response.output_item.done"] * 2 + ["response.completed"]
    assert kinds[2:8] == [
        *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
    ]
    assert [event["output_index"] for event in events[2:-1]] == [0] * 6 + [1] * 5 + [2] * 5
    assert "".join(event["delta"] for event in events[9:11]) == events[11]["arguments"] == '{"x": 0}'
    assert events[-1]["response"]["output"] == [events[i]["item"] for i in (7, 12, 17)]


async def test_parsed_by_the_package(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """Given a pydantic model, Expect its schema held in full, and the answer as it, whole and streamed."""
    asked = asyncio.create_task(sdk.responses.parse(model=MODEL, input=INPUT, text_format=Weather))
    request = await worker.answer('{"city": "Bern",', ' "degrees": 3}')
    response = await asked
    assert response.output_parsed == Weather(city="Bern", degrees=3)
    structured = request.params.structured_outputs
    assert structured is not None
    assert (structured.strict, structured.param) == (True, "text.format")
    assert json.loads(structured.json_schema or "")["required"] == ["city", "degrees"]
    assert response.text.format.name == "Weather"

    answering = asyncio.create_task(worker.answer('{"city": "Bern",', ' "degrees": 4}'))
    async with sdk.responses.stream(model=MODEL, input=INPUT, text_format=Weather) as stream:
        await answering
        assert (await stream.get_final_response()).output_parsed == Weather(city="Bern", degrees=4)

    asked = asyncio.create_task(
        sdk.responses.create(model=MODEL, input=INPUT, text={"format": {"type": "json_object"}}, tools=[TOOL])
    )
    request = await worker.answer("{}")
    assert request.tools is not None
    assert request.params.structured_outputs is not None
    assert request.params.structured_outputs.json_object
    assert (await asked).text.format.type == "json_object"
