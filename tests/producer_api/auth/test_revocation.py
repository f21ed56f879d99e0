"""Keys that are revoked or rotated by the command line while API processes use them."""

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

CALL_INTERVAL_S = 0.05  # between calls: the log lines of all calls fit into a pipe that is not read


def keys(folder: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "headrace", "keys", *words, "--data-dir", str(folder), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout)


async def statuses(url: str, key: object, until: int) -> None:
    """Call until the status is `until`, then check for a while that it stays so."""
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as http:
        while (await http.get("/v1/models")).status_code != until:
            await asyncio.sleep(CALL_INTERVAL_S)
        for _ in range(10):
            assert (await http.get("/v1/models")).status_code == until
            await asyncio.sleep(CALL_INTERVAL_S)


@pytest.mark.slow
async def test_a_revoked_key_stops_on_all_replicas(valkey: EmbeddedServer, tmp_path: Path) -> None:
    """Two processes in constant use refuse the key once its life in their caches is over."""
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
async def test_a_rotated_key_works_until_the_overlap_ends(valkey: EmbeddedServer, tmp_path: Path) -> None:
    with running(valkey, auth="true", data_dir=str(tmp_path), key_life="1") as (_, url):
        old = keys(tmp_path, "create", "--tenant", "t")
        await statuses(url, old["key"], 200)
        new = await asyncio.to_thread(keys, tmp_path, "rotate", str(old["id"]), "--overlap", "1s")
        await statuses(url, new["key"], 200)
        async with asyncio.timeout(LIMIT_S):
            await statuses(url, old["key"], 401)
        assert {each["id"] for each in keys(tmp_path, "list")} == {new["id"]}  # type: ignore[union-attr]
