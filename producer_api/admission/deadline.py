"""Time limits of calls to Redis, and background tasks that continue without the caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog

from shared.errors import Unavailable
from shared.redis.client import RETRY_AFTER_S
from shared.runtime.timeouts import Timeouts

REDIS_DEADLINE_S = 1.8  # how long one call may wait for Redis in all before its caller gets a 503

log = structlog.get_logger(__name__)


@asynccontextmanager
async def redis_deadline() -> AsyncIterator[None]:
    """Raise Unavailable if the body takes longer than REDIS_DEADLINE_S."""
    try:
        async with asyncio.timeout(REDIS_DEADLINE_S):
            yield
    except TimeoutError as error:
        raise _late() from error


class RedisDeadline:
    """The same for the frequent calls of one owner, which share a timer."""

    def __init__(self) -> None:
        self._timeouts = Timeouts(REDIS_DEADLINE_S)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Raise Unavailable if the body takes longer than REDIS_DEADLINE_S."""
        try:
            with self._timeouts.start():
                yield
        except TimeoutError as error:
            raise _late() from error


def _late() -> Unavailable:
    return Unavailable("Redis did not answer in time", retry_after=RETRY_AFTER_S)


async def run_alongside(work: Coroutine[Any, Any, object], leading: Awaitable[None]) -> None:
    """Await both at the same time. If `leading` fails, cancel `work` and ignore its outcome."""
    task = asyncio.create_task(work)
    try:
        await leading
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    await task


class BackgroundTasks:
    """Tasks that no caller waits for. Each has its own time limit."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_log_unavailable(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for the tasks that were started."""
        await asyncio.gather(*self._tasks)


async def _log_unavailable(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Unavailable as error:  # the request's worker or its time to live ends it
        log.warning("background_task_failed", error=error.message)
