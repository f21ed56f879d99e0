"""Structured outputs and tool calls by OpenAI's own package: what is asked reaches the worker, and what it calls,
us.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from shared.backend import Backend
from shared.protocol import CallDelta, FinishReason, Request, SamplingParams, Structured, Token, Tools
from shared.schemas.parsing import validate
from shared.settings import Settings
from tests.support.api_server import chat, frames, serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S

MESSAGES: Any = [{"role": "user", "content": "Weather in Oslo?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "Now.", "parameters": PARAMETERS},
}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": PARAMETERS, "strict": True}}
PIECES: list[tuple[str, tuple[CallDelta, ...]]] = [
    ("Let me see.", ()),
    ("", (CallDelta(0, "weather"),)),
    ("", (CallDelta(0, arguments='{"city": '),)),
    ("", (CallDelta(0, arguments='"Oslo"}'), CallDelta(1, "time"), CallDelta(1, arguments="{"))),
    ("", (CallDelta(1, arguments='"city": "Oslo"}'),)),
    ("", ()),
]


async def call(worker: ScriptedWorker, times: int = 1) -> Request:
    """Answer with PIECES, one token each."""
    for _ in range(times):
        job = await worker.take()
        for seq, (text, calls) in enumerate(PIECES):
            finish = FinishReason.TOOL_CALLS if seq == len(PIECES) - 1 else None
            await job.write(Token(0, seq, text, finish, calls=calls))
        await job.end()
    return job.request


async def asked(sdk: AsyncOpenAI, worker: ScriptedWorker, **fields: Any) -> Request:
    """Return the worker's request for a chat with these fields."""
    sent = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, **fields))
    request = await worker.answer("x")
    await sent
    return request


async def test_tool_calls_have_ids_names_and_arguments(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    sent = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER, TIME]))
    request = await call(worker)
    [choice] = (await sent).choices
    assert choice.finish_reason == "tool_calls"
    message = choice.message
    assert message.content == "Let me see."
    made = [
        (each.type, each.function.name, json.loads(each.function.arguments)) for each in message.tool_calls or ()
    ]
    assert made == [("function", "weather", {"city": "Oslo"}), ("function", "time", {"city": "Oslo"})]
    assert isinstance(request.tools, Tools)
    assert [(each.name, each.description, each.strict) for each in request.tools.functions] == [
        ("weather", "Now.", False),
        ("time", "", True),
    ]
    assert json.loads(request.tools.functions[0].parameters) == PARAMETERS
    answers: list[Any] = [
        {"role": "tool", "tool_call_id": each.id, "content": "5 degrees"} for each in message.tool_calls or ()
    ]
    again: Any = [*MESSAGES, message.model_dump(exclude_none=True), *answers]
    sent = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=again, tools=[WEATHER]))
    second = await worker.answer("Cold.")
    assert (await sent).choices[0].message.content == "Cold."
    assert second.messages is not None
    assert [each.name for each in second.messages[1].tool_calls] == ["weather", "time"]
    assert second.messages[2].tool_call_id == second.messages[1].tool_calls[0].id


async def test_a_streamed_call_has_its_id_and_name_once(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    stream = await_stream(sdk, tools=[WEATHER, TIME])
    answering = asyncio.create_task(call(worker))
    deltas, reasons = [], []
    async for chunk in stream:
        for choice in chunk.choices:
            deltas += choice.delta.tool_calls or []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    await answering
    assert reasons == ["tool_calls"]
    assert [(d.index, d.id is not None, d.type, d.function.name, d.function.arguments) for d in deltas] == [
        (0, True, "function", "weather", ""),
        (0, False, None, None, '{"city": '),
        (0, False, None, None, '"Oslo"}'),
        (1, True, "function", "time", ""),
        (1, False, None, None, "{"),
        (1, False, None, None, '"city": "Oslo"}'),
    ]


async def await_stream(sdk: AsyncOpenAI, **fields: Any) -> AsyncIterator[Any]:
    async for chunk in await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **fields):
        yield chunk


async def test_the_sdk_accumulates_streamed_calls(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    answering = asyncio.create_task(call(worker))
    async with sdk.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=[TIME, WEATHER]) as stream:
        done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = await stream.get_final_completion()
    await answering
    assert [(event.name, json.loads(event.arguments)) for event in done] == [
        ("weather", {"city": "Oslo"}),
        ("time", {"city": "Oslo"}),
    ]
    assert len(final.choices[0].message.tool_calls or ()) == 2


async def test_resumed_calls_have_the_same_bytes(
    settings: Settings, backend: Backend, worker: ScriptedWorker, api: str
) -> None:
    body, headers = chat(tools=[WEATHER, TIME]), {"idempotency-key": "k"}
    answering = asyncio.create_task(call(worker))
    async with serving(settings, backend) as other, httpx.AsyncClient(timeout=LIMIT_S) as client:
        whole = (await client.post(f"{api}/v1/chat/completions/stream", json=body, headers=headers)).content
        await answering
        for seq in range(len(PIECES)):
            at = whole.index(b"id: %d\n" % seq)
            resumed = await client.post(
                f"{other}/v1/chat/completions/stream", json=body, headers={**headers, "last-event-id": str(seq)}
            )
            assert resumed.content == whole[whole.index(b"\n\n", at) + 2 :]
    assert b'"system_fingerprint":"fp_test"' in whole


