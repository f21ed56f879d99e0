"""Limits under load: several API processes on one Redis, with more requests than allowed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from shared.accounts.database import Database
from shared.accounts.tables import usage
from shared.backend import Backend
from shared.redis import keys
from shared.redis.embedded import EmbeddedServer
from shared.runtime.sockets import free_ports
from shared.settings import load
from tests.support.fakes import MODEL
from tests.support.ledger_clock import Clock, clocked_script
from tests.support.scripted_worker import PROMPT_TOKENS, ScriptedWorker
from tests.support.waiting import LIMIT_S

PROCESSES, CALLERS, EACH = 2, 6, 10  # together more requests than are allowed
AMOUNT, HOUR_S = 100, 3600
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


async def volley(asked: list[Replica]) -> Counter[int]:
    """Let all callers send their requests concurrently, and count the statuses."""

    async def ask(http: httpx.AsyncClient) -> list[int]:
        return [(await http.post("/v1/jobs", json=JOB)).status_code for _ in range(EACH)]

    found = await asyncio.gather(*(ask(each.http) for each in asked for _ in range(CALLERS)))
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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ALLOWED)
async def test_processes_together_admit_exactly_the_limit(
    valkey: EmbeddedServer, backend: Backend, tmp_path: Path, strategy: str
) -> None:
    clock = Clock(backend)
    await clock.advance(0)
    plan = json.dumps({"free": {"requests": f"{AMOUNT}/hour"}})
    limits = {"PLANS": plan, "DEFAULT_PLAN": "free", "RATE_LIMIT_STRATEGY": strategy, "RATE_LIMIT_TIMEOUT": "30"}
    script = {"LEDGER_SCRIPT": str(clocked_script(tmp_path))}
    admitted = []
    async with replicas(valkey, tmp_path, PROCESSES, script, **limits) as asked:
        for _ in range(4):
            statuses = await volley(asked)
            assert set(statuses) <= {202, 429}
            admitted.append(statuses[202])
            await clock.advance(HOUR_S / 2)
    assert admitted == ALLOWED[strategy]
    assert await backend.redis.hlen(keys.LEDGER[0]) == sum(admitted)


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

    async with replicas(valkey, tmp_path, 4, {}) as processes:
        first, second, third, last = processes
        for replica, times in ((first, 40), (second, 7), (third, 20)):
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
