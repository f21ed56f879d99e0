"""The contract of Locks, also for locks that another program wrote."""

from __future__ import annotations

import asyncio

import pytest

from shared.backend import Backend
from shared.redis import keys
from tests.support.waiting import LIMIT_S


async def test_a_lock_belongs_to_its_first_owner_until_it_expires(backend: Backend) -> None:
    locks = backend.locks
    assert await locks.acquire("name", b"a", 60) == b"a"
    assert await locks.acquire("name", b"b", 60) == b"a"
    await locks.release("name", b"b")
    assert await locks.acquire("name", b"b", 60) == b"a"
    assert await locks.acquire("name", b"a", 0.02) == b"a"
    async with asyncio.timeout(LIMIT_S):
        while await locks.acquire("name", b"b", 60) != b"b":
            pass
    await locks.release("name", b"b")
    assert await locks.acquire("name", b"c", 60) == b"c"


@pytest.mark.parametrize("ttl_ms", [None, 10**12])
async def test_a_foreign_lock_holds_no_longer_than_any_other(on_redis: Backend, ttl_ms: int | None) -> None:
    await on_redis.redis.set(keys.hold("name"), "foreign", px=ttl_ms)
    async with asyncio.timeout(LIMIT_S):
        while await on_redis.locks.acquire("name", b"a", 0.1) != b"a":
            await asyncio.sleep(0.01)
    await on_redis.redis.delete(keys.hold("name"))
    await on_redis.redis.rpush(keys.hold("name"), "foreign")
    assert await on_redis.locks.acquire("name", b"b", 60) == b"b"
