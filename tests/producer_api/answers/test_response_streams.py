"""The events of a response: OpenAI's order and shape, and the same bytes from every replica."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from shared.backend import Backend
from shared.errors import EngineFailed
from shared.protocol import ErrorInfo, FinishReason, RequestState, Token, TokenLogprobs
from shared.settings import Settings
from tests.support.api_server import frames, serving
from tests.support.fakes import MODEL, ended
from tests.support.responses_api import BODY, checked
from tests.support.scripted_worker import Job, ScriptedWorker
from tests.support.waiting import LIMIT_S

TEXT = [
    *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
    *("response.output_text.delta", "response.output_text.done", "response.content_part.done"),
    "response.output_item.done",
]


async def streamed(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    async with http.stream("POST", "/v1/responses", json={**BODY, **fields}) as response:
        assert response.status_code == 200
        return checked([frame async for frame in frames(response) if "data" in frame])


async def write(job: Job, *texts: str, finish: FinishReason = FinishReason.STOP) -> None:
    """These texts, one token each, in one append for every two, with a token of no text at the end."""
    tokens = [Token(0, i, text) for i, text in enumerate(texts)] + [Token(0, len(texts), "", finish)]
    for i in range(0, len(tokens), 2):
        await job.write(*tokens[i : i + 2])


async def test_events_in_order(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(streamed(http, metadata={"a": "b"}))
    job = await worker.take()
    await write(job, "Hel", "lo")
    await job.end()
    events = await asked
    kinds = [event["type"] for event in events]
    assert kinds == ["response.created", "response.in_progress", *TEXT, "response.completed"]
    created, item, delta, done, last = (events[i] for i in (0, 2, 4, 6, 9))
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert (item["item"]["status"], item["item"]["content"]) == ("in_progress", [])
    assert (delta["delta"], delta["item_id"]) == ("Hel", item["item"]["id"])
    assert done["text"] == "Hello"
    assert last["response"]["output"][0] == events[8]["item"]
    assert last["response"]["usage"]["output_tokens"] == 3
    seen = (await http.get(f"/v1/responses/{created['response']['id']}")).json()
    assert {**seen, "completed_at": None} == last["response"]


@pytest.mark.parametrize(
    ("state", "error", "status", "kind"),
    [
        (RequestState.COMPLETED, None, "incomplete", "response.incomplete"),
        (RequestState.CANCELLED, None, "cancelled", "response.incomplete"),
        (RequestState.FAILED, EngineFailed("the engine failed"), "failed", "response.failed"),
    ],
)
async def test_each_ending_has_its_last_event(
    http: httpx.AsyncClient, worker: ScriptedWorker, state: RequestState, error: Any, status: str, kind: str
) -> None:
    asked = asyncio.create_task(streamed(http))
    job = await worker.take()
    await write(job, "a", "b", finish=FinishReason.LENGTH)
    await job.end(state, error and ErrorInfo.from_error(error))
    events = await asked
    assert [event["type"] for event in events[2:]] == [*TEXT, kind]
    response = events[-1]["response"]
    assert (response["status"], response["output"][0]["status"]) == (status, "incomplete")
    assert (response["error"] or {}).get("message") == (error and "the engine failed")


async def test_logprobs_of_held_back_text_are_streamed(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(streamed(http, include=["message.output_text.logprobs"]))
    job = await worker.take()
    await job.write(Token(0, 1, "", None, TokenLogprobs(-0.5, (), "x")))
    await job.write(Token(0, 2, "xy", None, TokenLogprobs(-1.0, (), "y")))
    await job.write(Token(0, 3, "", FinishReason.STOP, TokenLogprobs(-2.0, (), "")))
    await job.end()
    events = await asked
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    told = [(each["delta"], [found["token"] for found in each["logprobs"]]) for each in deltas]
    assert told == [("xy", ["x", "y"]), ("", [""])]
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert [each["logprob"] for each in done["logprobs"]] == [-0.5, -1.0, -2.0]


async def test_a_queued_response_can_be_cancelled(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    made = (await http.post("/v1/responses", json={**BODY, "stream": False, "background": True})).json()
    assert (await http.post(f"/v1/responses/{made['id']}/cancel")).json()["status"] == "cancelled"
    told = await http.get(f"/v1/responses/{made['id']}?stream=true")
    events = checked([frame async for frame in frames(told)])
    assert [event["type"] for event in events] == ["response.created", "response.queued", "response.incomplete"]
    assert (events[-1]["response"]["status"], events[-1]["response"]["output"]) == ("cancelled", [])


async def test_any_replica_resumes_with_the_same_bytes(
    settings: Settings, backend: Backend, worker: ScriptedWorker, http: httpx.AsyncClient
) -> None:
    for joined in (False, True):  # while it runs, and from the log alone
        asked = asyncio.create_task(http.post("/v1/responses", json={**BODY, "background": True}))
        job = await worker.take()
        await write(job, "a", "b", "c")
        other = Backend.open(settings)
        async with serving(settings, other) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as second:
            if joined:
                await job.end()
            whole = (await asked).content if joined else None
            response_id = "resp_" + job.request.id.removeprefix("req_")
            path = f"/v1/responses/{response_id}?stream=true"
            reading = [asyncio.create_task(second.get(f"{path}&starting_after={i}")) for i in range(-1, 13)]
            header = asyncio.create_task(second.get(path, headers={"last-event-id": "4"}))
            if not joined:
                await job.end()
                whole = (await asked).content
            assert whole is not None
            starts = [0, *[i + 2 for i in range(len(whole)) if whole.startswith(b"\n\n", i)]]
            assert len(starts) == 13, "12 events"
            for i, told in enumerate(await asyncio.gather(*reading)):
                assert told.content == whole[starts[i] if i < len(starts) else len(whole) :]
            assert (await header).content == whole[starts[5] :]
        await other.close()


async def test_the_sdk_resumes_a_stream_on_another_replica(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    other = Backend.open(settings)
    async with serving(settings, other) as second:
        async with serving(settings, backend) as first:
            sdk = AsyncOpenAI(base_url=f"{first}/v1", api_key="none", max_retries=0)
            opening = asyncio.create_task(
                sdk.responses.create(model=MODEL, input="hi", background=True, stream=True)
            )
            stream = await opening
            events = [await anext(stream), await anext(stream)]
            assert [event.type for event in events] == ["response.created", "response.queued"]
            job = await worker.take()
            await job.say("one")
            events += [await anext(stream) for _ in range(4)]
        left = [event async for event in stream]
        await sdk.close()
        assert [(event.type, event.code) for event in left] == [("error", "unavailable")]
        assert left[0].sequence_number == events[-1].sequence_number
        await job.write(Token(0, 1, " two", FinishReason.STOP))
        await job.end()
        async with AsyncOpenAI(base_url=f"{second}/v1", api_key="none", max_retries=0) as sdk:
            rest = await sdk.responses.retrieve(
                events[0].response.id, stream=True, starting_after=left[0].sequence_number
            )
            events += [event async for event in rest]
            by_helper = sdk.responses.stream(response_id=events[0].response.id, starting_after=5)
            async with by_helper as helped:
                assert [event.type async for event in helped] == [event.type for event in events[6:]]
                assert (await helped.get_final_response()).output_text == "one two"
    await other.close()
    assert [event.sequence_number for event in events] == list(range(11))
    assert events[-1].response.output_text == "one two"


async def test_a_keyed_stream_resumes_without_storage(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    keyed = {"idempotency-key": "k"}
    body = {**BODY, "store": False}
    asked = asyncio.create_task(http.post("/v1/responses", json=body, headers=keyed))
    job = await worker.take()
    asked.cancel()
    await write(job, "a", "b")
    await job.end()
    whole = await http.post("/v1/responses", json=body, headers=keyed)
    rest = await http.post("/v1/responses", json=body, headers={**keyed, "last-event-id": "5"})
    assert whole.headers["idempotent-replayed"] == "true"
    assert whole.content.endswith(rest.content)
    assert checked([frame async for frame in frames(rest)])[0]["sequence_number"] == 6
    refused = await http.post("/v1/responses", json=body, headers={"last-event-id": "5"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnecting_cancels_unless_in_the_background(
    api: str, worker: ScriptedWorker, backend: Backend, stream: bool, http: httpx.AsyncClient
) -> None:
    states = []
    for fields in ({}, {"background": True, "stream": True}):
        asked = asyncio.create_task(http.post("/v1/responses", json={**BODY, "stream": stream, **fields}))
        job = await worker.take()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        if not fields:
            await ended(backend, job.request.id)
        assert await job.say("on") is bool(fields)
        record = await backend.token_log.record(job.request.id)
        states.append(record and record.state)
    assert states == [RequestState.CANCELLED, RequestState.RUNNING]


async def test_a_keepalive_sends_the_id_of_a_queued_response(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    quick = settings.model_copy(update={"keepalive": 0.05})
    async with (
        serving(quick, backend) as url,
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http,
        http.stream("POST", "/v1/responses", json=BODY) as response,
    ):
        stream = frames(response)
        begun = [await anext(stream) for _ in range(4)]
        assert [frame.get("event") for frame in begun] == ["response.created", "response.in_progress", None, None]
        await worker.answer("x")
        rest = [frame async for frame in stream if "data" in frame]
    assert len(checked(begun[:2] + rest)) == 9
