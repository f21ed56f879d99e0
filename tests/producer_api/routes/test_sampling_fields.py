"""vLLM's sampling fields in every API, answered by a tiny model with a context of 64 tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from producer_api.rpc import inference_pb2 as pb
from shared.backend import Backend
from shared.protocol import PriorityClass
from shared.settings import Settings
from tests.support import grpc_client
from tests.support.api_server import serving
from tests.support.checkpoints import CONFIGS, save_checkpoint
from tests.support.engine_driver import load
from tests.support.fakes import MODEL
from tests.support.scripted_worker import ScriptedWorker
from tests.support.waiting import LIMIT_S
from tests.support.worker_harness import Harness
from workers.engine.engine import Engine

TINY, CONTEXT = "tiny", 64
G = 70  # the token that all answers prefer
ALWAYS_G = {"temperature": 0, "logit_bias": {str(G): 100}, "ignore_eos": True}
TURNS = [{"role": "user", "content": "hi"}]
INPUTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TURNS},
    "/v1/completions": {"prompt": "hi"},
    "/v1/jobs": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
}
CHATS_TEXTS_JOBS = tuple(INPUTS)[:3]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(save_checkpoint(tmp_path_factory.mktemp("tiny"), CONFIGS["llama"]), max_model_len=CONTEXT)


@pytest.fixture
async def served(settings: Settings, backend: Backend, engine: Engine) -> AsyncIterator[None]:
    async with Harness(backend, settings).worker(engine, "t", TINY):
        yield


@pytest.fixture
async def http(served: None, settings: Settings, backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings, backend) as url, httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as opened:
        yield opened


async def ask(http: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    """Return the answer to a request, of a job at its end."""
    response = await http.post(path, json={"model": TINY, **INPUTS[path], **fields})
    assert response.status_code in (200, 202), response.text
    if path != "/v1/jobs":
        return response.json()
    job = f"{path}/{response.json()['id']}"
    await http.get(f"{job}/events")
    return (await http.get(job)).json()


def data_of(streamed: httpx.Response) -> list[dict[str, Any]]:
    """Return the chunks of a stream."""
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", CHATS_TEXTS_JOBS)
async def test_stop_token_after_min_tokens_is_the_stop_reason(http: httpx.AsyncClient, path: str) -> None:
    found = await ask(http, path, **ALWAYS_G, stop_token_ids=[G], min_tokens=3, max_tokens=20)
    [choice] = found["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", G)
    assert found["usage"]["completion_tokens"] == 4
    if path != "/v1/jobs":
        body = {"model": TINY, **INPUTS[path], **ALWAYS_G, "stop_token_ids": [G], "max_tokens": 20, "stream": True}
        chunks = data_of(await http.post(path, json=body))
        reasons = [choice.get("stop_reason") for chunk in chunks for choice in chunk["choices"]]
        assert reasons == [None] * (len(reasons) - 1) + [G]


@pytest.mark.parametrize("path", CHATS_TEXTS_JOBS)
async def test_other_fields_are_honoured(http: httpx.AsyncClient, path: str) -> None:
    async def text(**fields: Any) -> str:
        [choice] = (await ask(http, path, **{**ALWAYS_G, "max_tokens": 3, **fields}))["choices"]
        return choice["message"]["content"] if "message" in choice else choice["text"]

    letter = (await text())[0]
    assert await text() == letter * 3
    assert letter not in await text(bad_words=[letter])
    assert letter not in await text(allowed_token_ids=[G + 1, G + 2])
    assert await text(stop=[letter], include_stop_str_in_output=True) == letter
    shown = await text(logit_bias={"257": 100}, skip_special_tokens=False)
    assert shown == "<eos>" * 3
    off = {"top_k": -1, "seed": -1, "stop": "", "min_p": 0, "presence_penalty": 0, "top_p": 0, "temperature": 50}
    assert await text(**off, bad_words=[], stop_token_ids=[], allowed_token_ids=None) == letter * 3


async def test_response_has_no_end_before_min_tokens(http: httpx.AsyncClient) -> None:
    found = await ask(http, "/v1/responses", temperature=0, ignore_eos=True, min_tokens=4, max_output_tokens=4)
    assert found["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("path", INPUTS)
async def test_max_tokens_beyond_the_context_is_lowered(http: httpx.AsyncClient, path: str) -> None:
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    found = await ask(http, path, ignore_eos=True, temperature=0, **{name: 100_000})
    assert found["usage"]["total_tokens"] == CONTEXT
    if path == "/v1/responses":
        assert (found["status"], found["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    else:
        assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("path", "param"), [*zip(INPUTS, ("messages", "prompt", "prompt", "input"), strict=True)])
async def test_prompt_that_does_not_fit_is_refused_with_numbers(
    http: httpx.AsyncClient, path: str, param: str
) -> None:
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    text = "é" * 40  # 80 tokens, so few that only the engine counts them
    [given] = INPUTS[path]
    body = {"model": TINY, given: [{"role": "user", "content": text}] if given == "messages" else text, name: 7}
    response = await http.post(path, json=body)
    if path == "/v1/jobs":
        job = f"{path}/{response.json()['id']}"
        await http.get(f"{job}/events")
        error = (await http.get(job)).json()["error"]
    else:
        assert response.status_code == 400
        error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert str(CONTEXT) in error["message"]


async def test_prompt_is_scored_without_an_answer(http: httpx.AsyncClient) -> None:
    asked = {"prompt": ["mill", "river"], "max_tokens": 0, "echo": True, "logprobs": 1, "n": 2}
    found = await ask(http, "/v1/completions", **asked)
    longer = await ask(http, "/v1/completions", **{**asked, "max_tokens": 1})
    assert [choice["text"] for choice in found["choices"]] == ["mill", "mill", "river", "river"]
    assert {choice["finish_reason"] for choice in found["choices"]} == {"length"}
    assert found["usage"] == {
        **{"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9},
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    for mine, other in zip(found["choices"], longer["choices"], strict=True):
        size = len(mine["text"])
        assert mine["logprobs"]["token_logprobs"] == other["logprobs"]["token_logprobs"][:size]
        assert mine["logprobs"]["token_logprobs"][0] is None
    streamed = await http.post("/v1/completions", json={"model": TINY, **asked, "stream": True})
    chunks = data_of(streamed)
    for index, text in enumerate(["mill", "mill", "river", "river"]):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [choice["finish_reason"] for choice in own] == [None, "length"]


async def test_other_answers_may_be_empty(http: httpx.AsyncClient) -> None:
    chat = await ask(http, "/v1/chat/completions", max_tokens=0, n=2)
    assert [(c["message"]["content"], c["finish_reason"]) for c in chat["choices"]] == [("", "length")] * 2
    begun = [*TURNS, {"role": "assistant", "content": "The"}]
    asked = {"model": TINY, "messages": begun, "max_tokens": 0, "stream": True}
    for fields, text in (({}, ""), ({"echo": True}, "The"), ({"return_token_ids": True}, "")):
        chunks = data_of(await http.post("/v1/chat/completions", json={**asked, **fields}))
        choices = [chunk["choices"][0] for chunk in chunks]
        assert [choice["delta"]["role"] for choice in choices if "role" in choice["delta"]] == ["assistant"]
        assert [choice["finish_reason"] for choice in choices] == [*[None] * (len(choices) - 1), "length"]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == text
        assert ("prompt_token_ids" in chunks[0]) == ("return_token_ids" in fields)
    job = await ask(http, "/v1/jobs", max_tokens=0)
    assert (job["state"], [c["finish_reason"] for c in job["choices"]]) == ("completed", ["length"])
    response = await ask(http, "/v1/responses", max_output_tokens=0)
    assert (response["status"], response["output"]) == ("incomplete", [])


async def test_grpc_has_the_same_fields(served: None, settings: Settings, backend: Backend) -> None:
    job = pb.JobRequest(
        **{"model": TINY, "prompt": "hi", "temperature": 0, "top_k": -1, "seed": -(2**63), "min_tokens": 2},
        **{"max_tokens": 100_000, "logit_bias": {G: 100}, "stop_token_ids": [G], "ignore_eos": True},
    )
    async with grpc_client.serving(settings, backend) as (_, client):
        events = [event async for event in client.Generate(pb.GenerateRequest(job=job))]
        tokens = [token for event in events for token in event.tokens.tokens]
        assert [token.stop_token_id for token in tokens] == [0, 0, G]
        found = await client.GetJob(pb.GetJobRequest(id=events[0].job.id))
    assert (found.choices[0].finish_reason, found.choices[0].stop_token_id) == ("stop", G)


@pytest.mark.parametrize(
    ("path", "priority", "expected"),
    [
        ("/v1/chat/completions", -3, PriorityClass.INTERACTIVE),
        ("/v1/chat/completions", 0, PriorityClass.INTERACTIVE),
        ("/v1/completions", 5, PriorityClass.BATCH),
        ("/v1/jobs", 0, PriorityClass.STANDARD),
        ("/v1/jobs", -1, PriorityClass.INTERACTIVE),
        ("/v1/responses", 1, PriorityClass.BATCH),
        ("/v1/responses", 0, PriorityClass.INTERACTIVE),
    ],
)
async def test_integer_priority_stands_for_a_class(
    api: str, worker: ScriptedWorker, path: str, priority: int, expected: PriorityClass
) -> None:
    body = {"model": MODEL, **INPUTS[path], "priority": priority}
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
        asked = asyncio.create_task(http.post(path, json=body))
        assert (await worker.answer("a")).priority is expected
        assert (await asked).is_success
