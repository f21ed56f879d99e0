"""Steady load of streams, each checked to its end, so that answers are always running when a fault occurs."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.support.stream_client import PATIENCE_S, Answer, Client, Violated, until

INTERVAL_S = 0.02

_numbers = itertools.count()  # makes all prompts of a run different


class Load:
    """Load of `streams` answers at a time while the body runs; then the running answers are completed.

    Args:
        pace: milliseconds between two tokens of a stream.
        total: end after this number of answers.
        replay: read each answer a second time, from another replica.
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
        """Wait until all streams have ended. Raises the error of a failed stream."""
        await asyncio.gather(*self._tasks)

    async def progress(self, limit: float = PATIENCE_S) -> float:
        """Wait until each running answer has another token or has ended, and return the seconds that it took."""
        before = {answer: answer.seq for answer in self.live}
        return await until(
            lambda: self._broken() or all(a.end or a.seq > seq for a, seq in before.items()), "progress", limit
        )

    def _broken(self) -> bool:
        """Return False. Raises the error of a failed stream."""
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
    """Submits of a job every INTERVAL_S while the body runs, accepted or refused. `settle` checks them all."""

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
            await asyncio.sleep(INTERVAL_S)

    async def settle(self, since: float) -> int:
        """Read every accepted job to its end, and return the number of lost jobs.

        Raises Violated if a lost job was accepted before `since`.
        """
        lost = 0
        for accepted, answer in self.accepted:
            if not await self._lost(answer):
                answer.verify()
            elif accepted < since:
                raise Violated(f"{answer.job}: lost, though accepted {since - accepted:.2f} s before the window")
            else:
                lost += 1
        return lost

    async def _lost(self, answer: Answer) -> bool:
        """Return whether the store has lost a job or its place in the queue; otherwise read it to its end."""
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
    """Return the nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def longest(answers: Sequence[Answer]) -> list[float]:
    """Return the longest stall of each answer, in seconds."""
    return [max(answer.stalls, default=0.0) for answer in answers]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
