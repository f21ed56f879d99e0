"""How long one call may wait for Redis, and what goes on without its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from shared.errors import Unavailable
from shared.redis.client import RETRY_AFTER_S

PATIENCE = 1.8  # seconds that one call may wait for Redis in all before its caller hears 503

log = structlog.get_logger(__name__)


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    """Raise Unavailable when what it holds takes longer than PATIENCE."""
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError as error:
        raise Unavailable("Redis did not answer in time", retry_after=RETRY_AFTER_S) from error


async def beside(work: Coroutine[Any, Any, object], leading: Awaitable[None]) -> None:
    """Both at once. Where `leading` fails, `work` is over too, whatever came of it."""
    task = asyncio.create_task(work)
    try:
        await leading
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    await task


class Upkeep:
    """Work that no caller waits for. Each piece has its own time limit."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_tolerantly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what has begun."""
        await asyncio.gather(*self._tasks)


async def _tolerantly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Unavailable as error:  # the request's time to live, or its worker, ends it
        log.warning("upkeep_failed", error=error.message)
