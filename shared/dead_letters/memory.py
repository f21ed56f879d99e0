"""Dead letters in the memory of one process: for tests, and for use without a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shared.dead_letters.store import DeadLetter


class MemoryDeadLetters:
    """DeadLetters in memory."""

    def __init__(self, *, most: int, ttl: float, clock: Callable[[], float] = time.time) -> None:
        self._most = most
        self._ttl = ttl
        self._clock = clock
        self._letters: dict[str, DeadLetter] = {}

    async def add(self, letter: DeadLetter) -> None:
        self._letters.pop(letter.id, None)
        self._letters[letter.id] = letter
        newest = list(self._letters.values())[-self._most :]
        self._letters = {each.id: each for each in newest if each.at > letter.at - self._ttl}

    async def list(self, *, after: str = "", most: int = 100) -> Sequence[DeadLetter]:
        newest = list(self._letters.values())[::-1]
        if after:
            ids = [letter.id for letter in newest]
            newest = newest[ids.index(after) + 1 :] if after in ids else []
        return newest[:most]

    async def get(self, letter_id: str) -> DeadLetter | None:
        return self._letters.get(letter_id)

    async def remove(self, letter_ids: Sequence[str]) -> int:
        return sum(self._letters.pop(letter_id, None) is not None for letter_id in letter_ids)

    async def purge(self) -> int:
        count = len(self._letters)
        self._letters.clear()
        return count
