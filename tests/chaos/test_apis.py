"""Chaos cases: API replicas that die, and clients that are slow, many, or silent."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shared.redis.embedded import HOST
from tests.chaos.scale import Scale
from tests.support.cluster import Cluster, running
from tests.support.proxy import FaultProxy
from tests.support.raw_http import exchange
from tests.support.stream_client import PAUSE_S, Answer, Client, until
from tests.support.stream_load import Load, longest, percentile

pytestmark = pytest.mark.slow

KIB, MIB = 2**10, 2**20
MAX_IDLE_STREAM_BYTES = 60 * KIB  # of the API process


@pytest.mark.case("api-kill", "API kill -9 mid-stream, clients resume on another replica")
async def test_streams_outlive_their_replica(
    fleet: Cluster, scale: Scale, figures: dict[str, Any], dice: random.Random
) -> None:
    """Given streams, if their API dies, they continue at another, and each replica replays the same answer."""
    kills = scale(2, 200)
    async with Load(fleet.client, streams=32, tokens=scale(40, 120), pace=50, replay=True) as load:
        for _ in range(kills):
            await load.progress()
            victim = dice.choice(fleet.apis)
            victim.kill()
            await load.progress()  # with the other replica alone
            await victim.start()
    answers = load.answers
    figures |= {"kills": kills, "answers": len(answers), "resumed": sum(a.connections - 1 for a in answers)}
    figures |= {"stall p99 s": percentile(longest(answers), 99)}
    assert sum(answer.connections - 1 for answer in answers) >= kills


@pytest.mark.case("slow-consumer", "slow consumers (1 byte/s) among 200 fast ones")
async def test_slow_consumers_do_not_affect_others(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """Given clients that hardly read, other streams are as fast as before, and the API buffers nothing.

    One replica is tested; the other reads the long answers until they are complete.
    """
    slow, tokens, choices = scale(1, 8), scale(12_000, 30_000), 8
    settings = {"max_model_len": 40_000, "max_num_seqs": 512, "log_tokens": tokens * choices}
    async with running(tmp_path, apis=2, workers=1, **settings) as cluster, _link(cluster) as link:
        tested, other = (Client([url]) for url in cluster.urls)
        [await tested.run(f"warm {number}", tokens, n=choices) for number in range(slow)]
        alone = await _fast(tested, scale)
        before = cluster.apis[0].rss
        link.to_client.rate, link.to_client.split = 1.0, 1
        answers = [await tested.submit(f"slow {number}", tokens, n=choices) for number in range(slow)]
        async with _together(tested.follow(answer, f"http://{HOST}:{link.port}") for answer in answers):
            for answer in answers:
                (await other.follow(Answer(answer.job, answer.body, 0.0))).verify()
            beside = await _fast(tested, scale)
            grown = cluster.apis[0].rss - before
            assert all(answer.end is None for answer in answers)
    unread = slow * tokens * choices
    figures |= {"slow": slow, "unread tokens": unread, "API grew by MiB": grown / MIB}
    figures |= {"p99 gap alone ms": 1000 * alone, "beside ms": 1000 * beside}
    assert grown < 8 * MIB * slow  # their frames have some 20 MiB each, and more at full scale
    if scale.full:
        assert beside <= 1.1 * alone


@pytest.mark.case("idle-streams", "idle SSE connections")
async def test_idle_streams_are_cheap(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """Given many streams of waiting jobs, other streams start as soon as before."""
    idle = scale(500, 10_000)
    depth = idle + 1000
    settings = {"queue_depth": depth, "tenant_queue_depth": depth, "keepalive": 15, "max_num_seqs": 256}
    async with running(tmp_path, apis=1, workers=1, **settings) as cluster, AsyncExitStack() as open_streams:
        waiting = await _unserved(cluster)
        alone = await _first_tokens(cluster.client, scale)
        jobs = [await waiting.submit(f"idle {number}", 1) for number in range(idle)]
        [api] = cluster.apis
        before = api.rss
        for number, job in enumerate(jobs):
            source = f"127.0.0.{2 + number // 5000}"
            stream = exchange(waiting.url(), "GET", f"/v1/jobs/{job.job}/events", silence=60, source=source)
            response = await open_streams.enter_async_context(stream)
            assert response.status == 200
        await until(lambda: cluster.subscriptions() > idle, "all streams listen")
        each = (api.rss - before) / idle
        with _uncollected():
            beside = await _first_tokens(cluster.client, scale)
    figures |= {"streams": idle, "KiB each": each / KIB}
    figures |= {"TTFT p99 alone ms": 1000 * alone, "beside ms": 1000 * beside}
    assert each <= MAX_IDLE_STREAM_BYTES
    if scale.full:
        assert beside <= 2 * alone


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turn the garbage collector off, which would stall a client that holds as many streams as the server."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _link(cluster: Cluster) -> AbstractAsyncContextManager[FaultProxy]:
    """Return a proxy between clients and the first replica."""
    port = urlsplit(cluster.urls[0]).port
    assert port
    return FaultProxy(HOST, port).listening()


@asynccontextmanager
async def _together(work: Iterable[Coroutine[Any, Any, Any]]) -> AsyncIterator[None]:
    """Run `work` while the body runs, and cancel it at the end."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _fast(client: Client, scale: Scale) -> float:
    """Run 200 streams, and return the 99th percentile of the seconds between two tokens."""
    async with Load(client, streams=200, tokens=scale(10, 150), pace=100, total=200) as load:
        await load.finished()
    return percentile([stall for answer in load.answers for stall in answer.stalls], 99)


async def _first_tokens(client: Client, scale: Scale) -> float:
    """Return the 99th percentile of the seconds from a submit to its first token."""
    async with Load(client, streams=8, tokens=2, pace=1, total=scale(100, 2000)) as load:
        await load.finished()
    return percentile([answer.first_token for answer in load.answers], 99)


async def _unserved(cluster: Cluster) -> Client:
    """Return a client of a model whose only worker is gone."""
    worker = cluster.add("worker", {**cluster.workers[0].environment, "HEADRACE_SERVED_MODEL_NAME": "unserved"})
    await worker.start()
    while "unserved" not in await cluster.client.models():
        await asyncio.sleep(PAUSE_S)
    worker.kill()
    return Client(cluster.urls, "unserved")
