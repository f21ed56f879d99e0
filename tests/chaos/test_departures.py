"""Workers that must leave at once hand their running answers over, and no stream sees it."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import httpx
import pytest

from shared.models.drain_orders import DrainOrders
from shared.redis.client import RedisServer
from tests.support.cluster import Cluster, running
from tests.support.stream_load import Load
from tests.support.waiting import LIMIT_S

STREAMS = 64
DRAIN = (sys.executable, "-m", "headrace", "worker", "drain", "--now", "--json")

pytestmark = pytest.mark.slow


async def drain(cluster: Cluster) -> float:
    """Order the first worker to leave at once, and return the seconds until its process is gone."""
    [leaving, _] = cluster.workers
    async with asyncio.timeout(LIMIT_S):  # the API reads the registry once a second
        while not (
            names := [name for name in await workers_of(cluster) if name.split("-")[-2] == str(leaving.pid)]
        ):
            await asyncio.sleep(0.05)
    server = RedisServer.connect(cluster.store.url, timeout=LIMIT_S)
    try:
        began = time.monotonic()
        await DrainOrders(server).place(names, "now")
        assert await leaving.ended() == 0
        return time.monotonic() - began
    finally:
        await server.client.aclose(close_connection_pool=True)


async def workers_of(cluster: Cluster) -> list[str]:
    async with httpx.AsyncClient() as client:
        found = (await client.get(f"{cluster.urls[0]}/health")).json()["workers"]
    return [each["id"] for each in found]


async def test_a_drain_order_loses_no_stream(tmp_path: Path) -> None:
    async with running(tmp_path, apis=1, workers=2, grace=60) as cluster:
        load = Load(cluster.client, streams=STREAMS, tokens=60, pace=50, total=STREAMS)
        async with load, asyncio.timeout(LIMIT_S):
            await load.progress()
            await drain(cluster)
        assert len(load.answers) == STREAMS


async def test_scaling_to_zero_under_load_loses_nothing(tmp_path: Path) -> None:
    """Given streams on all workers, both leave by orders; a worker that starts later completes the answers."""
    async with running(tmp_path, apis=1, workers=2, grace=60, scalable_models="scripted") as cluster:
        load = Load(cluster.client, streams=16, tokens=40, pace=50, total=16)
        async with load:
            await load.progress()
            ordering = await asyncio.create_subprocess_exec(
                *DRAIN, "--all", "--redis-url", cluster.store.url, stdout=asyncio.subprocess.DEVNULL
            )
            for worker in cluster.workers:
                await worker.ended()
            assert await ordering.wait() == 0
            await cluster.workers[0].start()
        assert len(load.answers) == 16
