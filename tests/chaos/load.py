"""A steady load of streams, each checked to its end, so that a fault always meets answers under way."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.chaos.streams import PATIENCE, Answer, Client, until

_numbers = itertools.count()  # so that no two prompts of a run are the same


class Load:
    """`streams` answers at a time, until it is left; then it lets those end that are under way.

    Args:
        pace: milliseconds between a stream's tokens.
        total: end by itself after that many answers.
        replay: read each answer again, whole, from another replica.
    """

    def __init__(
        self,
        client: Client,
        *,
        streams: int,
        tokens: int,
        pace: int,
        total: int | None = None,
        replay: bool = False,
    ) -> None:
        self._client = client
        self._streams = streams
        self._tokens = tokens
        self._pace = pace
        self._left = itertools.count() if total is None else iter(range(total))
        self._replay = replay
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.live: set[Answer] = set()
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._stream()) for _ in range(self._streams)]
        await until(lambda: self._broken() or len(self.live) >= self._streams or not self._open(), "a full load")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        else:
            await self.finished()

    async def finished(self) -> None:
        """Until every stream has ended by itself; raises what went wrong with one."""
        await asyncio.gather(*self._tasks)

    async def progress(self, limit: float = PATIENCE) -> float:
        """Until each answer that is under way now has got a token more, or its end; how many seconds it took."""
        before = {answer: answer.seq for answer in self.live}
        return await until(
            lambda: self._broken() or all(a.end or a.seq > seq for a, seq in before.items()), "progress", limit
        )

    def _open(self) -> bool:
        return any(not task.done() for task in self._tasks)

    def _broken(self) -> bool:
        """Raises what went wrong with a stream."""
        for task in self._tasks:
            if task.done():
                task.result()
        return False

    async def _stream(self) -> None:
        while not self._stopping and next(self._left, None) is not None:
            prompt = f"[pace {self._pace}] stream {next(_numbers)}"
            answer = await self._client.submit(prompt, self._tokens)
            self.live.add(answer)
            try:
                await self._client.follow(answer)
            finally:
                self.live.discard(answer)
            answer.verify()
            if self._replay:
                await self._client.replay(answer, self._client.url())
            self.answers.append(answer)


def percentile(values: Sequence[float], percent: int) -> float:
    """By the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def longest(answers: Sequence[Answer]) -> list[float]:
    """Each answer's longest stall, in seconds."""
    return [max(answer.stalls, default=0.0) for answer in answers]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
