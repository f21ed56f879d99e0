"""A worker whose model is put to sleep releases its memory, and serves what waited once it is woken."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from shared.backend import Backend
from shared.models.drain_orders import DrainOrders
from shared.models.worker_registry import WorkerInfo
from shared.runtime.sockets import free_ports
from tests.support.cluster import running
from tests.support.waiting import LIMIT_S
from workers.startup.sleep import OrderedToLeave, sleep_until_woken

MIB = 2**20


async def state_is(http: httpx.AsyncClient, *states: str) -> None:
    """Wait until the workers have these states."""
    async with asyncio.timeout(LIMIT_S):
        while [each["state"] for each in (await http.get("/ready")).json()["workers"]] != list(states):
            await asyncio.sleep(0.05)


async def running_is(http: httpx.AsyncClient, count: int) -> None:
    """Wait until the engine runs that many sequences."""
    async with asyncio.timeout(LIMIT_S):
        while [each["running"] for each in (await http.get("/ready")).json()["workers"]] != [count]:
            await asyncio.sleep(0.05)


async def test_a_sleeping_worker_obeys_an_order_to_leave(backend: Backend) -> None:
    info = WorkerInfo(id="w1", pid=1, model="m", state="loading")
    await backend.registry.set_asleep("m", asleep=True)
    assert backend.server is not None
    await DrainOrders(backend.server).place(["w1"], "finish")
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(OrderedToLeave):
            await sleep_until_woken(backend, info, 0.3)
    assert await backend.registry.workers() == []


@pytest.mark.slow
async def test_sleep_releases_the_memory_and_keeps_the_queue(smollm2: Path, tmp_path: Path) -> None:
    admin_port, metrics_port = free_ports("127.0.0.1", 2)
    settings = {"model": smollm2, "kv_cache_gib": 0.1, "grace": 0}
    settings |= {"admin_port": admin_port, "metrics_port": metrics_port}
    async with running(tmp_path, apis=1, workers=1, **settings) as cluster:
        api, admin = cluster.urls[0], f"http://127.0.0.1:{admin_port}"
        async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as http:
            [worker] = cluster.workers
            awake, pid = worker.rss, worker.pid
            body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
            running_on = asyncio.create_task(http.post("/v1/chat/completions", json={**body, "max_tokens": 100}))
            await running_is(http, 1)
            assert (await http.post(f"{admin}/admin/models/smollm2/sleep")).status_code == 200
            await state_is(http, "sleeping")
            assert worker.pid == pid
            assert worker.rss < 150 * MIB < 500 * MIB < awake
            waiting = asyncio.create_task(http.post("/v1/chat/completions", json={**body, "max_tokens": 4}))
            worker.kill()  # neither the death of the worker nor that of the API wakes the model
            worker.spawn()
            await state_is(http, "sleeping")
            assert (await http.get("/ready")).json()["reason"] == "smollm2 is asleep"
            assert not waiting.done()
            assert (await http.post(f"{admin}/admin/models/smollm2/wake")).status_code == 200
            answers = await asyncio.gather(running_on, waiting)
            assert [each.json()["usage"]["completion_tokens"] for each in answers] == [100, 4]
            metrics = (await http.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
            assert 'headrace_worker_startup_seconds{phase="total"}' in metrics
