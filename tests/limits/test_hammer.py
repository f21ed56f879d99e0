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
from pathlib import Path

import httpx
import pytest

from headrace.ports import probe
from shared import keys
from shared.backend import Backend
from shared.embedded import EmbeddedServer
from tests.fakes import MODEL

PROCESSES, CALLERS = 4, 3
AMOUNT, PERIOD = 100, 2.0
LONG = 4 * PERIOD  # seconds of fire
JOB = {"model": MODEL, "prompt": "x", "max_tokens": 1}


async def ask(http: httpx.AsyncClient, until: float, statuses: Counter[int]) -> None:
    while time.monotonic() < until:
        statuses[(await http.post("/v1/jobs", json=JOB)).status_code] += 1


@asynccontextmanager
async def replicas(settings: dict[str, str]) -> AsyncIterator[list[httpx.AsyncClient]]:
    """API processes, each with a client of its own."""
    environment = {**os.environ, **{f"HEADRACE_{name}": value for name, value in settings.items()}}
    ports = [probe("127.0.0.1", 0) for _ in range(PROCESSES)]
    command = [sys.executable, "-m", "headrace", "api", "--port"]
    processes = [subprocess.Popen([*command, str(port)], env=environment) for port in ports]
    clients = [httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) for port in ports]
    try:
        await asyncio.gather(*(healthy(client) for client in clients))
        yield clients
    finally:
        for client in clients:
            await client.aclose()
        for process in processes:
            process.kill()
            process.wait()


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
    place = {"REDIS_URL": valkey.url, "DATA_DIR": str(tmp_path), "MODEL": MODEL, "LOG_LEVEL": "error"}
    queue = {"QUEUE_DEPTH": "9999", "TENANT_QUEUE_DEPTH": "9999"}
    statuses: Counter[int] = Counter()
    async with replicas({**place, **limits, **queue}) as clients:
        end = time.monotonic() + LONG
        await asyncio.gather(*(ask(http, end, statuses) for http in clients for _ in range(CALLERS)))
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
