"""A server that cannot write its append-only file: calls that write are Unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from shared.backend import Backend
from shared.errors import Unavailable
from shared.protocol import PriorityClass
from shared.queue.interface import Room
from shared.redis.embedded import EmbeddedServer
from tests.support.disk import full_disk
from tests.support.fakes import MODEL, make_request

ROOM = Room(4, dict.fromkeys(PriorityClass, 4))

CALLS: dict[str, Callable[[Backend], Awaitable[object]]] = {
    "claim": lambda backend: backend.transport.claim(MODEL, "a", ROOM),
    "pull": lambda backend: backend.transport.pull(MODEL, "a", ROOM),
    "publish": lambda backend: backend.transport.publish(make_request()),
    "create": lambda backend: backend.token_log.create(make_request()),
    "hold": lambda backend: backend.locks.acquire("x", b"y", 1.0),
}


async def test_writes_are_unavailable_while_the_disk_is_full(valkey: EmbeddedServer, on_redis: Backend) -> None:
    await on_redis.transport.publish(make_request())
    with full_disk(valkey):
        with pytest.raises(Unavailable):
            while True:  # the first write that fails is still answered
                await on_redis.transport.publish(make_request())
        for call in CALLS.values():
            with pytest.raises(Unavailable, match="MISCONF"):
                await call(on_redis)
    refused = True
    while refused:
        await asyncio.sleep(0.05)
        with suppress(Unavailable):
            await on_redis.transport.publish(make_request())
            refused = False
    assert (await on_redis.transport.pull(MODEL, "a", ROOM)).found
