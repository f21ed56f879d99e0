"""vLLM as the runtime, through the full stack; `scripts/test-vllm` runs this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, running
from tests.support.node import Node
from tests.support.raw_http import exchange
from tests.support.stream_client import Answer, Client, until
from tests.support.tested_runtime import START_LIMIT_S, runtime_settings
from tests.support.waiting import LIMIT_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.asyncio(loop_scope="module")]

KILLS, STREAMS, TOKENS = 10, 16, 48
SAMPLED = {"temperature": 0.9, "presence_penalty": 0.4, "frequency_penalty": 0.3, "repetition_penalty": 1.2}
FORMS: list[dict[str, Any]] = [
    {"temperature": 0.0, "ignore_eos": True},
    {**SAMPLED, "seed": 11, "ignore_eos": True},
    {"temperature": 0.0, "bad_words": ["the"], "min_tokens": TOKENS},
    {"temperature": 1.0, "seed": 3, "structured_outputs": {"regex": r"([a-z]{2,9} ){400}"}},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One API and three workers. A request may lose any number of workers, since they are killed often."""
    settings = {"model": smollm2, "served_model_name": "smollm2", "max_model_len": 512, "max_num_seqs": STREAMS}
    settings |= {"kv_cache_gib": 0.1, "lease": 3, "max_attempts": 100, **runtime_settings()}
    async with running(
        tmp_path_factory.mktemp("vllm"), apis=1, workers=3, start_limit=START_LIMIT_S, **settings
    ) as made:
        yield made


async def blocks_used(client: Client) -> int:
    async with exchange(client.url(), "GET", "/ready") as response:
        return sum(worker["blocks_used"] for worker in (await response.json())["workers"])


async def ready_workers(cluster: Cluster, *, first: int) -> list[Node]:
    """Wait until two workers are ready, and return those that are, beginning at number `first`."""
    in_turn = [*cluster.workers[first:], *cluster.workers[:first]]
    async with asyncio.timeout(START_LIMIT_S):
        while len(ready := [worker for worker in in_turn if worker.ready]) < 2:
            await asyncio.sleep(0.1)
    return ready


async def finished(client: Client, number: int) -> Answer:
    answer = await client.follow(await submitted(client, number))
    assert answer.end == "done", answer.data
    return answer


async def submitted(client: Client, number: int) -> Answer:
    """Submit one of the streams: they differ in their prompts, and take turns in their parameters."""
    fields = FORMS[number % len(FORMS)]
    return await client.submit(f"Story number {number}: once upon a time", TOKENS, **fields)


async def test_a_cancelled_answer_leaves_vllm(cluster: Cluster) -> None:
    """Given a running answer, if it is cancelled, its stream ends and no worker has a block in use."""
    client = Client(cluster.urls, "smollm2")
    answer = await client.submit("Count: 1, 2, 3,", 400, ignore_eos=True)
    following = asyncio.create_task(client.follow(answer))
    await until(lambda: answer.seq >= 4, "a running answer")
    async with exchange(client.url(), "DELETE", f"/v1/jobs/{answer.job}") as response:
        assert response.status < 300
    await following
    assert answer.end == "cancelled"
    assert answer.seq < 400
    async with asyncio.timeout(LIMIT_S):
        while await blocks_used(client) > 0:  # as the last heartbeat said
            await asyncio.sleep(0.1)


async def test_streams_outlive_their_workers_unchanged(cluster: Cluster) -> None:
    """Given 16 streams, greedy, sampled and constrained, if workers die ten times, no text changes.

    The client checks every event: there is no gap and no repeat.
    """
    client = Client(cluster.urls, "smollm2")
    undisturbed = await asyncio.gather(*(finished(client, number) for number in range(STREAMS)))
    for kill in range(KILLS):
        victim, *_ = await ready_workers(cluster, first=kill % len(cluster.workers))
        answers = [await submitted(client, number) for number in range(STREAMS)]
        following = [asyncio.create_task(client.follow(answer)) for answer in answers]
        await until(lambda answers=answers: min(answer.seq for answer in answers) >= 2, "all streams run")
        assert all(answer.end is None for answer in answers)
        victim.kill()
        victim.spawn()  # it starts while the others continue its streams
        await asyncio.gather(*following)
        assert [answer.end for answer in answers] == ["done"] * STREAMS
        assert [answer.texts for answer in answers] == [answer.texts for answer in undisturbed]
