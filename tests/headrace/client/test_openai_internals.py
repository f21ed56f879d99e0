"""`headrace.once`: retries of OpenAI's package join the request instead of running it again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai._models import FinalRequestOptions

import headrace
from tests.support.api_server import chat
from tests.support.cluster import Cluster, running
from tests.support.fakes import MODEL
from tests.support.waiting import LIMIT_S

KINDS = [openai.OpenAI, openai.AsyncOpenAI, openai.AzureOpenAI]


def headers_of(client: Any, **options: Any) -> Any:
    """Return the headers of a call for which the package made a key."""
    made = FinalRequestOptions(method="post", url="/x", idempotency_key="made", **options)
    return client._build_request(made).headers


def client_of(kind: type, url: str = "http://localhost/v1") -> Any:
    given = {"azure_endpoint": url, "api_version": "1"} if kind is openai.AzureOpenAI else {"base_url": url}
    return kind(api_key="none", max_retries=100, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_calls_and_copies_send_the_key_of_the_package(kind: type) -> None:
    client = client_of(kind)
    keyed = headrace.once(client)
    assert isinstance(keyed, kind)
    for each in (keyed, keyed.with_options(timeout=5), keyed.copy(max_retries=1), headrace.once(keyed)):
        assert headers_of(each)["idempotency-key"] == "made"
        assert headers_of(each, headers={"Idempotency-Key": "mine"})["idempotency-key"] == "mine"
    assert "idempotency-key" not in headers_of(client)


@pytest.mark.parametrize("other", [None, {}, "client", {"a": 1}])
def test_another_object_is_refused(other: object) -> None:
    with pytest.raises(TypeError, match="client of the openai package"):
        headrace.once(other)


async def until_queued(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while len(cluster.requests()) < count:
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_call_runs_once_though_its_server_is_killed(tmp_path: Path) -> None:
    """The retries of blocking, asynchronous and streaming calls join the requests of the first attempts."""
    asked = {"model": MODEL, "messages": chat()["messages"], "max_tokens": 3}
    async with running(tmp_path, apis=1, workers=0) as cluster:
        [api], url = cluster.apis, f"{cluster.urls[0]}/v1"
        with headrace.once(client_of(openai.OpenAI, url)) as blocking:
            async with headrace.once(client_of(openai.AsyncOpenAI, url)) as client:
                calls = [
                    asyncio.create_task(asyncio.to_thread(blocking.chat.completions.create, **asked)),
                    asyncio.create_task(client.chat.completions.create(**asked)),
                    asyncio.create_task(client.chat.completions.create(**asked, stream=True)),
                ]
                await until_queued(cluster, len(calls))
                api.kill()
                await api.start()
                await cluster.add("worker", dict(api.environment) | {"HEADRACE_PORT": "0"}).start()
                async with asyncio.timeout(LIMIT_S):
                    whole, also_whole, stream = await asyncio.gather(*calls)
                    chunks = [chunk async for chunk in stream]
        assert len(cluster.requests()) == len(calls)
        assert len({whole.id, also_whole.id, chunks[0].id}) == len(calls)
        assert [each.usage.completion_tokens for each in (whole, also_whole)] == [3, 3]
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert len(streamed.split()) == 3
