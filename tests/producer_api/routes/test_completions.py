"""Text completions through OpenAI's package, against a real server."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from shared.backend import Backend
from shared.errors import ContextLengthExceeded
from shared.protocol import ErrorInfo, FinishReason, RequestState, Token, TokenEvent, TokenLogprobs
from shared.settings import Settings
from tests.support.api_server import frames, serving
from tests.support.fakes import MODEL
from tests.support.scripted_worker import CACHED_TOKENS, Job, ScriptedWorker
from tests.support.waiting import LIMIT_S

QUEUES = ("redis", "kafka")
PATH = "/v1/completions"


def body(prompt: object = "hi", **fields: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": prompt, **fields}


MANY = body(["a", "b"], stream=True, logprobs=1)


async def take(worker: ScriptedWorker, count: int) -> list[Job]:
    """Return that many jobs, ordered by their prompts."""
    jobs = [await worker.take() for _ in range(count)]
    return sorted(jobs, key=lambda job: str(job.request.prompt))


async def test_one_prompt_has_openais_object_and_exact_usage(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(sdk.completions.create(model=MODEL, prompt="hi", n=2, best_of=2, seed=5, stop="E"))
    request = await worker.answer("a", "b", n=2)
    found = await asked
    assert (found.object, found.id) == ("text_completion", "cmpl-" + request.id.removeprefix("req_"))
    assert [(c.index, c.text, c.finish_reason, c.logprobs) for c in found.choices] == [
        (0, "ab", "stop", None),
        (1, "ab", "stop", None),
    ]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (5, 4, 9)
    assert (request.prompt, request.params.max_tokens, request.params.seed) == ("hi", 16, 5)
    assert request.params.stop == ("E",)


async def test_best_of_returns_the_most_likely_choices(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """Given three choices of each prompt, the two with the highest mean log-probability are returned."""
    asked = asyncio.create_task(sdk.completions.create(model=MODEL, prompt=["a", "b"], n=2, best_of=3))
    jobs = await take(worker, 2)
    scores = [[(-3.0,), (-1.0, -1.5), (-2.0, -0.1, -0.1)], [(-0.5,), (-0.2,), (-0.5,)]]
    for job, by_choice in zip(jobs, scores, strict=True):
        assert (job.request.params.n, job.request.params.logprobs) == (3, 0)
        for choice, values in enumerate(by_choice):
            for number, value in enumerate(values, 1):
                reason = FinishReason.STOP if number == len(values) else None
                await job.write(Token(choice, 7, str(choice), reason, TokenLogprobs(value, (), "x")))
        await job.end()
    found = await asked
    assert [(c.index, c.text, c.logprobs) for c in found.choices] == [
        (0, "222", None),
        (1, "11", None),
        (2, "1", None),
        (3, "0", None),
    ]
    assert found.usage.completion_tokens == 9


@pytest.mark.parametrize("prompts", [["a", "b"], [[1, 2], [3]]])
async def test_many_prompts_have_openais_indices_and_usage(
    sdk: AsyncOpenAI, worker: ScriptedWorker, prompts: list
) -> None:
    asked = asyncio.create_task(sdk.completions.create(model=MODEL, prompt=prompts, n=2))
    first, second = await take(worker, 2)
    assert first.request.params.seed != second.request.params.seed, "the request has no seed"
    for job, text in ((second, "y"), (first, "x")):
        for choice in range(2):
            await job.write(Token(choice, 7, f"{text}{choice}", FinishReason.STOP))
        await job.end()
    found = await asked
    assert [(choice.index, choice.text) for choice in found.choices] == [(0, "x0"), (1, "x1"), (2, "y0"), (3, "y1")]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (10, 4)
    assert found.usage.prompt_tokens_details.cached_tokens == 2 * CACHED_TOKENS


async def test_streams_of_several_prompts_interleave(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    opening = asyncio.create_task(
        sdk.completions.create(
            model=MODEL, prompt=["a", "b"], seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    first, second = await take(worker, 2)
    assert first.request.params.seed == second.request.params.seed == 3
    await second.say("two")
    stream = await opening
    assert [(c.index, c.text) for c in (await anext(stream)).choices] == [(1, "two")]
    await first.write(Token(0, 7, "one", FinishReason.STOP))
    assert [(c.index, c.text, c.finish_reason) for c in (await anext(stream)).choices] == [(0, "one", "stop")]
    await first.end()
    await second.write(Token(0, 8, "", FinishReason.LENGTH))
    await second.end()
    last, usage = [chunk async for chunk in stream]
    assert [(c.index, c.text, c.finish_reason) for c in last.choices] == [(1, "", "length")]
    assert (usage.choices, usage.usage.prompt_tokens, usage.usage.completion_tokens) == ([], 10, 3)


async def test_a_keyed_stream_of_two_prompts_resumes_at_any_frame(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    headers = {"idempotency-key": "k"}
    asked = asyncio.create_task(http.post(PATH, json=MANY, headers=headers))
    first, second = await take(worker, 2)
    for job in (first, second, first, second):
        await job.write(Token(0, job.seq, "xy", None, TokenLogprobs(-0.5, ((9, -0.5, "xy"),), "xy")))
    for job in (second, first):
        await job.write(Token(0, 9, "z", FinishReason.STOP, TokenLogprobs(-0.1, (), "z")))
        await job.end()
    told = events(await asked)
    offsets = [chunk["logprobs"]["text_offset"] for _, chunk in told if chunk["index"] == 1]
    assert offsets == [[0], [2], [4]]
    for at, (place, _) in enumerate(told):
        again = await http.post(PATH, json=MANY, headers={**headers, "last-event-id": place})
        rest = [chunk for _, chunk in events(again)]
        for index in range(2):
            wanted = [chunk for _, chunk in told[at + 1 :] if chunk["index"] == index]
            assert [chunk for chunk in rest if chunk["index"] == index] == wanted
    done = await http.post(PATH, json=MANY, headers={**headers, "last-event-id": "3.3"})
    assert done.status_code == 204
    for wrong in ("3", "1.2.3", "x.y", "3.-2"):
        refused = await http.post(PATH, json=MANY, headers={**headers, "last-event-id": wrong})
        assert refused.status_code == 400


def events(response: httpx.Response) -> list[tuple[str, dict]]:
    """Each chunk's choice with the id of its frame; the stream is whole."""
    assert response.status_code == 200
    found = [
        dict(line.split(": ", 1) for line in frame.splitlines()) for frame in response.text.split("\n\n") if frame
    ]
    assert found[-1]["data"] == "[DONE]"
    return [(frame["id"], json.loads(frame["data"])["choices"][0]) for frame in found[:-1]]


