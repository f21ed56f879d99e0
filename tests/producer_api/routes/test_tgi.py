"""TGI's API through huggingface_hub's client, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import GenerationError, ValidationError

from producer_api.app import create_app
from shared.accounts.api_keys import ApiKeys
from shared.accounts.database import Database
from shared.accounts.pepper import pepper_of
from shared.accounts.scopes import Scopes
from shared.backend import Backend
from shared.errors import ContextLengthExceeded, EngineFailed
from shared.protocol import ErrorInfo, FinishReason, Request, RequestState, Token, TokenLogprobs
from shared.settings import Settings
from tests.support.api_server import calling, frames
from tests.support.fakes import MODEL
from tests.support.scripted_worker import PROMPT_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S

EOS = Token(0, 2, "", FinishReason.STOP, TokenLogprobs(-0.5, ((2, -0.5, "</s>"), (7, -1.0, "a")), "</s>", {2: b""}))
GREEDY = {"do_sample": False}


@pytest.fixture
async def hub(api: str) -> AsyncIterator[AsyncInferenceClient]:
    async with AsyncInferenceClient(base_url=api, timeout=LIMIT_S) as opened:
        yield opened


def scored(index: int, text: str, finish: FinishReason | None = None, stop: str | None = None) -> Token:
    logprobs = TokenLogprobs(-1.0 - index, ((index, -1.0, text), (9, -2.0, "b")), text)
    return Token(0, index, text, finish, logprobs, stop_reason=stop)


async def end_with(worker: ScriptedWorker, *tokens: Token, prompt: tuple[Token, ...] = ()) -> Request:
    """Take a request, answer it with these tokens, one event each, and return it."""
    job = await worker.take()
    for number, token in enumerate(tokens):
        await job.write(token, prompt=prompt if number == 0 else ())
    await job.end()
    return job.request


async def test_the_text_alone_is_returned_by_default(hub: AsyncInferenceClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(hub.text_generation("hi", max_new_tokens=5, return_full_text=False))
    request = await end_with(worker, Token(0, 1, "a"), Token(0, 2, " b", FinishReason.LENGTH))
    assert await asked == "a b"
    assert (request.model, request.prompt, request.params.max_tokens) == (MODEL, "hi", 5)
    assert (request.params.logprobs, request.params.temperature) == (None, 0.0)


async def test_the_route_of_hugging_face_returns_the_full_text(
    hub: AsyncInferenceClient, worker: ScriptedWorker
) -> None:
    asked = asyncio.create_task(hub.text_generation("hi"))
    await end_with(worker, Token(0, 1, " a", FinishReason.STOP))
    assert await asked == "hi a"


async def test_details_have_each_token_and_the_prompt(hub: AsyncInferenceClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(
        hub.text_generation(
            "hi",
            details=True,
            decoder_input_details=True,
            top_n_tokens=2,
            seed=2**64 - 5,
            temperature=0.5,
            return_full_text=False,
        )
    )
    prompt = (Token(0, 4, "h"), Token(0, 5, "i", None, TokenLogprobs(-3.0, (), "i")))
    request = await end_with(worker, scored(1, "a"), EOS, prompt=prompt)
    found = await asked
    assert (request.params.seed, request.params.echo, request.params.logprobs) == (-5, True, 2)
    details = found.details
    assert (found.generated_text, details.finish_reason, details.generated_tokens) == ("a", "eos_token", 2)
    assert details.seed == 2**64 - 5
    assert [(t.id, t.text, t.logprob) for t in details.prefill] == [(4, "h", None), (5, "i", -3.0)]
    assert [(t.id, t.text, t.logprob, t.special) for t in details.tokens] == [
        (1, "a", -2.0, False),
        (2, "</s>", -0.5, True),
    ]
    assert [[(t["id"], t["text"], t["special"]) for t in top] for top in details.top_tokens] == [
        [(1, "a", False), (9, "b", False)],
        [(2, "</s>", True), (7, "a", False)],
    ]
    assert details.best_of_sequences is None


async def test_the_likelier_of_two_answers_comes_first(hub: AsyncInferenceClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(
        hub.text_generation("hi", details=True, best_of=2, do_sample=True, return_full_text=False)
    )
    job = await worker.take()
    assert (job.request.params.n, job.request.params.logprobs) == (2, 0)
    for choice, (text, logprob) in enumerate((("worse", -3.0), ("better", -0.1))):
        await job.write(Token(choice, 7, text, FinishReason.LENGTH, TokenLogprobs(logprob, (), text)))
    await job.end()
    found = await asked
    assert (found.generated_text, found.details.tokens[0].text) == ("better", "better")
    [other] = found.details.best_of_sequences
    assert (other.generated_text, other.finish_reason, other.generated_tokens) == ("worse", "length", 1)


async def test_a_stop_sequence_is_part_of_the_text(hub: AsyncInferenceClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(hub.text_generation("hi", details=True, stop=["END"], return_full_text=False))
    request = await end_with(worker, scored(1, "a"), scored(2, "END", FinishReason.STOP, "END"))
    assert (request.params.stop, request.params.include_stop_str_in_output) == (("END",), True)
    found = await asked
    assert (found.generated_text, found.details.finish_reason) == ("aEND", "stop_sequence")


async def test_a_stream_has_a_frame_for_each_token(hub: AsyncInferenceClient, worker: ScriptedWorker) -> None:
    opening = asyncio.create_task(
        hub.text_generation("hi", stream=True, details=True, top_n_tokens=2, return_full_text=False)
    )
    job = await worker.take()
    await job.write(scored(1, "a"), scored(2, "b"))
    stream = await opening
    await job.write(EOS)
    await job.end()
    chunks = [chunk async for chunk in stream]
    assert [(c.index, c.token.text, c.token.special) for c in chunks] == [
        (1, "a", False),
        (2, "b", False),
        (3, "</s>", True),
    ]
    assert [len(c.top_tokens) for c in chunks] == [2, 2, 2]
    assert [c.generated_text for c in chunks] == [None, None, "ab"]
    assert [c.details for c in chunks[:2]] == [None, None]
    details = chunks[2].details
    assert (details.finish_reason, details.generated_tokens, details.input_length) == (
        "eos_token",
        3,
        PROMPT_TOKENS,
    )
    assert details.seed is None, "nothing was drawn"


async def test_a_stream_without_details_is_text(hub: AsyncInferenceClient, worker: ScriptedWorker) -> None:
    opening = asyncio.create_task(hub.text_generation("hi", stream=True))
    await end_with(worker, scored(1, "a"), scored(2, "b", FinishReason.LENGTH))
    assert [text async for text in await opening] == ["a", "b"]


async def test_a_failure_within_a_stream_raises_in_the_client(
    hub: AsyncInferenceClient, worker: ScriptedWorker
) -> None:
    opening = asyncio.create_task(hub.text_generation("hi", stream=True))
    job = await worker.take()
    await job.write(scored(1, "a"))
    stream = await opening
    await job.end(RequestState.FAILED, ErrorInfo.from_error(EngineFailed("the step failed")))
    assert await anext(stream) == "a"
    with pytest.raises(GenerationError, match=r"^Request failed during generation: the step failed$"):
        await anext(stream)


async def test_errors_before_the_first_token_have_their_status(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    for error, status, kind in (
        (EngineFailed("the step failed"), 424, "generation"),
        (ContextLengthExceeded("`inputs` must have less than 5 tokens. Given: 6"), 422, "validation"),
    ):
        for path in ("/generate", "/generate_stream"):
            asked = asyncio.create_task(http.post(path, json={"inputs": "hi"}))
            job = await worker.take()
            await job.end(RequestState.FAILED, ErrorInfo.from_error(error))
            refused = await asked
            assert (refused.status_code, refused.json()["error_type"]) == (status, kind)
    assert refused.json()["error"] == "Input validation error: `inputs` must have less than 5 tokens. Given: 6"


async def test_validation_errors_raise_in_the_client(hub: AsyncInferenceClient, http: httpx.AsyncClient) -> None:
    with pytest.raises(ValidationError, match=r"^Input validation error: `temperature` must be strictly positive$"):
        await hub.text_generation("hi", temperature=0)
    wrong = (
        ({"inputs": ""}, "`inputs` cannot be empty"),
        ({"inputs": 5}, "inputs must be a string"),
        ({"inputs": "x", "parameters": {"details": "yes"}}, "parameters.details must be true or false"),
        (
            {"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "("}}},
            "grammar is not valid: the regular expression is not supported: a group is not closed",
        ),
    )
    for path in ("/", "/generate", "/generate_stream", "/invocations", "/tokenize"):
        for body, text in wrong[:3] if path == "/tokenize" else wrong:
            refused = await http.post(path, json=body)
            assert refused.status_code == 422, path
            assert refused.json() == {"error": f"Input validation error: {text}", "error_type": "validation"}
    assert (await http.post("/generate", content=b"{")).status_code == 415
    malformed = await http.post("/", content=b"{", headers={"content-type": "application/json"})
    assert (malformed.status_code, malformed.json()["error_type"]) == (422, "validation")
    unknown = await http.post("/generate", json={"inputs": "x", "model": "other"})
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "model_not_found")


async def test_a_full_queue_is_overload(settings: Settings, worker: ScriptedWorker) -> None:
    tight = settings.model_copy(update={"queue_depth": 1})
    backend = Backend.open(tight)
    app = create_app(tight, backend)
    async with calling(app) as client:
        waiting = await client.post("/v1/jobs", json={"model": MODEL, "prompt": "x"})
        refused = await client.post("/generate", json={"inputs": "hi"})
    await app.state.context.close()
    await backend.close()
    assert waiting.status_code == 202
    assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) > 0


async def test_headers_say_what_the_answer_took(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    asked = asyncio.create_task(http.post("/generate", json={"inputs": "hé", "parameters": {}}))
    await end_with(worker, Token(0, 1, "a"), Token(0, 2, "b", FinishReason.LENGTH))
    headers = (await asked).headers
    assert (headers["x-compute-type"], headers["x-compute-characters"]) == ("cpu", "2")
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == (str(PROMPT_TOKENS), "2")
    assert float(headers["x-compute-time"]) > 0
    for name in ("total", "validation", "queue", "inference"):
        assert int(headers[f"x-{name}-time"]) >= 0
    assert int(headers["x-time-per-token"]) <= int(headers["x-inference-time"])
    asked = asyncio.create_task(http.post("/generate_stream", json={"inputs": "hi"}))
    await end_with(worker, Token(0, 1, "a", FinishReason.LENGTH))
    headers = (await asked).headers
    assert (headers["x-compute-type"], headers["x-accel-buffering"]) == ("cpu", "no")


async def test_a_keyed_stream_resumes_at_any_frame(http: httpx.AsyncClient, worker: ScriptedWorker) -> None:
    headers = {"idempotency-key": "k"}
    body = {"inputs": "hi", "parameters": {"details": True, "return_full_text": True}}
    asked = asyncio.create_task(http.post("/generate_stream", json=body, headers=headers))
    await end_with(worker, scored(1, "a"), scored(2, "b"), EOS)
    whole = [frame async for frame in frames(await asked)]
    assert len(whole) == 3
    assert json.loads(whole[-1]["data"])["generated_text"] == "hiab"
    for number, frame in enumerate(whole[:-1]):
        again = await http.post("/generate_stream", json=body, headers={**headers, "last-event-id": frame["id"]})
        assert again.headers["idempotent-replayed"] == "true"
        assert [each async for each in frames(again)] == whole[number + 1 :]
    other = await http.post("/generate_stream", json={**body, "inputs": "ho"}, headers=headers)
    assert (other.status_code, other.json()["error_type"]) == (422, "idempotency_key_reused")


async def test_sagemaker_sends_prompts_and_chats_to_one_route(
    http: httpx.AsyncClient, worker: ScriptedWorker
) -> None:
    messages = [{"role": "user", "content": "x"}]
    for body, shown in (
        ({"inputs": "x", "parameters": GREEDY}, lambda found: found[0]["generated_text"]),
        ({"messages": messages}, lambda found: found["choices"][0]["message"]["content"]),
        ({"prompt": "x", "model": "tgi"}, lambda found: found["choices"][0]["text"]),
    ):
        asked = asyncio.create_task(http.post("/invocations", json=body))
        request = await worker.answer(" a")
        found = await asked
        assert (found.status_code, request.model) == (200, MODEL)
        assert shown(found.json()).endswith(" a")


async def test_a_placeholder_names_the_served_model(hub: AsyncInferenceClient, worker: ScriptedWorker) -> None:
    """huggingface_hub names the model `dummy` if it is given a URL alone."""
    asked = asyncio.create_task(hub.chat_completion([{"role": "user", "content": "x"}]))
    request = await worker.answer("a")
    assert (await asked).choices[0].message.content == "a"
    assert request.model == MODEL


async def test_info_describes_the_model_and_the_bounds(backend: Backend, settings: Settings, worker: Any) -> None:
    given = {"max_input_length": 100, "max_total_tokens": 200, "max_best_of": 3, "max_client_batch_size": 8}
    for changed, lengths in (({}, (1023, 1024)), (given, (100, 200))):
        app = create_app(settings.model_copy(update=changed), backend)
        async with calling(app) as client:
            found = (await client.get("/info")).json()
        await app.state.context.close()
        assert (found["max_input_tokens"], found["max_total_tokens"]) == lengths
    assert found | given == found | {"max_input_length": 100} | given
    assert (found["model_id"], found["model_pipeline_tag"]) == (MODEL, "text-generation")
    assert (found["max_best_of"], found["max_stop_sequences"], found["router"]) == (3, 4, "headrace")


async def test_a_key_needs_the_scope_of_the_task(backend: Backend, settings: Settings, worker: Any) -> None:
    settings = settings.model_copy(update={"auth": True})
    async with Database.from_settings(settings) as database:
        keys = ApiKeys(database, pepper_of(settings))
        allowed = [
            (await keys.create(tenant="t", scopes=Scopes.parse(routes=[name])))[1]
            for name in ("completions", "files")
        ]
    app = create_app(settings, backend)
    try:
        async with calling(app) as client:
            assert (await client.post("/generate", json={"inputs": "x"})).status_code == 401
        async with calling(app, allowed[1]) as client:
            refused = await client.post("/", json={"inputs": "x"})
            assert (refused.status_code, refused.json()["error_type"]) == (403, "permission_denied")
        async with calling(app, allowed[0]) as client:
            assert (await client.post("/generate", json={"inputs": ""})).status_code == 422
            chat = await client.post("/invocations", json={"messages": [{"role": "user", "content": "x"}]})
            assert chat.status_code == 403
    finally:
        await app.state.context.close()
