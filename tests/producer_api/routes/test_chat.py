"""Chat completions through OpenAI's package, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from shared.backend import Backend
from shared.errors import ContextLengthExceeded, EngineFailed, InvalidRequest
from shared.protocol import ErrorInfo, FinishReason, PriorityClass, RequestState, Token, TokenLogprobs
from shared.settings import Settings
from tests.support.api_server import chat, frames, serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import CACHED_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S

QUEUES = ("redis", "kafka")

MESSAGES = [{"role": "user", "content": "hi"}]


async def test_a_complete_answer_has_exact_usage(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(
        sdk.chat.completions.create(model=MODEL, messages=MESSAGES, seed=0, temperature=0.5)
    )
    request = await worker.answer("Hel", "lo", " world")
    answer = await asked
    assert answer.object == "chat.completion"
    assert answer.id == "chatcmpl-" + request.id.removeprefix("req_")
    assert answer.model == MODEL
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 3, 8)
    assert request.params.seed == 0, "0 is a seed"
    assert request.params.temperature == 0.5
    assert request.priority is PriorityClass.INTERACTIVE
    assert request.created_at > 0


async def test_the_sdk_reads_on_through_keepalives(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    quick = settings.model_copy(update={"keepalive": 0.05})
    async with (
        serving(quick, backend) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk,
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http,
    ):
        asked = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
        job = await worker.take()
        await job.say("a")
        stream = await asked
        async with http.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as witness:
            silences = [frame async for frame in until_silent(frames(witness), 4)]
        await job.say("b")
        await job.end()
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert (len(silences), text) == (4, "ab")


async def until_silent(found: AsyncIterator[dict[str, str]], times: int) -> AsyncIterator[dict[str, str]]:
    """Wait for that many keepalives, which take as long on every other stream."""
    seen = 0
    async for frame in found:
        if frame == {"": "keepalive"}:
            seen += 1
            yield frame
        if seen == times:
            return


def test_the_blocking_client_streams(valkey, settings: Settings) -> None:

    def ask(url: str) -> str:
        with (
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as blocking,
            blocking.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream,
        ):
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    async def run() -> str:
        backend = Backend.open(settings)
        worker = ScriptedWorker(backend)
        async with serving(settings, backend) as url:
            asked = asyncio.create_task(asyncio.to_thread(ask, url))
            await worker.answer("a", "b", "c")
            text = await asked
        await backend.close()
        return text

    assert asyncio.run(run()) == "abc"


async def test_tokens_are_streamed_while_the_answer_is_generated(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    opening = asyncio.create_task(
        sdk.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    job = await worker.take()
    await job.say("one")
    stream = await opening
    first = await anext(stream)
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    second = await anext(stream)
    assert second.choices[0].delta.content == "one"
    assert second.object == "chat.completion.chunk"
    assert second.usage is None
    await job.write(Token(0, 1, ""), Token(0, 2, " two"), Token(0, 3, "", FinishReason.LENGTH))
    await job.end()
    rest = [chunk async for chunk in stream]
    assert rest[0].choices[0].delta.content == " two"
    assert rest[1].choices[0].finish_reason == "length"
    assert rest[1].choices[0].delta.content is None
    assert rest[2].choices == []
    assert rest[2].usage.completion_tokens == 4
    assert rest[2].usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
    assert len(rest) == 3
    assert {chunk.id for chunk in rest} == {first.id}


async def test_choices_keep_their_index(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    whole = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, n=2))
    await worker.answer("x", "y", n=2)
    assert [(c.index, c.message.content, c.finish_reason) for c in (await whole).choices] == [
        (0, "xy", "stop"),
        (1, "xy", "stop"),
    ]
    opening = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, n=2, stream=True))
    await worker.answer("x", "y", n=2)
    texts, roles, reasons = {0: "", 1: ""}, [], []
    async for chunk in await opening:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] * (choice.delta.role == "assistant")
        reasons += [choice.index] * (choice.finish_reason == "stop")
    assert texts == {0: "xy", 1: "xy"}
    assert roles == [0, 1]
    assert reasons == [0, 1]


async def test_raw_frames_have_ids_and_end_with_done(api: str, worker: ScriptedWorker) -> None:
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as raw:
        answering = asyncio.create_task(worker.answer("a", "b"))
        async with raw.stream("POST", "/v1/chat/completions/stream", json=chat()) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["x-request-id"]
            found = [frame async for frame in frames(response)]
        await answering
    assert found[-1]["data"] == "[DONE]"
    assert [frame["id"] for frame in found if "id" in frame] == ["0", "1", "2"]
    chunk = json.loads(found[0]["data"])
    assert list(chunk) == ["id", "created", "model", "choices", "object", "system_fingerprint"]


async def test_a_worker_refusal_is_a_400_before_the_stream(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    for stream in (False, True):
        asked = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream))
        job = await worker.take()
        refusal = ContextLengthExceeded("2000 tokens, context has 1024", param="messages")
        await job.end(RequestState.FAILED, ErrorInfo.from_error(refusal))
        with pytest.raises(openai.BadRequestError) as caught:
            await asked
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"


async def test_a_workers_error_keeps_its_field(client: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(client.post("/v1/chat/completions", json=chat()))
    job = await worker.take()
    await job.end(RequestState.FAILED, ErrorInfo.from_error(InvalidRequest("no such token", param="logit_bias")))
    assert (await asked).status_code == 400
    assert (await asked).json()["error"]["param"] == "logit_bias"


async def test_logprobs_cover_every_token(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """Streamed and complete, also where text is held back."""
    heart = TokenLogprobs(-0.5, ((7, -0.5, "♥"), (9, -1.5, "x")), "♥")
    tokens = [Token(0, 7, "", None, heart), Token(0, 8, "♥!", FinishReason.STOP, TokenLogprobs(-2.0, (), "!"))]
    for stream in (False, True):
        asked = asyncio.create_task(
            sdk.chat.completions.create(
                model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2, stream=stream
            )
        )
        job = await worker.take()
        assert job.request.params.logprobs == 2
        for token in tokens:
            await job.write(token)
        await job.end()
        answer = await asked
        if stream:
            chunks = [chunk.choices[0] async for chunk in answer]
            found = [each for choice in chunks if choice.logprobs for each in choice.logprobs.content]
            assert [choice.delta.content for choice in chunks] == ["", "", "♥!", None]
        else:
            found = answer.choices[0].logprobs.content
        assert [(each.token, each.logprob, each.bytes) for each in found] == [
            ("♥", -0.5, [0xE2, 0x99, 0xA5]),
            ("!", -2.0, [0x21]),
        ]
        assert [(top.token, top.logprob, top.bytes) for top in found[0].top_logprobs] == [
            ("♥", -0.5, [0xE2, 0x99, 0xA5]),
            ("x", -1.5, [0x78]),
        ]
        assert found[1].top_logprobs == []


async def test_an_engine_failure_during_a_stream_raises_in_the_sdk(
    sdk: AsyncOpenAI, worker: ScriptedWorker
) -> None:
    opening = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    job = await worker.take()
    await job.say("begun")
    stream = await opening
    await job.end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("the engine failed")))
    seen = []
    with pytest.raises(openai.APIError, match="the engine failed"):
        async for chunk in stream:
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["", "begun"]


async def test_a_request_cancelled_by_another_client_is_not_retried(
    sdk: AsyncOpenAI, worker: ScriptedWorker, backend: Backend
) -> None:
    asked = asyncio.create_task(
        sdk.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=MESSAGES)
    )
    job = await worker.take()
    await backend.token_log.close(job.request.id)
    with pytest.raises(openai.ConflictError):
        await asked


async def test_the_sdk_raises_its_own_exception_classes(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.chat.completions.create(model="absent", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert wrong.value.param == "temperature"
    assert wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as unsupported:
        await sdk.chat.completions.create(model=MODEL, messages=MESSAGES, web_search_options={})
    assert unsupported.value.param == "web_search_options"


async def test_models_are_listed_and_retrieved(sdk: AsyncOpenAI) -> None:
    listed = [model async for model in sdk.models.list()]
    assert [model.id for model in listed] == [MODEL]
    assert (await sdk.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("absent")


async def test_an_answer_can_be_sent_back_as_the_sdk_dumps_it(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """The role developer counts as system."""
    asked = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES))
    await worker.answer("x")
    message = (await asked).choices[0].message
    again = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": " kind"}]},
        *MESSAGES,
        message.model_dump(),
        message,
    ]
    asked = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=again, stop="END", user="me"))
    request = await worker.answer("y")
    await asked
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "x"),
        ("assistant", "x"),
    ]
    assert request.params.stop == ("END",)
