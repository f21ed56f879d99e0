"""Named locks with a lifetime: for leaders, and for keys of idempotent requests."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import Script


class Locks(Protocol):
    """Locks by name. Every call raises Unavailable if the store cannot be reached in time."""

    async def acquire(self, name: str, value: bytes, ttl: float) -> bytes:
        """Lock `name` for the owner `value` for `ttl` seconds, or renew it for the same owner.

        Returns the present owner: another value means that the lock was not acquired. Then the lock expires at the
        latest after `ttl`, also if another program wrote it without an expiry.
        """

    async def release(self, name: str, value: bytes) -> None:
        """Release `name` if `value` owns it."""


class RedisLocks:
    """Locks on Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._script = Script(server, "holds", Path(__file__).with_suffix(".lua"))

    async def acquire(self, name: str, value: bytes, ttl: float) -> bytes:
        async with self._server.reaching("the store"):
            found: bytes = await self._script("acquire", [keys.hold(name)], value, int(ttl * 1000))
        return found

    async def release(self, name: str, value: bytes) -> None:
        async with self._server.reaching("the store"):
            await self._script("release", [keys.hold(name)], value)
