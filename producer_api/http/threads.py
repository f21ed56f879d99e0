"""Threads for work that would block the event loop too long: parsing and validating large bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

MAX_INLINE_BYTES = 4 * 2**10  # parsed on the loop within 10 ms; a thread costs 0.1 ms
THREADS = 2  # more would not help: all share one interpreter


class Threads:
    """Thread pool of one API process; its queue is bounded by the limit on connections."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="body")

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which handles `size` bytes."""
        if size <= MAX_INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Drop the work that has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
