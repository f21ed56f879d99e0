"""A steady load of streams, each checked to its end, so that a fault always meets answers under way."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.support.stream_client import PATIENCE, Answer, Client, Violated, until

INTERVAL = 0.02

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
        self._begun = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.live: set[Answer] = set()
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._stream()) for _ in range(self._streams)]
        await until(lambda: self._broken() or self._begun >= self._streams, "a full load")
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
            self._begun += 1
            try:
                await self._client.follow(answer)
            finally:
                self.live.discard(answer)
            answer.verify()
            if self._replay:
                await self._client.replay(answer, self._client.url())
            self.answers.append(answer)


class Submits:
    """A job every INTERVAL seconds, whether it is accepted or refused, until it is left; `settle` looks at all."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self.accepted: list[tuple[float, Answer]] = []  # with the time of the acceptance
        self.refused = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._submit())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        if not self._task.done():
            self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _submit(self) -> None:
        while True:
            body = self._client.body(f"[pace 10] submit {next(_numbers)}", 10)
            begin = time.monotonic()
            try:
                status, said = await self._client.post(body)
            except OSError:
                status, said = 503, {}
            if status == 202:
                self.accepted.append((time.monotonic(), Answer(said["id"], body, begin)))
            elif status == 503:
                self.refused += 1
            else:
                raise Violated(f"a submit got {status}: {said}")
            await asyncio.sleep(INTERVAL)

    async def settle(self, since: float) -> int:
        """Read every accepted job to its end; how many are lost. Violated if one was accepted before `since`."""
        lost = 0
        for accepted, answer in self.accepted:
            if not await self._lost(answer):
                answer.verify()
            elif accepted < since:
                raise Violated(f"{answer.job}: lost, {since - accepted:.2f} s older than what may be")
            else:
                lost += 1
        return lost

    async def _lost(self, answer: Answer) -> bool:
        """Whether the store has lost it, or its place in the queue; else it is read to its end."""
        if await self._client.job(answer.job) is None:
            return True
        try:
            await self._client.follow(answer)
        except Violated:
            if await self._client.job(answer.job) is None:  # the server found out in between
                return True
            raise
        return answer.data.get("error", {}).get("code") == "request_lost"


def percentile(values: Sequence[float], percent: int) -> float:
    """By the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def longest(answers: Sequence[Answer]) -> list[float]:
    """Each answer's longest stall, in seconds."""
    return [max(answer.stalls, default=0.0) for answer in answers]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
