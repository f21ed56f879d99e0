"""Stalled gRPC readers: the memory that each costs the API is bounded, however long the answer."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import psutil
import pytest

from producer_api.rpc import inference_pb2 as pb
from shared.redis.embedded import HOST, EmbeddedServer
from shared.runtime.sockets import free_port
from tests.support.api_process import running
from tests.support.grpc_client import Client, chat, read_rest
from tests.support.scripted_worker import ScriptedWorker
from tests.support.slow_readers import EVENTS, MAX_READER_BYTES, READERS, write_all

pytestmark = pytest.mark.slow


async def test_memory_of_stalled_readers_is_bounded(valkey: EmbeddedServer, worker: ScriptedWorker) -> None:
    """All stalled readers of a long answer together use less memory than two copies of it."""
    port = free_port(HOST)
    with running(valkey, grpc_port=str(port)) as (process, _):
        async with AsyncExitStack() as opened:

            async def client() -> Client:
                options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
                channel = grpc.aio.insecure_channel(f"{HOST}:{port}", options=options)
                return Client(await opened.enter_async_context(channel), port)

            reading, *stalled = [await client() for _ in range(READERS + 1)]
            made = await reading.Submit(chat(), wait_for_ready=True)
            job = await worker.take()
            await job.say("begun")
            streams = [each.Follow(pb.FollowRequest(id=made.id)) for each in stalled]
            for stream in streams:
                assert (await stream.read()).tokens.seq == 0
            before = psutil.Process(process.pid).memory_info().rss
            whole = asyncio.create_task(read_rest(reading.Follow(pb.FollowRequest(id=made.id))))
            await write_all(job)
            texts, _ = await whole
            grown = psutil.Process(process.pid).memory_info().rss - before
            for stream in streams:
                stream.cancel()
    assert len(texts) == EVENTS + 1, "a reader that reads gets all of it"
    assert grown < READERS * MAX_READER_BYTES
