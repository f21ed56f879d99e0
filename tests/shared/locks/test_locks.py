"""Locks: names that belong to one holder for a time."""

from __future__ import annotations

import asyncio

from shared.backend import Backend
from tests.support.waiting import LIMIT_S


async def test_a_name_belongs_to_its_first_holder_until_it_expires(backend: Backend) -> None:
    holds = backend.holds
    assert await holds.hold("name", b"a", 60) == b"a"
    assert await holds.hold("name", b"b", 60) == b"a"
    await holds.release("name", b"b")
    assert await holds.hold("name", b"b", 60) == b"a"
    assert await holds.hold("name", b"a", 0.02) == b"a"
    async with asyncio.timeout(LIMIT_S):
        while await holds.hold("name", b"b", 60) != b"b":
            pass
    await holds.release("name", b"b")
    assert await holds.hold("name", b"c", 60) == b"c"