class Person(BaseModel):
    name: str
    age: int


async def test_the_sdk_parses_an_answer_into_a_pydantic_model(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    sent = asyncio.create_task(sdk.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Person))
    request = await worker.answer('{"name": "A', 'da", "age": 36}')
    completion = await sent
    assert completion.choices[0].message.parsed == Person(name="Ada", age=36)
    assert completion.system_fingerprint == "fp_test"
    structured = request.params.structured_outputs
    assert structured is not None
    assert structured.strict
    assert list(json.loads(structured.json_schema or "")["properties"]) == ["name", "age"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structured(json_object=True, param="response_format")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}},
            Structured(json_schema='{"not": {}}', strict=False, param="response_format"),
        ),
        ({"extra_body": {"structured_outputs": {"regex": "[ab]"}}}, Structured(regex="[ab]")),
        ({"extra_body": {"structured_outputs": {"choice": ["a", "b"]}}}, Structured(choice=("a", "b"))),
        ({"extra_body": {"structured_outputs": {"grammar": 'root ::= "a"'}}}, Structured(grammar='root ::= "a"')),
        (
            {"extra_body": {"structured_outputs": {"json": {"type": "null"}}}},
            Structured(json_schema='{"type": "null"}'),
        ),
    ],
)
async def test_response_formats_reach_the_worker(
    sdk: AsyncOpenAI, worker: ScriptedWorker, fields: Any, expected: Structured | None
) -> None:
    assert (await asked(sdk, worker, **fields)).params.structured_outputs == expected


@pytest.mark.parametrize(
    ("choice", "required", "named"),
    [
        ("auto", False, None),
        ("required", True, None),
        ({"type": "function", "function": {"name": "time"}}, False, "time"),
    ],
)
async def test_tool_choices_reach_the_worker(
    sdk: AsyncOpenAI, worker: ScriptedWorker, choice: Any, required: bool, named: str | None
) -> None:
    request = await asked(sdk, worker, tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False)
    assert request.tools is not None
    assert (request.tools.required, request.tools.named, request.tools.parallel) == (required, named, False)


async def test_tools_and_a_format_reach_the_worker(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    form: Any = {"type": "json_object"}
    request = await asked(sdk, worker, tools=[WEATHER], response_format=form)
    assert request.tools is not None
    assert request.params.structured_outputs == Structured(json_object=True, param="response_format")
    request = await asked(sdk, worker, tools=[WEATHER], tool_choice="none", response_format=form)
    assert (request.tools, request.params.structured_outputs is None) == (None, False)


async def test_tool_choice_none_removes_the_tools(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    assert (await asked(sdk, worker, tools=[WEATHER], tool_choice="none")).tools is None


async def test_biases_reach_the_worker(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    request = await asked(sdk, worker, logit_bias={"5": -100, "7": 2})
    assert request.params.logit_bias == {5: -100.0, 7: 2.0}
    with pytest.raises(openai.BadRequestError) as wrong:
        await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, logit_bias={"5": 200})
    assert wrong.value.param == "logit_bias"


async def test_jobs_return_tool_calls_too(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    form = {"type": "json_object"}
    made = (await client.post("/v1/jobs", json=chat(tools=[WEATHER, TIME], n=1, response_format=form))).json()
    assert (await call(worker)).params.structured_outputs is not None
    job = (await client.get(f"/v1/jobs/{made['id']}")).json()
    [choice] = job["choices"]
    assert [each["function"]["name"] for each in choice["tool_calls"]] == ["weather", "time"]
    assert choice["finish_reason"] == "tool_calls"
    async with client.stream("GET", f"/v1/jobs/{made['id']}/events") as response:
        told = [json.loads(f["data"]) async for f in frames(response) if f.get("event") == "token"]
    calls = [piece for data in told for token in data["tokens"] for piece in token.get("tool_calls", ())]
    assert calls[:2] == [{"index": 0, "arguments": "", "name": "weather"}, {"index": 0, "arguments": '{"city": '}]


def test_a_chat_line_is_the_same_work_by_kafka() -> None:
    """Given a batch's line with a format, or tools, expect the record to ask for the same."""
    from headrace.batch.kafka_records import _job_body_from_chat
    from shared.kafka.message import KafkaRequest
    from shared.schemas.openai.chat import ChatRequest

    history = [
        *MESSAGES,
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]
    for fields in (
        {"tools": [WEATHER], "tool_choice": "required"},
        {"response_format": {"type": "json_object"}, "logit_bias": {"5": 1.0}},
    ):
        body = {**chat(**fields), "messages": history}
        by_http = validate(json.dumps(body).encode(), ChatRequest).to_request("t")
        by_kafka = validate(json.dumps(_job_body_from_chat(body)).encode(), KafkaRequest).to_request("t")
        assert by_kafka.messages == by_http.messages
        assert by_kafka.tools == by_http.tools
        assert by_kafka.params == by_http.params
        assert by_http.params != SamplingParams() or by_http.tools is not None
