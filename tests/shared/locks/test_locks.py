"""The contract of Locks."""

from __future__ import annotations

import asyncio

from shared.backend import Backend
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
