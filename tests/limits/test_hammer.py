"""Limits under fire: four API processes on one server, each asked as fast as it answers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from shared import keys
from shared.accounts.database import Database
from shared.accounts.tables import usage
from shared.backend import Backend
from shared.config import load
from shared.embedded import EmbeddedServer
from shared.ports import free_ports
from tests.fakes import MODEL
from tests.gateway.conftest import PROMPT_TOKENS, ScriptedWorker

PROCESSES, CALLERS = 4, 3
AMOUNT, PERIOD = 100, 2.0
LONG = 4 * PERIOD  # seconds of fire
# what a dead process was to write is another's 3 s later, not 30
RUN = "from shared.ledger import store; store.WRITE_LEASE = 3.0; from headrace.cli import main; main()"
JOB = {"model": MODEL, "prompt": "x", "max_tokens": 1}


async def ask(http: httpx.AsyncClient, until: float, statuses: Counter[int]) -> None:
    while time.monotonic() < until:
        statuses[(await http.post("/v1/jobs", json=JOB)).status_code] += 1


@dataclass
class Replica:
    """An API process, and its client."""

    process: subprocess.Popen[bytes]
    http: httpx.AsyncClient


@asynccontextmanager
async def replicas(valkey: EmbeddedServer, folder: Path, **more: str) -> AsyncIterator[list[Replica]]:
    """API processes, with `more` settings by their names in capitals."""
    place = {"REDIS_URL": valkey.url, "DATA_DIR": str(folder), "MODEL": MODEL, "LOG_LEVEL": "error"}
    settings = {**place, "QUEUE_DEPTH": "9999", "TENANT_QUEUE_DEPTH": "9999", **more}
    environment = {**os.environ, **{f"HEADRACE_{name}": value for name, value in settings.items()}}
    ports = free_ports("127.0.0.1", PROCESSES)
    command = [sys.executable, "-c", RUN, "api", "--port"]
    made = [
        Replica(
            subprocess.Popen([*command, str(port)], env=environment),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10),
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
    async with asyncio.timeout(60):
        while True:
            try:
                await http.get("/health")
            except httpx.ConnectError:
                await asyncio.sleep(0.1)
            else:
                return


async def charged_at(backend: Backend) -> list[float]:
    """When each request was charged that was let through, in seconds by the server's clock."""
    entries = await backend.redis.hvals(keys.LEDGER[0])
    return sorted(json.loads(entry)[0] / 1000 for entry in entries)


def by_window(times: Sequence[float]) -> list[int]:
    """How many in each whole window by the clock; the first and the last were not whole."""
    counts = Counter(int(at // PERIOD) for at in times)
    return [counts[window] for window in range(min(counts) + 1, max(counts))]


def most_in_a_span(times: Sequence[float]) -> int:
    """The most in any span of a window's length."""
    return max(sum(at <= later < at + PERIOD for later in times[i : i + 2 * AMOUNT]) for i, at in enumerate(times))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window-counter", "moving-window", "token-bucket"])
async def test_four_processes_never_let_through_more_and_waste_nothing(
    valkey: EmbeddedServer, backend: Backend, tmp_path: Path, strategy: str
) -> None:
    plan = json.dumps({"free": {"requests": f"{AMOUNT}/{PERIOD:.0f} seconds"}})
    limits = {"PLANS": plan, "DEFAULT_PLAN": "free", "RATE_LIMIT_STRATEGY": strategy}
    statuses: Counter[int] = Counter()
    async with replicas(valkey, tmp_path, **limits) as asked:
        end = time.monotonic() + LONG
        await asyncio.gather(*(ask(each.http, end, statuses) for each in asked for _ in range(CALLERS)))
        times = await charged_at(backend)

    assert set(statuses) == {202, 429}
    assert len(times) == statuses[202]
    lasted = times[-1] - times[0]
    if strategy == "token-bucket":
        allowed = AMOUNT + AMOUNT * lasted / PERIOD
        assert 0.98 * allowed <= len(times) <= allowed + 1
    elif strategy == "moving-window":
        assert most_in_a_span(times) == AMOUNT
        assert len(times) >= 0.98 * AMOUNT * lasted / PERIOD
    else:
        whole = by_window(times)
        assert max(whole) <= AMOUNT
        assert sum(whole) >= 0.98 * AMOUNT * len(whole)
        assert len(whole) >= 2


@pytest.mark.slow
async def test_no_usage_is_lost_or_counted_twice_when_processes_are_killed(
    valkey: EmbeddedServer, backend: Backend, tmp_path: Path
) -> None:
    """Given answers that end while API processes are killed, Expect each request's tokens in one row."""
    worker = ScriptedWorker(backend)
    await worker.announce()
    asked: dict[str, int] = {}

    async def answer(replica: Replica, times: int) -> None:
        for number in range(times):
            job = (await replica.http.post("/v1/jobs", json=JOB)).json()["id"]
            asked[job] = number % 5 + 1
            await worker.answer(*"abcde"[: asked[job]])

    async with replicas(valkey, tmp_path) as processes:
        first, second, third, last = processes
        for replica, times in ((first, 40), (second, 7), (third, 20)):
            await answer(replica, times)
            replica.process.kill()  # some of its ends are settled, some are written, and some were not heard of
        await answer(last, 10)
        async with asyncio.timeout(120):
            while await backend.redis.exists(*keys.LEDGER):
                await asyncio.sleep(0.1)

    async with Database.of(load({"data_dir": tmp_path}).settings) as database, database.reading() as connection:
        rows = (await connection.execute(select(usage))).mappings().all()
    assert {row["request_id"]: row["completion_tokens"] for row in rows} == asked
    assert {row["prompt_tokens"] for row in rows} == {PROMPT_TOKENS}
