"""A key that is revoked by the command line, as processes see it that use it all the time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from shared.redis.embedded import EmbeddedServer
from tests.support.api_process import running
from tests.support.waiting import LIMIT_S

STEP = 0.05  # seconds between calls: what the processes log of them fits the pipe that nobody reads


def keys(folder: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "headrace", "keys", *words, "--data-dir", str(folder), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout)


async def statuses(url: str, key: object, until: int) -> None:
    """Call all the time until the status is `until`, and then for a while, in which it stays so."""
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as http:
        while (await http.get("/v1/models")).status_code != until:
            await asyncio.sleep(STEP)
        for _ in range(10):
            assert (await http.get("/v1/models")).status_code == until
            await asyncio.sleep(STEP)


@pytest.mark.slow
async def test_a_revoked_key_stops_on_all_replicas(valkey: EmbeddedServer, tmp_path: Path) -> None:
    """Given two processes that are called with a key all the time, expect it refused by both once
    its life in their memory is over, and from then on."""
    own = {"auth": "true", "data_dir": str(tmp_path), "key_life": "1"}
    with running(valkey, **own) as (_, one), running(valkey, **own) as (_, two):
        made = keys(tmp_path, "create")
        for url in (one, two):
            await statuses(url, made["key"], 200)
        calls = [asyncio.create_task(statuses(url, made["key"], 401)) for url in (one, two)]
        await asyncio.to_thread(keys, tmp_path, "revoke", str(made["id"]))
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*calls)


@pytest.mark.slow
async def test_a_rotated_key(valkey: EmbeddedServer, tmp_path: Path) -> None:
    """Given a rotated key, expect the new one at once, and the old one until the overlap is over."""
    with running(valkey, auth="true", data_dir=str(tmp_path), key_life="1") as (_, url):
        old = keys(tmp_path, "create", "--tenant", "t")
        await statuses(url, old["key"], 200)
        new = await asyncio.to_thread(keys, tmp_path, "rotate", str(old["id"]), "--overlap", "1s")
        await statuses(url, new["key"], 200)
        async with asyncio.timeout(LIMIT_S):
            await statuses(url, old["key"], 401)
        assert {each["id"] for each in keys(tmp_path, "list")} == {new["id"]}  # type: ignore[union-attr]
