"""Helpers for the responses API, driven by the `openai` package."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from openai import AsyncOpenAI
from openai.types.responses import Response as SDKResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from shared.protocol import (
    CallDelta,
    FinishReason,
    Request,
    Token,
)
from tests.support.fakes import MODEL
from tests.support.scripted_worker import Job, ScriptedWorker

INPUT = "hi"
LOGPROBS = "message.output_text.logprobs"
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "f",
    "description": "does",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}


async def answered(
    sdk: AsyncOpenAI, worker: ScriptedWorker, *texts: str, **fields: Any
) -> tuple[SDKResponse, Request]:
    """Return a whole response whose answer has these texts, and the request that the worker got."""
    asked = asyncio.create_task(sdk.responses.create(**{"model": MODEL, "input": INPUT, **fields}))
    request = await worker.answer(*texts)
    response = await asked
    SDKResponse.model_validate(response.model_dump())
    return response, request


def said(request: Request) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.messages or ()]


BODY: dict[str, Any] = {"model": MODEL, "input": "hi", "stream": True}
SDK_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def checked(found: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the events of a stream's frames; check that each is valid by OpenAI's types, and their numbers."""
    events = []
    for frame in found:
        event = json.loads(frame["data"])
        assert frame["event"] == event["type"]
        assert SDK_EVENT.validate_python(event).type == event["type"]
        if event["type"] != "error":
            assert int(frame["id"]) == event["sequence_number"]
        events.append(event)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return events


async def call(job: Job, *, text: str = "", calls: int = 1, finish: FinishReason = FinishReason.TOOL_CALLS) -> None:
    """Write a text, and calls of f in three tokens each; the markers around the calls are empty tokens."""
    if text:
        await job.say(text)
    for index in range(calls):
        await job.say("")
        await job.write(Token(0, 1, "", calls=(CallDelta(index, "f"),)))
        await job.write(
            Token(0, 2, "", calls=(CallDelta(index, arguments='{"x":'),)),
            Token(0, 3, "", calls=(CallDelta(index, arguments=f" {index}}}"),)),
        )
    await job.write(Token(0, 4, "", finish))
    await job.end()


class Weather(BaseModel):
    city: str
    degrees: int
