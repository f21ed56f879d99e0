"""Threads for what would hold the event loop too long: reading and checking large bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

SMALL_BYTES = 4 * 2**10  # a body up to this size is read on the loop: within 10 ms, where a thread costs 0.1 ms
THREADS = 2  # more would not help: they share the interpreter with the loop


class Threads:
    """The threads of one API process. What waits for them is bounded by the bound on connections."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="body")

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """The result of `work`, which reads or checks `size` bytes."""
        if size <= SMALL_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Leave what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
