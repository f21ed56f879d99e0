"""Names that belong to whoever asks first, for a time: locks of leaders, and keys of idempotent requests.

It does not know what a name stands for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.script import LEASE, Script


class Holds(Protocol):
    """Every call raises Unavailable when the store cannot be reached in time."""

    async def hold(self, name: str, value: bytes, ttl: float) -> bytes:
        """Take `name` with `value` for `ttl` seconds, or take it for longer where it has that value.

        Returns the value that it has now: another one means that it belongs to somebody else.
        """

    async def release(self, name: str, value: bytes) -> None:
        """Give `name` up where it has that value."""


class RedisHolds:
    """Holds."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._script = Script(server, "holds", LEASE, Path(__file__).with_suffix(".lua"))

    async def hold(self, name: str, value: bytes, ttl: float) -> bytes:
        async with self._server.reaching("the store"):
            found: bytes = await self._script("hold", [keys.hold(name)], value, int(ttl * 1000))
        return found

    async def release(self, name: str, value: bytes) -> None:
        async with self._server.reaching("the store"):
            await self._script("release", [keys.hold(name)], value)
