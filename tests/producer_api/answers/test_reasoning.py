"""Reasoning in the answers of each API: whole, streamed and resumed, from a tiny model that reasons."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI

from producer_api.rpc import inference_pb2 as pb
from shared.backend import Backend
from shared.protocol import CallDelta, FinishReason, Token, TokenLogprobs
from shared.settings import Settings
from tests.support.api_server import chat, frames, serving
from tests.support.fakes import MODEL, answer, lapse
from tests.support.grpc_client import serving as serving_rpc
from tests.support.reasoning_model import END_THINK, OPENING_TEMPLATE, THINK, TURN_END, save_reasoning_model
from tests.support.responses_api import BODY, checked
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine

SAMPLING: dict[str, Any] = {
    "max_tokens": 30,
    "seed": 4,
    "logit_bias": {END_THINK: 5.0, TURN_END: -100.0},
    "thinking_token_budget": 9,
}
# a thought, its end, and an answer
THOUGHT = (Token(0, 1, "", reasoning="hm", is_reasoning=True), Token(0, 2, "", reasoning="m", is_reasoning=True))
TOKENS = (*THOUGHT, Token(0, 3, ""), Token(0, 4, "Yes"))


def counts(usage: dict[str, Any]) -> dict[str, Any]:
    """Return a usage without what depends on earlier requests."""
    return {name: count for name, count in usage.items() if name != "prompt_tokens_details"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = save_reasoning_model(tmp_path_factory.mktemp("reasoning"), OPENING_TEMPLATE)
    return Engine.load(EngineConfig(folder, num_kv_blocks=64))


@pytest.fixture
async def http(settings: Settings, backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(settings, backend) as url,
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as client,
    ):
        yield client


@pytest.fixture
async def reasoner(settings: Settings, backend: Backend, engine: Engine) -> AsyncIterator[None]:
    async with Harness(backend, settings).worker(engine):
        yield


async def chunks(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the chunks of a streamed chat, each with the id of its event."""
    async with http.stream("POST", "/v1/chat/completions/stream", json=body, headers=headers) as response:
        assert response.status_code == 200
        found = [frame async for frame in frames(response) if "data" in frame]
    assert found.pop()["data"] == "[DONE]"
    return [(frame.get("id", ""), json.loads(frame["data"])) for frame in found]


def joined(found: list[tuple[str, dict[str, Any]]], name: str) -> str:
    return "".join(each["delta"].get(name) or "" for _, chunk in found for each in chunk["choices"])


@pytest.mark.usefixtures("reasoner")
async def test_a_chat_is_the_same_whole_streamed_and_resumed(http: httpx.AsyncClient) -> None:
    body = chat(**SAMPLING)
    whole = (await http.post("/v1/chat/completions", json=body)).json()
    message, usage = whole["choices"][0]["message"], whole["usage"]
    assert message["reasoning_content"] == message["reasoning"] != ""
    assert message["content"]
    assert "think>" not in message["content"] + message["reasoning"]
    counted = usage["completion_tokens_details"]["reasoning_tokens"]
    assert len(message["reasoning"]) <= counted <= 9
    assert usage["completion_tokens"] == 30

    streamed = await chunks(http, {**body, "stream_options": {"include_usage": True}}, **{"idempotency-key": "k"})
    for name in ("reasoning_content", "reasoning", "content"):
        assert joined(streamed, name) == message[name]
    assert counts(streamed[-1][1]["usage"]) == counts(usage)
    for at, (place, _) in enumerate(streamed[:-1]):
        if place:
            rest = await chunks(
                http,
                {**body, "stream_options": {"include_usage": True}},
                **{"idempotency-key": "k", "last-event-id": place},
            )
            assert rest == streamed[at + 1 :]


