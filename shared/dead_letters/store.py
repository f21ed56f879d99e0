"""Dead letters: requests that were given up, with the reason. They can be inspected, replayed or deleted.

A request is added here before its answer is ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from shared.protocol import ErrorInfo, Request
from shared.redis import keys
from shared.redis.client import RedisServer
from shared.redis.foreign import UNREADABLE
from shared.redis.script import Script


class DeadLetter(msgspec.Struct, frozen=True):
    """A request, why it was given up, after how many workers, and when (seconds, by the server's clock)."""

    request: Request
    reason: ErrorInfo
    attempts: int
    at: float

    @property
    def id(self) -> str:
        return self.request.id


_decoder = msgspec.json.Decoder(DeadLetter)


def _letter(letter_id: bytes, data: bytes) -> DeadLetter | None:
    """Decode a letter; None for foreign data."""
    try:
        letter = _decoder.decode(data)
    except UNREADABLE:
        return None
    return letter if letter.id.encode(errors="replace") == letter_id else None


class DeadLetters(Protocol):
    """Dead letters, bounded in number and age; the oldest are deleted first. Every call may raise Unavailable."""

    async def add(self, letter: DeadLetter) -> None:
        """Add a letter. Idempotent by id."""

    async def list(self, *, after: str = "", most: int = 100) -> Sequence[DeadLetter]:
        """List letters older than the letter `after`, newest first."""

    async def get(self, letter_id: str) -> DeadLetter | None: ...

    async def remove(self, letter_ids: Sequence[str]) -> int:
        """Delete letters. Returns how many existed."""

    async def purge(self) -> int:
        """Delete all letters. Returns how many there were."""


class RedisDeadLetters:
    """DeadLetters on Redis: a sorted set of ids by time, and a hash of letters.

    Args:
        most: maximum letters kept.
        ttl: seconds that a letter is kept.
    """

    def __init__(self, server: RedisServer, *, most: int, ttl: float) -> None:
        self._server = server
        self._script = Script(server, "dead_letters", Path(__file__).with_suffix(".lua"))
        self._most = most
        self._ttl_ms = int(ttl * 1000)

    async def add(self, letter: DeadLetter) -> None:
        data = msgspec.json.encode(letter)
        await self._run("add", letter.id, int(letter.at * 1000), data, self._most, self._ttl_ms)

    async def list(self, *, after: str = "", most: int = 100) -> Sequence[DeadLetter]:
        while True:
            parts = iter(await self._run("list", after, most))
            found = {letter_id: _letter(letter_id, data) for letter_id, data in zip(parts, parts, strict=True)}
            if not (foreign := [letter_id for letter_id, letter in found.items() if letter is None]):
                return [letter for letter in found.values() if letter is not None]
            await self._run("refuse", *foreign)

    async def get(self, letter_id: str) -> DeadLetter | None:
        data = await self._run("get", letter_id)
        if data is None:
            return None
        if (letter := _letter(letter_id.encode(), data)) is None:
            await self._run("refuse", letter_id)
        return letter

    async def remove(self, letter_ids: Sequence[str]) -> int:
        removed: int = await self._run("remove", *letter_ids)
        return removed

    async def purge(self) -> int:
        removed: int = await self._run("purge")
        return removed

    async def _run(self, command: str, *args: str | int | bytes) -> Any:
        async with self._server.reaching("the dead letters"):
            return await self._script(command, [keys.DEAD_INDEX, keys.DEAD_LETTERS], *args)
