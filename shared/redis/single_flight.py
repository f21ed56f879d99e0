"""Calls that several callers share, and calls to several peers of which the first answer is used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from redis.exceptions import ConnectionError, RedisError

T = TypeVar("T")


class Shared(Generic[T]):
    """One call for all callers that arrive while it runs; it continues if some of them stop waiting.

    Raises what the call raises, and ConnectionError in callers that wait when it is stopped.
    """

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._call = call
        self._task: asyncio.Task[T] | None = None

    def start(self) -> asyncio.Task[T]:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._call())
            self._task.add_done_callback(_retrieve)
        return self._task

    async def __call__(self) -> T:
        task = self.start()
        await asyncio.wait([task])
        if task.cancelled():
            raise ConnectionError("the client was closed during the call")
        return task.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Mark the error as retrieved: callers have seen it, and asyncio warns if there were none."""
    if not task.cancelled():
        task.exception()


async def first_answer(questions: Iterable[Awaitable[T | None]], limit: float) -> T:
    """Return the first answer that is not None; a dead peer causes no delay while another answers.

    Raises ConnectionError if there is no such answer within `limit` seconds.
    """
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        for answered in asyncio.as_completed(tasks, timeout=limit):
            try:
                answer = await answered
            except (RedisError, OSError):
                continue
            if answer is not None:
                return answer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise ConnectionError("no peer answered")