async def test_echo_starts_each_choice_with_its_prompt(sdk: AsyncOpenAI, worker: ScriptedWorker) -> None:
    """With logprobs, those of the prompt too."""
    asked = asyncio.create_task(sdk.completions.create(model=MODEL, prompt="hi", echo=True))
    request = await worker.answer("!")
    assert not request.params.echo, "it is known here"
    assert (await asked).choices[0].text == "hi!"
    prompt = (Token(0, 1, "h"), Token(0, 2, "i", None, TokenLogprobs(-1.0, ((3, -0.2, "o"),), "i")))
    first = Token(0, 4, "!", FinishReason.STOP, TokenLogprobs(-0.1, (), "!"))
    for stream in (False, True):
        asked = asyncio.create_task(
            sdk.completions.create(model=MODEL, prompt=[1, 2], echo=True, logprobs=1, stream=stream)
        )
        job = await worker.take()
        assert (job.request.params.echo, job.request.params.logprobs) == (True, 1)
        await job._append(TokenEvent(0, (first,), None, prompt))
        await job.end()
        answer = await asked
        found = [chunk.choices[0] async for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in found) == "hi!"
        assert found[-1].finish_reason == "stop"
        told = [choice.logprobs for choice in found]
        assert [token for each in told for token in each.tokens] == ["h", "i", "!"]
        assert [value for each in told for value in each.token_logprobs] == [None, -1.0, -0.1]
        assert [top for each in told for top in each.top_logprobs] == [None, {"i": -1.0, "o": -0.2}, {"!": -0.1}]
        assert [at for each in told for at in each.text_offset] == [0, 1, 2]


