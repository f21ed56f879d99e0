"""Real servers behind the queue: forms of answers, cancellation, and kills of the worker and of the server.

TEST_UPSTREAM names the servers, separated by spaces.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.support.cluster import Cluster, running
from tests.support.proxy import FaultProxy
from tests.support.real_upstream import HOST, MODEL, SERVERS, RealUpstream
from tests.support.stream_client import Answer, Client, until

pytestmark = pytest.mark.timeout(3600)
STREAMS = 8
TOKENS = 48
KILLS = int(os.environ.get("TEST_UPSTREAM_KILLS", "3"))
MESSAGES = [{"role": "user", "content": "Tell me about rivers and mills."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
LOOK = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather of a city.",
        "parameters": PARAMETERS,
    },
}
RESUMES = ["continue", "restart"]
SCHEMA = {"type": "string", "enum": ["river", "mill"]}  # without places for whitespace, which may never end


class ChatClient(Client):
    """Client whose jobs are chats."""

    def body(self, prompt: str, tokens: int, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "max_tokens": tokens, **fields}


@pytest.fixture(scope="module", params=os.environ.get("TEST_UPSTREAM", "llamacpp").split())
def servers(
    request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RealUpstream]]:
    """Return a server, and another one that takes its place: vLLM needs minutes to start on busy cores."""
    folder = tmp_path_factory.mktemp("servers")
    made = [SERVERS[request.param](smollm2, folder / f"{name}.log") for name in ("first", "second")]
    try:
        for each in made:
            each.spawn()
        yield made
    finally:
        for each in made:
            each.kill()


@pytest.fixture
def server(servers: list[RealUpstream]) -> RealUpstream:
    servers[0].await_healthy()
    return servers[0]


@asynccontextmanager
async def behind_the_queue(folder: Path, port: int, resume: str = "continue") -> AsyncIterator[Cluster]:
    settings = {
        "runtime": "upstream",
        "upstream_url": f"http://{HOST}:{port}/v1",
        "upstream_model": MODEL,
        "upstream_resume": resume,
        "max_attempts": 100,
    }
    async with running(folder, apis=1, workers=1, **settings) as cluster:
        yield cluster


async def ask(cluster: Cluster, route: str, body: dict[str, Any]) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=cluster.urls[0], timeout=300) as http:
        response = await http.post(f"/v1{route}", json={"model": MODEL, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_forms_of_answers(server: RealUpstream, tmp_path: Path) -> None:
    async with behind_the_queue(tmp_path, server.port) as cluster:
        greedy = {"temperature": 0, "max_tokens": 24, "seed": 1}
        await _same_answers(cluster, server, "/chat/completions", {**greedy, "messages": MESSAGES})
        await _same_answers(cluster, server, "/completions", {**greedy, "prompt": "The mill", "stop": ["."]})
        await _calls(cluster, server)
        await _schema(cluster)
        await _log_probabilities(cluster)
        await _streams(cluster)


async def _same_answers(cluster: Cluster, server: RealUpstream, route: str, body: dict[str, Any]) -> None:
    """Expect the text, the finish reason and the counts of the server itself."""
    ours, theirs = await ask(cluster, route, body), await asyncio.to_thread(server.post, route, body)
    for found in (ours, theirs):
        choice = found["choices"][0]
        found["answer"] = (choice.get("text") or choice["message"]["content"], choice["finish_reason"])
    assert ours["answer"] == theirs["answer"]
    counts = ("prompt_tokens", "completion_tokens")
    assert [ours["usage"][name] for name in counts] == [theirs["usage"][name] for name in counts]


async def _calls(cluster: Cluster, server: RealUpstream) -> None:
    """Expect the calls of the server itself, after earlier calls, which even a small model imitates."""
    body = {"tools": [LOOK], "tool_choice": "required", "max_tokens": 64, "temperature": 0}
    messages = [message for city in ("London", "Rome", "Oslo") for message in (_asked(city), _called(city))]
    messages.append(_asked("Paris"))
    ours = await ask(cluster, "/chat/completions", {**body, "messages": messages})
    theirs = await asyncio.to_thread(server.post, "/chat/completions", {**body, "messages": messages})
    found = [
        [_parsed(call["function"]) for call in answer["choices"][0]["message"].get("tool_calls") or ()]
        for answer in (ours, theirs)
    ]
    assert found[0] == found[1]
    assert ours["choices"][0]["finish_reason"] == "tool_calls"
    for name, arguments in found[0]:
        assert name == "get_weather"
        jsonschema.validate(arguments, PARAMETERS)


def _parsed(function: dict[str, str]) -> tuple[str, Any]:
    return function["name"], json.loads(function["arguments"])


def _asked(city: str) -> dict[str, Any]:
    return {"role": "user", "content": f"What is the weather in {city}?"}


def _called(city: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": city, "type": "function", "function": function}],
    }


async def _schema(cluster: Cluster) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "river", "schema": SCHEMA, "strict": True}}
    body = {"messages": MESSAGES, "response_format": form, "max_tokens": 200, "temperature": 0}
    [choice] = (await ask(cluster, "/chat/completions", body))["choices"]
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


async def _log_probabilities(cluster: Cluster) -> None:
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "max_tokens": 4, "temperature": 0}
    [choice] = (await ask(cluster, "/chat/completions", body))["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == 4
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in content)


async def _streams(cluster: Cluster) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 16, "temperature": 0, "stream": True}
    async with (
        httpx.AsyncClient(base_url=cluster.urls[0], timeout=300) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
    chunks = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    assert any(chunk["delta"].get("content") for chunk in chunks)
    assert chunks[-1]["finish_reason"] == "length"


async def test_a_cancelled_answer_ends_at_the_server(server: RealUpstream, tmp_path: Path) -> None:
    async with behind_the_queue(tmp_path, server.port) as cluster:
        client = ChatClient(cluster.urls, MODEL)
        answer = await client.submit("Count as far as you can.", 400, ignore_eos=True)
        following = asyncio.create_task(client.follow(answer))
        await until(lambda: answer.seq >= 4, "the answer runs")
        async with httpx.AsyncClient(base_url=cluster.urls[0]) as http:
            assert (await http.delete(f"/v1/jobs/{answer.job}")).status_code == 200
        await following
        assert answer.end == "cancelled"
        await asyncio.to_thread(server.await_idle)


PROMPTS = [f"Write {number} sentences about rivers and mills." for number in range(2, 2 + STREAMS)]


async def _together(client: Client) -> list[Answer]:
    fields = {"temperature": 0.0, "ignore_eos": True}
    return [await client.submit(prompt, TOKENS, **fields) for prompt in PROMPTS]


def _report(name: str, answers: list[Answer], undisturbed: list[Answer]) -> None:
    """Check that each answer is whole, and print how many have the text of an undisturbed run."""
    assert [answer.end for answer in answers] == ["done"] * STREAMS, [answer.data for answer in answers]
    same = sum(a.texts == b.texts for a, b in zip(answers, undisturbed, strict=True))
    counts = [answer.data["usage"]["completion_tokens"] for answer in answers]
    print(f"{name}: {same} of {STREAMS} texts as undisturbed, completion tokens {sorted(set(counts))}")  # noqa: T201  the figures of this run


async def _begun(client: Client) -> tuple[list[Answer], asyncio.Future[list[Answer]]]:
    """Return answers that all run, and what ends with them. It raises for a gap or a repeat in their tokens."""
    answers = await _together(client)
    following = asyncio.gather(*map(client.follow, answers))
    await until(lambda: min(answer.seq for answer in answers) >= 4, "all answers run")
    assert all(answer.end is None for answer in answers)
    return answers, following


@pytest.mark.parametrize("resume", RESUMES)
async def test_answers_outlive_their_worker(server: RealUpstream, tmp_path: Path, resume: str) -> None:
    """Given 8 running chats, if the worker is killed, each reader gets a whole answer."""
    async with behind_the_queue(tmp_path, server.port, resume) as cluster:
        client, [worker] = ChatClient(cluster.urls, MODEL), cluster.workers
        undisturbed = await asyncio.gather(*map(client.follow, await _together(client)))
        for kill in range(KILLS):
            answers, following = await _begun(client)
            worker.kill()
            await worker.start()
            await following
            _report(f"{resume}, worker killed ({kill + 1})", answers, undisturbed)


@pytest.mark.parametrize("resume", RESUMES)
async def test_answers_outlive_their_server(
    server: RealUpstream, servers: list[RealUpstream], tmp_path: Path, resume: str
) -> None:
    """Given 8 running chats, if the server is killed and later another one has its address, each reader gets a
    whole answer.
    """
    async with (
        FaultProxy(HOST, server.port).listening() as link,
        behind_the_queue(tmp_path, link.port, resume) as cluster,
    ):
        client, [worker] = ChatClient(cluster.urls, MODEL), cluster.workers
        undisturbed = await asyncio.gather(*map(client.follow, await _together(client)))
        for kill in range(KILLS):
            await asyncio.to_thread(servers[1].await_healthy)
            answers, following = await _begun(client)
            servers[0].kill()
            await worker.logged("upstream_down", kill + 1)
            servers.reverse()
            link.target = (HOST, servers[0].port)
            servers[1].spawn()  # it starts while the other one continues the answers
            await following
            _report(f"{resume}, server killed ({kill + 1})", answers, undisturbed)
