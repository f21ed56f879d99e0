"""Calls that several wait for, and calls of which the first answer will do. It knows nothing of what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from redis.exceptions import ConnectionError, RedisError

T = TypeVar("T")


class Shared(Generic[T]):
    """One call for all who ask while it runs; it goes on when some of them give up waiting.

    Raises what the call raises; ConnectionError to those who wait when it is stopped.
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
            raise ConnectionError("closed while it was asked")
        return task.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Whoever waited has seen the error; asyncio complains about one that nobody waited for."""
    if not task.cancelled():
        task.exception()


async def first_answer(questions: Iterable[Awaitable[T | None]], limit: float) -> T:
    """The first answer that is not None; a hung or dead peer costs nothing while another answers.

    Raises ConnectionError when nobody knows within `limit` seconds.
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
    raise ConnectionError("nobody that was asked knows")