async def test_one_refused_prompt_cancels_the_others(
    sdk: AsyncOpenAI, worker: ScriptedWorker, backend: Backend
) -> None:
    for stream in (False, True):
        asked = asyncio.create_task(sdk.completions.create(model=MODEL, prompt=["a", "b"], stream=stream))
        first, second = await take(worker, 2)
        refusal = ContextLengthExceeded("too long", param="prompt")
        await second.end(RequestState.FAILED, ErrorInfo.from_error(refusal))
        with pytest.raises(openai.BadRequestError) as caught:
            await asked
        assert caught.value.code == "context_length_exceeded"
        ended = [
            event async for event in backend.token_log.follow(first.request.id, idle=LIMIT_S) if event is not None
        ]
        assert ended[-1].terminal.state is RequestState.CANCELLED


async def test_either_all_prompts_are_queued_or_none(
    settings: Settings, backend: Backend, worker: ScriptedWorker
) -> None:
    tight = settings.model_copy(update={"queue_depth": 1})
    full = Backend.open(tight)
    async with serving(tight, full) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as http:
        for headers in ({}, {"idempotency-key": "k"}):
            refused = await http.post(PATH, json=body(["a", "b"]), headers=headers)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "queue_full"
            async with asyncio.timeout(LIMIT_S):
                while (await backend.transport.depth(MODEL)).waiting:
                    await asyncio.sleep(0)
        asked = asyncio.create_task(http.post(PATH, json=body("a"), headers={"idempotency-key": "k"}))
        await worker.answer("x")
        assert (await asked).status_code == 200, "the key was left free for another body"
    await full.close()


async def test_a_retry_with_the_key_queues_the_missing_prompts(
    http: httpx.AsyncClient, worker: ScriptedWorker, backend: Backend
) -> None:
    headers = {"idempotency-key": "k"}
    asked = asyncio.create_task(http.post(PATH, json=body(["a", "b"]), headers=headers))
    first, second = await take(worker, 2)
    for job in (first, second):
        await backend.transport.acknowledge([job.delivery.claim])
    asked.cancel()
    await backend.token_log.forget(second.request.id)  # as if its API process had died before it
    again = asyncio.create_task(http.post(PATH, json=body(["a", "b"]), headers=headers))
    other = await worker.take()
    assert (other.request.id, other.request.params) == (second.request.id, second.request.params)
    for job, text in ((first, "x"), (other, "y")):
        await job.write(Token(0, 1, text, FinishReason.STOP))
        await job.end()
    assert [choice["text"] for choice in (await again).json()["choices"]] == ["x", "y"]


async def test_disconnecting_cancels_all_prompts(api: str, worker: ScriptedWorker, backend: Backend) -> None:

    async def read_one(http: httpx.AsyncClient) -> None:
        async with http.stream("POST", PATH, json=body(["a", "b"], stream=True)) as response:
            await anext(frames(response))

    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        reading = asyncio.create_task(read_one(http))
        jobs = await take(worker, 2)
        await jobs[0].say("x")
        await reading
        for job in jobs:
            told = [
                event async for event in backend.token_log.follow(job.request.id, idle=LIMIT_S) if event is not None
            ]
            assert told[-1].terminal.state is RequestState.CANCELLED


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 9}, "best_of"),
        ({"best_of": 2, "n": 0}, "n"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
async def test_wrong_fields_are_named(client: httpx.AsyncClient, fields: dict, param: str) -> None:
    refused = await client.post(PATH, json=body(**fields))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
