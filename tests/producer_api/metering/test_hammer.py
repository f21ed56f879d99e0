"""Limits under load: several API processes on one Redis, with more requests than allowed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from producer_api.app import create_app
from shared.accounts.database import Database
from shared.accounts.tables import usage
from shared.backend import Backend
from shared.ledger import store
from shared.redis import keys
from shared.redis.embedded import EmbeddedServer
from shared.runtime.sockets import free_ports
from shared.settings import Settings, load
from tests.support.api_server import calling
from tests.support.fakes import MODEL
from tests.support.ledger_clock import Clock, clocked_script
from tests.support.redis_servers import opened
from tests.support.scripted_worker import PROMPT_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S

REPLICAS, CALLERS, EACH = 2, 6, 10  # together more requests than are allowed
AMOUNT, HOUR_S = 100, 3600
PLANS = {"free": {"requests": f"{AMOUNT}/hour"}}
# what each strategy admits of such a volley, at four times half an hour apart
ALLOWED = {
    "fixed-window": [AMOUNT, 0, AMOUNT, 0],
    "sliding-window-counter": [AMOUNT, 0, 0, AMOUNT // 2],
    "moving-window": [AMOUNT, 0, AMOUNT, 0],
    "token-bucket": [AMOUNT, AMOUNT // 2, AMOUNT // 2, AMOUNT // 2],
}
# another process takes over the records of a dead one after 3 s instead of 30
RUN = """
import os
from pathlib import Path
from shared.ledger import store
store.RECORD_LEASE_S = 3.0
store.STRATEGIES = Path(os.environ.pop("LEDGER_SCRIPT", store.STRATEGIES))
from producer_api.admission import deadline
deadline.REDIS_DEADLINE_S = 60.0
from headrace.cli.main import main
main()
"""
JOB = {"model": MODEL, "prompt": "x", "max_tokens": 1}


async def volley(asked: Sequence[httpx.AsyncClient]) -> Counter[int]:
    """Let all callers of each replica send their requests concurrently, and count the statuses."""

    async def ask(http: httpx.AsyncClient) -> list[int]:
        return [(await http.post("/v1/jobs", json=JOB)).status_code for _ in range(EACH)]

    found = await asyncio.gather(*(ask(http) for http in asked for _ in range(CALLERS)))
    return Counter(status for statuses in found for status in statuses)


@dataclass
class Replica:
    """API process and its client."""

    process: subprocess.Popen[bytes]
    http: httpx.AsyncClient


@asynccontextmanager
async def replicas(
    valkey: EmbeddedServer, folder: Path, count: int, environment: dict[str, str], **more: str
) -> AsyncIterator[list[Replica]]:
    """Start API processes, with `more` settings as environment variables."""
    place = {"REDIS_URL": valkey.url, "DATA_DIR": str(folder), "MODEL": MODEL, "LOG_LEVEL": "error"}
    bounds = {"QUEUE_DEPTH": "9999", "TENANT_QUEUE_DEPTH": "9999", "REDIS_TIMEOUT": "30"}
    settings = {**place, **bounds, **more}
    environment = {**os.environ, **environment, **{f"HEADRACE_{name}": value for name, value in settings.items()}}
    ports = free_ports("127.0.0.1", count)
    command = [sys.executable, "-c", RUN, "api", "--port"]
    made = [
        Replica(
            subprocess.Popen([*command, str(port)], env=environment),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S),
        )
        for port in ports
    ]
    try:
        await asyncio.gather(*(healthy(each.http) for each in made))
        yield made
    finally:
        for each in made:
            await each.http.aclose()
            each.process.kill()
            each.process.wait()


async def healthy(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await http.get("/live")
            except httpx.ConnectError:
                await asyncio.sleep(0.1)
            else:
                return


async def check_volleys(strategy: str, asked: Sequence[httpx.AsyncClient], backend: Backend) -> None:
    """Send volleys half an hour apart, and check that exactly what the strategy allows is admitted and charged."""
    clock = Clock(backend)
    await clock.advance(0)
    admitted = []
    for _ in ALLOWED[strategy]:
        statuses = await volley(asked)
        assert set(statuses) <= {202, 429}
        admitted.append(statuses[202])
        await clock.advance(HOUR_S / 2)
    assert admitted == ALLOWED[strategy]
    assert await backend.redis.hlen(keys.LEDGER[0]) == sum(admitted)


@pytest.mark.slow
async def test_processes_together_admit_exactly_the_limit(
    valkey: EmbeddedServer, backend: Backend, tmp_path: Path
) -> None:
    plans, strategy = json.dumps(PLANS), "sliding-window-counter"
    limits = {"PLANS": plans, "DEFAULT_PLAN": "free", "RATE_LIMIT_STRATEGY": strategy, "RATE_LIMIT_TIMEOUT": "30"}
    script = {"LEDGER_SCRIPT": str(clocked_script(tmp_path))}
    async with replicas(valkey, tmp_path, REPLICAS, script, **limits) as processes:
        await check_volleys(strategy, [each.http for each in processes], backend)


@pytest.mark.parametrize("strategy", ALLOWED)
async def test_replicas_together_admit_exactly_the_limit(
    settings: Settings, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Given replicas in one process, which share nothing but Redis, each strategy holds as for processes."""
    monkeypatch.setattr(store, "STRATEGIES", clocked_script(tmp_path))
    bounds = {"queue_depth": 9999, "tenant_queue_depth": 9999}
    limits = {"plans": PLANS, "default_plan": "free", "rate_limit_strategy": strategy}
    settings = load({**settings.model_dump(exclude_unset=True), **bounds, **limits}).settings
    async with AsyncExitStack() as running:

        async def replica() -> httpx.AsyncClient:
            app = create_app(settings, await running.enter_async_context(opened(settings)))
            running.push_async_callback(app.state.context.close)
            return await running.enter_async_context(calling(app))

        await check_volleys(strategy, [await replica() for _ in range(REPLICAS)], backend)


@pytest.mark.slow
async def test_killed_processes_neither_lose_nor_repeat_usage(
    valkey: EmbeddedServer, backend: Backend, tmp_path: Path
) -> None:
    """Answers end while API processes are killed; each request's tokens are in one record."""
    worker = ScriptedWorker(backend)
    await worker.announce()
    asked: dict[str, int] = {}

    async def answer(replica: Replica, times: int) -> None:
        for number in range(times):
            job = (await replica.http.post("/v1/jobs", json=JOB)).json()["id"]
            asked[job] = number % 5 + 1
            await worker.answer(*"abcde"[: asked[job]])

    async with replicas(valkey, tmp_path, 3, {}) as processes:
        first, second, last = processes
        for replica, times in ((first, 40), (second, 7)):
            await answer(replica, times)
            replica.process.kill()  # at any stage: before settling, before writing, or after
        await answer(last, 10)
        async with asyncio.timeout(LIMIT_S):
            while await backend.redis.exists(*keys.LEDGER):
                await asyncio.sleep(0.1)

    async with (
        Database.from_settings(load({"data_dir": tmp_path}).settings) as database,
        database.reading() as connection,
    ):
        rows = (await connection.execute(select(usage))).mappings().all()
    assert {row["job_id"]: row["completion_tokens"] for row in rows} == asked
    assert {row["prompt_tokens"] for row in rows} == {PROMPT_TOKENS}
