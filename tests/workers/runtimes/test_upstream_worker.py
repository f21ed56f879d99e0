"""Clients, the queue and a worker whose requests an upstream server executes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from producer_api.app import create_app
from shared.backend import Backend
from shared.errors import ConfigError
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Message
from shared.settings import Settings, load
from tests.support.api_server import calling
from tests.support.fake_upstream import DONE, MODEL, FakeUpstream, chat_chunk, event, serving, streaming
from tests.support.fakes import answer, ended, make_request, submit
from tests.support.worker_harness import Harness, wait_for_tokens, wait_until
from workers.runtimes.upstream.engine import UpstreamEngine

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "where to"}]}


@pytest.fixture
def server() -> Iterator[FakeUpstream]:
    with serving() as made:
        yield made


@pytest.fixture
def settings(settings: Settings, server: FakeUpstream) -> Settings:
    update = {"runtime": "upstream", "upstream_url": server.url, "upstream_model": MODEL}
    return settings.model_copy(update=update)


@asynccontextmanager
async def worker(harness: Harness, settings: Settings, name: str = "a") -> AsyncIterator[UpstreamEngine]:
    engine = await asyncio.to_thread(UpstreamEngine.connect, settings)
    try:
        async with harness.worker(engine, name, MODEL):
            yield engine
    finally:
        await asyncio.to_thread(engine.close)


@pytest.fixture
async def http(harness: Harness, settings: Settings, backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    async with worker(harness, settings):
        while not await backend.registry.workers():
            await asyncio.sleep(0.005)
        async with calling(create_app(settings, backend)) as client:
            yield client


async def test_a_chat_has_the_servers_text_and_counts(http: httpx.AsyncClient, server: FakeUpstream) -> None:
    found = (await http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5})).json()
    assert found["choices"][0]["message"]["content"] == server.text("where to", 5)
    assert found["choices"][0]["finish_reason"] == "length"
    assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (2, 5)


async def test_a_stream_ends_with_the_servers_counts(http: httpx.AsyncClient, server: FakeUpstream) -> None:
    body = {**CHAT, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    text = (await http.post("/v1/chat/completions", json=body)).text
    *chunks, usage = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    content = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(content) == server.text("where to", 5)
    assert usage["usage"]["completion_tokens"] == 5


async def test_calls_of_tools_have_ids_of_their_own(http: httpx.AsyncClient, server: FakeUpstream) -> None:
    first = {"index": 0, "id": "theirs", "type": "function", "function": {"name": "look", "arguments": ""}}
    rest = {"index": 0, "function": {"arguments": '{"at": 1}'}}
    chunks = [chat_chunk({"tool_calls": [first]}), chat_chunk({"tool_calls": [rest]}), chat_chunk({}, "tool_calls")]
    server.respond = streaming(*chunks, DONE)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    [choice] = (await http.post("/v1/chat/completions", json={**CHAT, "tools": tools})).json()["choices"]
    [call] = choice["message"]["tool_calls"]
    assert (call["function"], choice["finish_reason"]) == ({"name": "look", "arguments": '{"at": 1}'}, "tool_calls")
    assert call["id"].startswith("call_")


async def test_log_probabilities_and_ids_do_not_lie(http: httpx.AsyncClient, server: FakeUpstream) -> None:
    score = {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}]}
    chunk = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": [score]}}
    server.respond = streaming(event({"choices": [chunk]}), DONE)
    body = {**CHAT, "logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    [choice] = (await http.post("/v1/chat/completions", json=body)).json()["choices"]
    assert choice["logprobs"]["content"][0]["token"] == "a"  # and no id, which is unknown
    refused = await http.post("/v1/chat/completions", json={**CHAT, "return_token_ids": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "return_token_ids")


async def test_tokenizing_and_embedding_are_refused_by_name(http: httpx.AsyncClient) -> None:
    for path, body in (("/tokenize", {"prompt": "hi"}), ("/v1/embeddings", {"input": "hi"})):
        refused = await http.post(path, json={"model": MODEL, **body})
        assert refused.status_code == 400, refused.text


async def test_a_cancelled_answer_closes_the_connection(
    http: httpx.AsyncClient, backend: Backend, server: FakeUpstream
) -> None:
    server.gate.clear()
    request = request_of(max_tokens=100)
    await submit(backend, request)
    await wait_for_tokens(backend, request, 1)
    await backend.token_log.close(request.id)
    await asyncio.to_thread(server.await_gone, 0)
    assert (await ended(backend, request.id)).state.value == "cancelled"


def request_of(**fields: Any) -> Any:
    chat = (Message("user", "where to"),)
    return msgspec.structs.replace(make_request(**fields), model=MODEL, prompt=None, messages=chat)


async def test_a_worker_without_its_server_takes_nothing(
    harness: Harness, settings: Settings, backend: Backend, server: FakeUpstream
) -> None:
    """Given a server that is away, a request waits in the queue until it is back."""
    server.gate.clear()
    running = request_of(max_tokens=4)
    await submit(backend, running)
    async with worker(harness, settings) as engine:
        await wait_for_tokens(backend, running, 2)
        server.hang_up()
        await wait_until(lambda: bool(engine.stats().fault))
        waiting = request_of(max_tokens=3)
        await submit(backend, waiting)
        depth = await backend.transport.depth(MODEL)
        assert (depth.waiting, depth.held) == (1, 1)
        server.gate.set()
        server.listen()
        for request, words in ((running, 4), (waiting, 3)):
            events = await answer(backend, request.id)
            text = "".join(token.text for found in events for token in found.tokens)
            assert text == server.text("where to", words)


async def test_a_request_moves_to_another_worker_of_the_same_server(
    harness: Harness, settings: Settings, backend: Backend, server: FakeUpstream
) -> None:
    """Given an answer whose worker drains, the next worker of that server goes on after what is logged."""
    harness.settings = settings.model_copy(update={"grace": 0.0})
    server.gate.clear()
    request = request_of(max_tokens=6)
    await submit(backend, request)
    async with worker(harness, settings) as first:
        await wait_for_tokens(backend, request, 2)
    server.gate.set()
    async with worker(harness, settings, "b") as second:
        events = await answer(backend, request.id)
        assert first.fingerprint == second.fingerprint
    assert "".join(token.text for found in events for token in found.tokens) == server.text("where to", 6)
    await wait_until(lambda: len(server.exchanges) == 2)


async def test_readiness_names_the_fault_of_all_workers(settings: Settings, backend: Backend) -> None:
    faulty = WorkerInfo(id="a", pid=1, model=MODEL, state="ready", fault="the server is away")
    await backend.registry.beat(faulty)
    async with calling(create_app(settings, backend)) as client:
        found = await client.get("/ready")
    assert (found.status_code, found.json()["reason"]) == (503, "the server is away")
    await backend.registry.beat(msgspec.structs.replace(faulty, id="b", fault=""))
    async with calling(create_app(settings, backend)) as client:
        assert (await client.get("/ready")).status_code == 200


def test_the_fingerprint_names_server_and_model(server: FakeUpstream) -> None:
    def fingerprint(**given: str) -> str:
        fields = {"runtime": "upstream", "upstream_url": server.url, "upstream_model": MODEL, **given}
        engine = UpstreamEngine.connect(load(fields).settings)
        engine.close()
        return engine.fingerprint

    with serving() as other:
        server.models = [{"id": MODEL}, {"id": "second"}]
        assert fingerprint() == fingerprint(upstream_url=f"{server.url}/")
        assert len({fingerprint(), fingerprint(upstream_model="second"), fingerprint(upstream_url=other.url)}) == 3


def test_a_server_that_cannot_continue_answers_is_refused(server: FakeUpstream, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="upstream_resume cannot be continue"):
        UpstreamEngine.connect(settings.model_copy(update={"upstream_resume": "continue"}))
