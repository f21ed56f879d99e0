"""A key that is revoked by the command line, as processes see it that use it all the time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from shared.embedded import EmbeddedServer
from tests.gateway.test_process import running

WITHIN = 5.0  # seconds
STEP = 0.05  # seconds between calls: what the processes log of them fits the pipe that nobody reads


def keys(folder: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "headrace", "keys", *words, "--data-dir", str(folder), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout)


async def statuses(url: str, key: object, until: int) -> float:
    """Calls all the time until the status is `until`, and then for a while; returns when it became so."""
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as http:
        while (await http.get("/v1/models")).status_code != until:
            await asyncio.sleep(STEP)
        became = time.monotonic()
        for _ in range(10):
            assert (await http.get("/v1/models")).status_code == until
            await asyncio.sleep(STEP)
        return became


@pytest.mark.slow
async def test_a_revoked_key_stops_on_all_replicas(valkey: EmbeddedServer, tmp_path: Path) -> None:
    """Given two processes that are called with a key all the time, expect it refused by both within 5 s."""
    own = {"auth": "true", "data_dir": str(tmp_path)}
    with running(valkey, **own) as (_, one), running(valkey, **own) as (_, two):
        made = keys(tmp_path, "create")
        for url in (one, two):
            await statuses(url, made["key"], 200)
        calls = [asyncio.create_task(statuses(url, made["key"], 401)) for url in (one, two)]
        await asyncio.sleep(2.5)  # until it is being looked up again and again
        await asyncio.to_thread(keys, tmp_path, "revoke", str(made["id"]))
        revoked = time.monotonic()
        async with asyncio.timeout(WITHIN + 1):
            took = [at - revoked for at in await asyncio.gather(*calls)]
        assert max(took) < WITHIN, took


@pytest.mark.slow
async def test_a_rotated_key(valkey: EmbeddedServer, tmp_path: Path) -> None:
    """Given a rotated key, expect the new one at once, and the old one until the overlap is over."""
    with running(valkey, auth="true", data_dir=str(tmp_path)) as (_, url):
        old = keys(tmp_path, "create", "--tenant", "t")
        await statuses(url, old["key"], 200)
        new = await asyncio.to_thread(keys, tmp_path, "rotate", str(old["id"]), "--overlap", "1s")
        rotated = time.monotonic()
        await statuses(url, new["key"], 200)
        async with asyncio.timeout(WITHIN + 1):
            assert await statuses(url, old["key"], 401) - rotated < WITHIN
        assert {each["id"] for each in keys(tmp_path, "list")} == {new["id"]}  # type: ignore[union-attr]
