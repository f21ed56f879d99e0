"""The metrics port of the batch runner."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from producer_api.batch_runner.event_loop_host import EventLoopHost
from shared.runtime.sockets import free_port
from shared.settings import Settings


@pytest.mark.usefixtures("backend")
async def test_the_batch_runner_shows_its_metrics(settings: Settings) -> None:
    port = free_port("127.0.0.1")
    host = EventLoopHost(settings.model_copy(update={"tasks_metrics_port": port}))
    await asyncio.to_thread(host.start, lambda _: None)
    try:
        async with httpx.AsyncClient() as client:
            lines = (await client.get(f"http://127.0.0.1:{port}/metrics")).text.splitlines()
    finally:
        await asyncio.to_thread(host.close)
    assert "headrace_tasks_running 0.0" in lines
    assert 'headrace_redis_errors_total{kind="timeout"} 0.0' in lines