@pytest.mark.usefixtures("reasoner")
async def test_a_job_has_its_reasoning(http: httpx.AsyncClient, settings: Settings, backend: Backend) -> None:
    job = (await http.post("/v1/jobs", json=chat(**SAMPLING))).json()
    events = [frame async for frame in frames(await http.get(f"/v1/jobs/{job['id']}/events"))]
    data = [json.loads(frame["data"]) for frame in events if "data" in frame]
    tokens = [token for each in data for token in each.get("tokens", ())]
    done = (await http.get(f"/v1/jobs/{job['id']}")).json()
    [choice] = done["choices"]
    assert choice["reasoning"] == "".join(token.get("reasoning", "") for token in tokens) != ""
    assert choice["text"] == "".join(token["text"] for token in tokens)
    assert data[-1]["usage"] == done["usage"]
    assert 0 < done["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 9

    async with serving_rpc(settings, backend) as (_, client):
        found = await client.GetJob(pb.GetJobRequest(id=job["id"]))
        followed = [event async for event in client.Follow(pb.FollowRequest(id=job["id"]))]
    assert found.choices[0].reasoning == choice["reasoning"]
    assert "".join(token.reasoning for event in followed for token in event.tokens.tokens) == choice["reasoning"]
    counted = done["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert followed[-1].end.usage.completion_tokens_details.reasoning_tokens == counted
    assert found.usage == followed[-1].end.usage


@pytest.mark.usefixtures("reasoner")
async def test_reasoning_can_be_left_out(http: httpx.AsyncClient) -> None:
    body = chat(**SAMPLING, logprobs=True)
    shown, hidden = [
        (await http.post("/v1/chat/completions", json={**body, "include_reasoning": each})).json()
        for each in (True, False)
    ]
    before, after = shown["choices"][0]["message"], hidden["choices"][0]["message"]
    assert before["reasoning"]
    assert after == {name: value for name, value in before.items() if not name.startswith("reasoning")}
    assert counts(hidden["usage"]) == counts(shown["usage"])
    counted = shown["usage"]["completion_tokens_details"]["reasoning_tokens"]
    all_logprobs, some = (each["choices"][0]["logprobs"]["content"] for each in (shown, hidden))
    assert some == all_logprobs[counted:]


@pytest.mark.usefixtures("reasoner")
async def test_a_prompt_keeps_its_tags(http: httpx.AsyncClient) -> None:
    body = {**SAMPLING, "model": MODEL, "prompt": "<think>\n"}
    answered = (await http.post("/v1/completions", json=body)).json()
    assert "</think>" in answered["choices"][0]["text"]
    assert "completion_tokens_details" not in answered["usage"]


async def test_a_takeover_keeps_the_reasoning(
    http: httpx.AsyncClient, settings: Settings, backend: Backend, engine: Engine
) -> None:
    """Given a worker lost within the reasoning, and one lost after it, expect the undisturbed answer."""
    async with Harness(backend, settings).worker(engine):
        job = (await http.post("/v1/jobs", json=chat(**SAMPLING))).json()
        whole = await answer(backend, job["id"])
    tokens = [token for event in whole for token in event.tokens]
    for done in (4, 20):
        dead = ScriptedWorker(backend)
        again = (await http.post("/v1/jobs", json=chat(**SAMPLING))).json()
        await (await dead.take()).write(*tokens[:done])
        await lapse(backend)
        async with Harness(backend, settings).worker(engine):
            events = await answer(backend, again["id"])
        assert [token for event in events for token in event.tokens] == tokens
        assert events[-1].terminal is not None
        assert whole[-1].terminal is not None
        ended, undisturbed = events[-1].terminal.usage, whole[-1].terminal.usage
        assert msgspec.structs.replace(ended, cached_tokens=0) == msgspec.structs.replace(
            undisturbed, cached_tokens=0
        )


async def test_effort_none_turns_reasoning_off(
    http: httpx.AsyncClient, settings: Settings, backend: Backend, tmp_path: Path
) -> None:
    """It is the same as the variable of Qwen 3's template."""
    engine = Engine.load(EngineConfig(save_reasoning_model(tmp_path), num_kv_blocks=64))
    body = chat(max_tokens=10, seed=4, logit_bias={THINK: 50.0})
    named = {"chat_template_kwargs": {"enable_thinking": False}}
    async with Harness(backend, settings).worker(engine):
        thinking, free, off = [
            (await http.post("/v1/chat/completions", json={**body, **more})).json()
            for more in ({}, {"reasoning_effort": "none"}, named)
        ]
    assert thinking["usage"]["completion_tokens_details"]["reasoning_tokens"] == 9
    assert "completion_tokens_details" not in free["usage"]
    assert free["choices"] == off["choices"]
    empty = len(("<think>", "\n", "\n", "</think>", "\n", "\n"))  # reasoning that the template closes
    assert free["usage"]["prompt_tokens"] == thinking["usage"]["prompt_tokens"] + empty


async def test_the_openai_package_reads_the_reasoning(api: str, worker: ScriptedWorker) -> None:
    async with AsyncOpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as sdk:
        asked = asyncio.create_task(
            sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        )
        job = await worker.take()
        await job.write(*TOKENS[:2], Token(0, 3, "", FinishReason.LENGTH))
        await job.end()
        message = (await asked).choices[0].message
    assert (message.content, message.model_extra) == (None, {"reasoning_content": "hmm", "reasoning": "hmm"})


async def test_a_response_has_a_reasoning_item(api: str, worker: ScriptedWorker) -> None:
    scored = Token(0, 1, "", None, TokenLogprobs(-1.0, (), "x"), reasoning="hm", is_reasoning=True)
    call = (Token(0, 6, "", None, None, (CallDelta(0, "f", "{}"),)), Token(0, 7, "", FinishReason.TOOL_CALLS))
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        body = {**BODY, "include": ["message.output_text.logprobs"]}
        asked = asyncio.create_task(http.post("/v1/responses", json=body))
        job = await worker.take()
        await job.write(scored, *TOKENS[1:], *call)
        await job.end()
        response = await asked
        events = checked([frame async for frame in frames(response) if "data" in frame])
        stored = (await http.get(f"/v1/responses/{events[0]['response']['id']}")).json()

        later = asyncio.create_task(
            http.post("/v1/responses", json={**BODY, "previous_response_id": stored["id"], "input": "and?"})
        )
        follow_up = (await worker.take()).request
        later.cancel()

    thought = [
        *("response.output_item.added", "response.content_part.added"),
        *("response.reasoning_text.delta", "response.reasoning_text.delta", "response.reasoning_text.done"),
        *("response.content_part.done", "response.output_item.done"),
    ]
    assert [event["type"] for event in events[2:9]] == thought
    assert [event["delta"] for event in events[4:6]] == ["hm", "m"]
    assert events[9]["item"]["type"] == "message"
    item, message, function = events[-1]["response"]["output"]
    assert item == {
        "type": "reasoning",
        "id": events[2]["item"]["id"],
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hmm"}],
    }
    assert events[8]["item"] == item
    assert {event["item_id"] for event in events[3:8]} == {item["id"]}
    assert message["content"][0]["text"] == "Yes"
    assert message["content"][0]["logprobs"] == []
    assert function["type"] == "function_call"
    assert stored["output"] == [item, message, function]
    turn = (follow_up.messages or ())[1]
    assert (turn.role, turn.content, turn.reasoning, len(turn.tool_calls)) == ("assistant", "Yes", "hmm", 1)


async def test_answers_without_reasoning_do_not_change(api: str, worker: ScriptedWorker) -> None:
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=chat()))
        await worker.answer("Yes", ".")
        answered = (await asked).json()
    assert answered["choices"][0]["message"] == {"content": "Yes.", "role": "assistant", "refusal": None}
    assert counts(answered["usage"]) == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
