"""Workers that must leave at once hand their running answers over, and no stream sees it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import pytest

from producer_api.rpc.external_scaler_pb2 import ScaledObjectRef
from shared.queue.administration import RedisQueueAdministration
from shared.redis.client import RedisServer
from shared.redis.embedded import HOST
from shared.runtime.sockets import free_ports
from tests.support.cluster import running
from tests.support.departures import handed_over, order_to_leave
from tests.support.grpc_client import Client
from tests.support.stream_load import Load
from tests.support.waiting import LIMIT_S

STREAMS = 64
DRAIN = (sys.executable, "-m", "headrace", "worker", "drain", "--all", "--now", "--json")

pytestmark = pytest.mark.slow


async def test_a_drain_order_loses_no_stream(tmp_path: Path) -> None:
    async with running(tmp_path, apis=1, workers=2, grace=60) as cluster:
        leaving = cluster.workers[0]
        load = Load(cluster.client, streams=STREAMS, tokens=60, pace=50, total=STREAMS)
        async with load, asyncio.timeout(LIMIT_S):
            await load.progress()
            await order_to_leave(leaving, cluster.store.url)
            assert await leaving.ended() == 0
        assert len(load.answers) == STREAMS
        assert handed_over(tmp_path / f"{leaving.name}.log") > 0


async def test_closing_the_queue_under_load_loses_no_stream(tmp_path: Path) -> None:
    """Given a pause before the load, a pause during it and a drain, every stream that was accepted ends."""
    async with running(tmp_path, apis=1, workers=1, max_num_seqs=4) as cluster:
        server = RedisServer.connect(cluster.store.url, timeout=LIMIT_S)
        queues = RedisQueueAdministration(server)
        load = Load(cluster.client, streams=16, tokens=12, pace=20, total=16)
        await queues.set_gate("scripted", "paused")
        async with load, asyncio.timeout(LIMIT_S):
            assert (await queues.survey("scripted", 1)).waiting == 16
            await queues.set_gate("scripted", "open")
            while (await queues.survey("scripted", 1)).waiting == 16:
                await asyncio.sleep(0.05)
            await queues.set_gate("scripted", "paused")
            while any((await queues.survey("scripted", 1)).held.values()):
                await asyncio.sleep(0.05)
            await queues.set_gate("scripted", "draining")
            status, refused = await cluster.client.post(cluster.client.body("one more", 1))
            assert (status, refused["code"]) == (503, "queue_draining")
        await server.client.aclose(close_connection_pool=True)
        assert len(load.answers) == 16


async def test_scaling_to_zero_under_load_loses_nothing(tmp_path: Path) -> None:
    """Given a model without workers, KEDA's stream reports its first requests. The worker that they start leaves
    under load; its answers keep the model active, and the next worker completes them.
    """
    [port] = free_ports(HOST, 1)
    environment = {"api": {"HEADRACE_GRPC_PORT": str(port)}}
    settings = {"grace": 60, "scalable_models": "scripted"}
    async with (
        running(tmp_path, apis=1, workers=0, environment=environment, **settings) as cluster,
        grpc.aio.insecure_channel(f"{HOST}:{port}") as channel,
    ):
        scaler, worker = Client(channel, port), cluster.add("worker", cluster.apis[0].environment)
        model = ScaledObjectRef(name="so", namespace="ns", scalerMetadata={"model": "scripted"})
        await asyncio.wait_for(channel.channel_ready(), LIMIT_S)
        stream = scaler.StreamIsActive(model)
        assert (await stream.read()).result is False
        load = Load(cluster.client, streams=16, tokens=100, pace=50, total=16)
        async with load:
            assert (await stream.read()).result is True
            await worker.start()
            await load.progress()
            await order_to_leave(worker, cluster.store.url)
            assert await worker.ended() == 0
            assert (await scaler.IsActive(model)).result is True
            await worker.start()
        assert len(load.answers) == 16
        assert handed_over(tmp_path / f"{worker.name}.log") > 0
        assert (await stream.read()).result is False
        draining = await asyncio.create_subprocess_exec(
            *DRAIN, "--redis-url", cluster.store.url, stdout=asyncio.subprocess.DEVNULL
        )
        assert await worker.ended() == await draining.wait() == 0
