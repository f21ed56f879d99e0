"""OpenAI's responses through OpenAI's package: created, stored, chained, in the background, refused."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from shared.backend import Backend
from shared.errors import ContextLengthExceeded, EngineFailed
from shared.protocol import ErrorInfo, FinishReason, PriorityClass, RequestState, Token, TokenLogprobs
from shared.redis import keys
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.fakes import MODEL
from tests.support.responses_api import INPUT, LOGPROBS, answered, said
from tests.support.scripted_worker import CACHED_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S


async def test_a_whole_response(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    response, request = await answered(
        sdk,
        worker,
        "Hel",
        "lo",
        instructions="be kind",
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=7,
        metadata={"a": "b"},
        user="me",
        extra_body={"seed": 3},
    )
    assert response.id == "resp_" + request.id.removeprefix("req_")
    assert (response.status, response.output_text, response.error) == ("completed", "Hello", None)
    assert [(item.type, item.status, item.role) for item in response.output] == [
        ("message", "completed", "assistant")
    ]
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (5, 2, 7)
    assert usage.input_tokens_details.cached_tokens == CACHED_TOKENS
    assert (response.instructions, response.temperature, response.top_p) == ("be kind", 0.5, 0.9)
    assert (response.max_output_tokens, response.metadata, response.user) == (7, {"a": "b"}, "me")
    assert response.created_at == int(request.created_at)
    assert said(request) == [("system", "be kind"), ("user", "hi")]
    params = request.params
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.5, 0.9, 7, 3)
    assert request.priority is PriorityClass.INTERACTIVE


async def test_every_form_of_input_item_reaches_the_model(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    first, _ = await answered(sdk, worker, "yes")
    given = [
        {"role": "developer", "content": "short"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in "ab"]},
        *first.output,
        first.output[0].model_dump(),
        {"role": "assistant", "content": "no", "phase": "final_answer"},
        {"role": "user", "content": "and?"},
    ]
    response, request = await answered(sdk, worker, "x", input=given)
    expected = [("system", "short"), ("user", "ab"), ("assistant", "yes"), ("assistant", "yes")]
    assert said(request) == [*expected, ("assistant", "no"), ("user", "and?")]
    listed = [item async for item in sdk.responses.input_items.list(response.id, order="asc")]
    TypeAdapter(list[ResponseItem]).validate_python([item.model_dump() for item in listed])
    assert [item.role for item in listed] == ["developer", "user", "assistant", "assistant", "assistant", "user"]
    assert [part.text for part in listed[1].content] == ["a", "b"]


async def test_responses_chain(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    first, _ = await answered(sdk, worker, "one", input="1?", instructions="count")
    second, _ = await answered(sdk, worker, "two", input="2?", previous_response_id=first.id)
    await sdk.responses.delete(first.id)
    third, request = await answered(
        sdk, worker, "three", input="3?", previous_response_id=second.id, instructions="more"
    )
    assert third.previous_response_id == second.id
    turns = [("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two"), ("user", "3?")]
    assert said(request) == [("system", "more"), *turns], "instructions are not carried over"

    page = await sdk.responses.input_items.list(third.id, limit=2)
    assert (page.has_more, [item.content[0].text for item in page.data]) == (True, ["3?", "two"])
    assert [item.content[0].text async for item in page] == ["3?", "two", "2?", "one", "1?"]
    assert page.data[1].id == second.output[0].id
    ids = [item.id async for item in sdk.responses.input_items.list(third.id, order="asc", limit=1)]
    assert len(set(ids)) == 5


async def test_unfinished_or_unstored_responses_do_not_chain(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    running = await sdk.responses.create(model=MODEL, input=INPUT, background=True)
    with pytest.raises(openai.BadRequestError, match="has ended") as caught:
        await sdk.responses.create(model=MODEL, input=INPUT, previous_response_id=running.id)
    assert caught.value.param == "previous_response_id"
    await sdk.responses.cancel(running.id)
    unstored, _ = await answered(sdk, worker, "x", store=False)
    for unknown in (unstored.id, "resp_" + "0" * 32, "x"):
        with pytest.raises(openai.NotFoundError) as missing:
            await sdk.responses.create(model=MODEL, input=INPUT, previous_response_id=unknown)
        assert missing.value.param == "previous_response_id"


async def test_store_decides_whether_a_response_is_kept(
    sdk: AsyncOpenAI, worker: ScriptedWorker, backend: Backend
) -> None:
    response, request = await answered(sdk, worker, "x", metadata={"k": "v"})
    seen = await sdk.responses.retrieve(response.id)
    assert seen.completed_at >= seen.created_at
    assert seen.model_dump(exclude={"completed_at"}) == response.model_dump(exclude={"completed_at"})
    assert 0 < await backend.redis.pttl(keys.state(request.id)) <= 86_400_000

    await sdk.responses.delete(response.id)
    unstored, request = await answered(sdk, worker, "x", store=False)
    assert unstored.store is False
    assert 0 < await backend.redis.pttl(keys.state(request.id)) <= 3_600_000
    for gone in (response.id, unstored.id, "resp_1", "req_" + "0" * 32):
        for call in (sdk.responses.retrieve, sdk.responses.cancel, sdk.responses.delete):
            with pytest.raises(openai.NotFoundError):
                await call(gone)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.input_items.list(gone)


async def test_another_tenants_response_is_404(sdk: AsyncOpenAI, worker: ScriptedWorker, backend: Backend) -> None:
    response, request = await answered(sdk, worker, "x")
    await backend.redis.hset(keys.state(request.id), "tenant", "another")
    for call in (sdk.responses.retrieve, sdk.responses.cancel, sdk.responses.delete):
        with pytest.raises(openai.NotFoundError):
            await call(response.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.create(model=MODEL, input=INPUT, previous_response_id=response.id)


async def test_a_background_response_is_returned_at_once(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    response = await sdk.responses.create(model=MODEL, input=INPUT, background=True)
    assert (response.status, response.background, response.output) == ("queued", True, [])
    assert (await sdk.responses.retrieve(response.id)).status == "queued"
    job = await worker.take()
    assert job.request.priority is PriorityClass.STANDARD
    assert (await sdk.responses.retrieve(response.id)).status == "in_progress"
    await job.write(Token(0, 1, "all", FinishReason.STOP))
    await job.end()
    done = await sdk.responses.retrieve(response.id)
    assert (done.status, done.output_text) == ("completed", "all")
    assert (await sdk.responses.cancel(done.id)).status == "completed", "an ended one stays as it is"


async def test_each_ending_has_its_status(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    cut = asyncio.create_task(sdk.responses.create(model=MODEL, input=INPUT, max_output_tokens=1))
    job = await worker.take()
    await job.write(Token(0, 1, "half", FinishReason.LENGTH))
    await job.end()
    response = await cut
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output[0].status, response.output_text) == ("incomplete", "half")

    made = await sdk.responses.create(model=MODEL, input=INPUT, background=True)
    job = await worker.take()
    await job.say("begun")
    cancelled = await sdk.responses.cancel(made.id)
    assert (cancelled.status, cancelled.output_text, cancelled.error) == ("cancelled", "begun", None)
    assert not await job.say("late")

    made = await sdk.responses.create(model=MODEL, input=INPUT, background=True)
    job = await worker.take()
    await job.end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("the engine failed")))
    failed = await sdk.responses.retrieve(made.id)
    assert (failed.status, failed.output, failed.error.code) == ("failed", [], "server_error")
    assert (failed.error.type, failed.error.message) == ("engine_failed", "the engine failed")


async def test_deleting_cancels_a_running_response(
    sdk: AsyncOpenAI, worker: ScriptedWorker, backend: Backend
) -> None:
    made = await sdk.responses.create(model=MODEL, input=INPUT, background=True)
    job = await worker.take()
    await sdk.responses.delete(made.id)
    assert not await job.say("late")
    assert await backend.redis.keys(f"hr:{{{job.request.id}}}:*") == []
    waiting = await sdk.responses.create(model=MODEL, input=INPUT, background=True)
    await sdk.responses.delete(waiting.id)
    assert (await backend.transport.depth(MODEL)).waiting == 0


async def test_a_workers_refusal_is_an_api_error(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    for stream in (False, True):
        asked = asyncio.create_task(sdk.responses.create(model=MODEL, input=INPUT, stream=stream))
        job = await worker.take()
        refusal = ContextLengthExceeded("2000 tokens, context has 1024", param="messages")
        await job.end(RequestState.FAILED, ErrorInfo.from_error(refusal))
        with pytest.raises(openai.BadRequestError) as caught:
            await asked
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


async def test_logprobs_cover_every_token(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(sdk.responses.create(model=MODEL, input=INPUT, include=[LOGPROBS], top_logprobs=1))
    job = await worker.take()
    assert job.request.params.logprobs == 1
    await job.write(Token(0, 7, "♥", FinishReason.STOP, TokenLogprobs(-0.5, ((7, -0.5, "♥"),), "♥")))
    await job.end()
    response = await asked
    [found] = response.output[0].content[0].logprobs
    assert (found.token, found.logprob, found.bytes, found.top_logprobs[0].token) == (
        "♥",
        -0.5,
        [226, 153, 165],
        "♥",
    )
    assert (await sdk.responses.retrieve(response.id)).output[0].content[0].logprobs == [found]
    later, _ = await answered(sdk, worker, "x", previous_response_id=response.id)
    listed = [item async for item in sdk.responses.input_items.list(later.id, order="asc")]
    assert listed[1].content[0].logprobs == []


async def test_a_key_runs_a_response_once(sdk: AsyncOpenAI, worker: ScriptedWorker, api: str) -> None:
    """Complete or in the background; the key is unknown to other APIs."""
    keyed = {"Idempotency-Key": "k"}
    asked = [
        asyncio.create_task(sdk.responses.create(model=MODEL, input=INPUT, extra_headers=keyed)) for _ in range(5)
    ]
    await worker.answer("x")
    found = {response.model_dump_json() for response in await asyncio.gather(*asked)}
    assert len(found) == 1
    with pytest.raises(openai.UnprocessableEntityError):
        await sdk.responses.create(model=MODEL, input="another", extra_headers=keyed)

    keyed = {"Idempotency-Key": "b"}
    made = [
        await sdk.responses.create(model=MODEL, input=INPUT, background=True, extra_headers=keyed) for _ in range(2)
    ]
    await worker.answer("y")
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        body = {"model": MODEL, "input": INPUT, "background": True}
        again = await http.post("/v1/responses", json=body, headers=keyed)
    assert again.headers["idempotent-replayed"] == "true"
    assert {each.id for each in made} == {again.json()["id"]}
    assert (made[0].status, again.json()["status"]) == ("queued", "completed")


def test_the_blocking_client_works(valkey: object, settings: Settings) -> None:
    def ask(url: str) -> tuple[str, str]:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as blocking:
            whole = blocking.responses.create(model=MODEL, input=INPUT)
            with blocking.responses.stream(model=MODEL, input=INPUT) as stream:
                streamed = stream.get_final_response()
            raw = blocking.responses.with_raw_response.retrieve(whole.id)
            assert raw.headers["x-request-id"]
            assert raw.parse() == blocking.responses.retrieve(whole.id)
            blocking.responses.delete(whole.id)
            return whole.output_text, streamed.output_text

    async def run() -> tuple[str, str]:
        backend = Backend.open(settings)
        worker = ScriptedWorker(backend)
        await worker.announce()
        async with serving(settings, backend) as url:
            asked = asyncio.create_task(asyncio.to_thread(ask, url))
            await worker.answer("a", "b", times=2)
            texts = await asked
        await backend.close()
        return texts

    assert asyncio.run(run()) == ("ab", "ab")
